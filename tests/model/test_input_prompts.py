"""Prompts before the input alone: prompt tuning and P-tuning, for comparison."""

from dataclasses import replace

import pytest
import torch

from ptv2 import PromptConfig, PromptModel
from ptv2.layout import Padded
from tests.model.configs import ANSWER, CLASSIFY, TAG

SHALLOW = replace(TAG, depth="input")
FAMILIES = ("albert", "bert", "distilbert", "electra", "modernbert", "nomic_bert", "roberta")
LENGTHS = (9, 4, 6, 1)


@pytest.fixture(params=FAMILIES)
def backbone(request, tiny_backbone):
    return tiny_backbone(request.param)


def textbook(backbone, prompt, ids):
    """One row: the stock model over the prompt's embeddings and the tokens'."""
    embeds = backbone.get_input_embeddings()(ids)
    out = backbone(inputs_embeds=torch.cat((prompt[None], embeds), 1))
    return out.last_hidden_state[:, len(prompt) :]


@torch.no_grad()
@pytest.mark.parametrize("parametrization", ["direct", "mlp", "lstm"])
def test_equals_the_stock_model_over_the_embeddings(backbone, batch, parametrization):
    model = PromptModel(backbone).eval()
    config = replace(SHALLOW, parametrization=parametrization, network_size=6)
    model.add_task("tag", config)
    prompt = model.prompts["tag"]._parametrised()
    padding = batch["attention_mask"] == 0
    inputs = {**batch, "input_ids": batch["input_ids"].masked_fill(padding, 1)}
    out = model(**inputs, task="tag")
    rows = model(**inputs, task=["tag"] * 4)
    for row, length in enumerate(LENGTHS):
        states = textbook(model.backbone, prompt, batch["input_ids"][row : row + 1, :length])
        wanted = model.heads["tag"](states, Padded(None))[0]
        torch.testing.assert_close(out.logits[row, :length], wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(rows.logits[row][:length], wanted, rtol=0, atol=1e-5)


def test_only_the_prompt_and_the_head_learn(tiny_backbone, batch):
    model = PromptModel(tiny_backbone("bert"))
    model.add_task(
        "mood", replace(CLASSIFY, depth="input", parametrization="lstm", network_size=8)
    )
    module = model.for_task("mood").train()
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = module(**batch, labels=torch.tensor([0, 1, 2, 0])).loss
        loss.backward()
        assert all(p.grad is not None for p in parameters)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(p.grad is None for p in model.backbone.parameters())


def test_saved_started_from_and_shared(tiny_backbone, batch, tmp_path):
    model = PromptModel(tiny_backbone("bert")).eval()
    model.add_task("mlp", replace(SHALLOW, parametrization="mlp", network_size=6))
    model.add_task("plain", SHALLOW, start_from="mlp")
    with pytest.raises(ValueError, match="name: the prompt of 'plain' is before the text"):
        model.key_value("plain")
    model.add_task("shared", SHALLOW, share_prompt_with="plain")
    model.save_task("mlp", tmp_path / "mlp")
    model.save_task("plain", tmp_path / "plain")
    model.load_task(tmp_path / "mlp", "mlp-again")
    model.load_task(tmp_path / "plain", "again")
    for name, other in (("again", "plain"), ("mlp-again", "mlp")):
        expected = model(**batch, task=other).logits
        assert torch.equal(model(**batch, task=name).logits, expected)
    folded = [model.prompts[name](None).embeddings for name in ("mlp", "plain", "shared")]
    assert torch.equal(folded[0], folded[1])
    assert folded[2] is folded[1]
    model.add_task("text", SHALLOW, start_from_text=[7, 8])
    table = model.backbone.get_input_embeddings().weight
    assert torch.equal(model.prompts["text"].embedding, table[[7, 8, 7]])
    with pytest.raises(ValueError, match="start_from: expected a prompt with depth layers, got"):
        model.add_task("deep", TAG, start_from="plain")


def test_a_prompt_beyond_all_positions(model):
    with pytest.raises(ValueError, match="prompt_length: expected less than the backbone's 64"):
        model.add_task("long", replace(SHALLOW, prompt_length=64))


def test_other_batches_are_refused(model, batch):
    model.add_task("shallow", replace(TAG, depth="input"))
    for tasks in (["shallow", "tag"] * 2, ["shallow", None] * 2):
        with pytest.raises(NotImplementedError, match="depth 'input' take padded batches of one"):
            model(**batch, task=tasks)
    packed = {"input_ids": batch["input_ids"][:1], "cu_seqlens": torch.tensor([0, 4, 9]).int()}
    with pytest.raises(NotImplementedError, match="one task, got a packed batch"):
        model(**packed, task="shallow")
    with pytest.raises(ValueError, match="task: the prompt of 'shallow' is in no layer"):
        model.prompt_batch(["tag", "shallow"])
    with pytest.raises(ValueError, match="input_ids: expected at most 61 tokens beside"):
        model(torch.randint(4, 100, (1, 62)), task="shallow")


@pytest.mark.parametrize(
    "change",
    [{"injection": "hidden-state"}, {"layers": (0,)}, {"gate": True}, {"position_offset": 1}],
)
def test_settings_that_mean_nothing_there(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name}: expected .* with depth 'input', got"):
        replace(ANSWER, depth="input", **change)


@pytest.mark.parametrize("family", ["esm", "clip_text_model"])
def test_backbones_that_take_no_embeddings(tiny_backbone, family):
    config = PromptConfig("feature-extraction", depth="input")
    with pytest.raises(ValueError, match="depth: this backbone takes no embeddings"):
        PromptModel(tiny_backbone(family)).add_task("shallow", config)


@torch.no_grad()
def test_positions_of_a_family_that_pads_with_0(tiny_backbone, batch):
    """Tokens count from padding_idx + 1, which is 1 here."""
    model = PromptModel(tiny_backbone("roberta", pad_token_id=0)).eval()
    model.add_task("tag", SHALLOW)
    prompt = model.prompts["tag"].embedding
    ids = batch["input_ids"][:1]
    states = textbook(model.backbone, prompt, ids)
    wanted = model.heads["tag"](states, Padded(None))
    torch.testing.assert_close(model(ids, task="tag").logits, wanted, rtol=0, atol=1e-5)

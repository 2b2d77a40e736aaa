"""DeBERTa v1, v2 and v3: the stock model without a prompt, the official form with one."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModel

from ptv2 import PromptConfig, PromptModel
from ptv2.layout import Padded
from tests.official_deberta import BOTH, CASES, COMMON, official_states, tiny_deberta

LENGTHS = (14, 5, 9, 1)
TASKS = ("long", "short", None, "long")
LONG = PromptConfig("sequence-classification", ("a", "b", "c"), prompt_length=7)
SHORT = PromptConfig("token-classification", ("O", "X"), prompt_length=3, layers=(0, 2))


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture
def backbone(case):
    return tiny_deberta(case)


@pytest.fixture
def batch():
    ids = torch.randint(4, 100, (4, 14))
    mask = torch.arange(14) < torch.tensor(LENGTHS)[:, None]
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}


def prompt_model(backbone):
    model = PromptModel(copy.deepcopy(backbone)).eval()
    model.add_task("long", LONG)
    model.add_task("short", SHORT)
    return model


def by_layer(model, task):
    prompts = [None] * 3
    if task is not None:
        for layer, prompt in zip(model.prompts[task].layers, model.key_value(task), strict=True):
            prompts[layer] = prompt
    return prompts


@torch.no_grad()
def test_bare_backbone_equals_stock(backbone, batch):
    expected = backbone(**batch).last_hidden_state
    model = prompt_model(backbone)
    model.add_task("closed", PromptConfig("feature-extraction", prompt_length=5, gate=True))
    valid = batch["attention_mask"].bool()
    for task in (None, [None] * 4, ["closed", None] * 2):
        got = model(**batch, task=task).last_hidden_state
        torch.testing.assert_close(got[valid], expected[valid], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.backbone(**batch).last_hidden_state[valid], expected[valid])


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
def test_mixed_prompts_equal_the_official_form(case, backbone, batch, packed, monkeypatch):
    model = prompt_model(backbone)
    rows = [batch["input_ids"][row, :length] for row, length in enumerate(LENGTHS)]
    inputs = batch
    if packed:
        ends = torch.tensor([0, *LENGTHS]).cumsum(0).int()
        inputs = {"input_ids": torch.cat(rows)[None], "cu_seqlens": ends, "max_seqlen": 14}
    if packed and case == "v2-conv":
        with pytest.raises(
            NotImplementedError, match="cu_seqlens: the backbone has a convolution"
        ):
            model(**inputs, task=TASKS)
        return
    out = model(**inputs, task=TASKS)
    found = out.last_hidden_state
    found = found[0].split(LENGTHS) if packed else found
    for row, task in enumerate(TASKS):
        prompts = by_layer(model, task)
        states = official_states(backbone, rows[row][None], prompts, monkeypatch)
        got = found[row][: LENGTHS[row]]
        torch.testing.assert_close(got, states[0], rtol=0, atol=1e-5)
        if task == "long":
            logits = model.heads[task](states, Padded(None))[0]
            torch.testing.assert_close(out.logits[row], logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_the_official_form(backbone, batch, checkpointing, monkeypatch):
    model = prompt_model(backbone)
    torch.nn.init.normal_(model.heads["long"].linear.weight)
    module = model.for_task("long")
    if checkpointing:
        module.gradient_checkpointing_enable()
        module.train()
        for part in model.backbone.modules():
            if isinstance(part, torch.nn.Dropout) or "Dropout" in type(part).__name__:
                part.eval()
        for layer in model.backbone.encoder.layer:
            layer.attention.self.dropout.p = 0.0
        module.head.eval()
    out = module(**batch)
    prompt = model.prompts["long"].embedding
    (got,) = torch.autograd.grad(out.logits.square().sum(), prompt)
    total = 0
    for row, length in enumerate(LENGTHS):
        ids = batch["input_ids"][row : row + 1, :length]
        states = official_states(backbone, ids, by_layer(model, "long"), monkeypatch)
        total = total + model.heads["long"](states, Padded(None)).square().sum()
    (want,) = torch.autograd.grad(total, prompt)
    assert want.abs().max() > 1e-2
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_hidden_states_fold_and_texts_start(backbone, batch):
    """Prompt states become the keys and values that a layer's own projections make of them."""
    model = PromptModel(backbone).eval()
    config = PromptConfig("feature-extraction", prompt_length=4, injection="hidden-state")
    model.add_task("states", config, start_from_text=[7, 8, 9, 10])
    folded = PromptConfig("feature-extraction", prompt_length=4)
    model.add_task("text", folded, start_from_text=[7, 8, 9, 10])
    torch.testing.assert_close(model.key_value("states"), model.key_value("text"))
    states = backbone(torch.tensor([[7, 8, 9, 10]]), output_hidden_states=True).hidden_states
    attention = backbone.encoder.layer[1].attention.self
    heads = (4, 8)
    if hasattr(attention, "in_proj"):
        fused = attention.transpose_for_scores(attention.in_proj(states[1]))
        _, key, value = fused.chunk(3, -1)
        value = value + attention.v_bias.view(1, 4, 1, 8)
    else:
        key, value = (
            projection(states[1]).unflatten(-1, heads).transpose(1, 2)
            for projection in (attention.key_proj, attention.value_proj)
        )
    torch.testing.assert_close(model.key_value("text")[1], torch.cat((key, value)))


@torch.no_grad()
def test_compiles_without_a_break(backbone, batch):
    model = prompt_model(backbone)
    expected = model(**batch, task="long").logits
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**batch, task="long").logits, expected)


def test_trains_with_dropout(backbone, batch):
    module = prompt_model(backbone).for_task("long").train()
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.03)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = module(**batch, labels=torch.tensor([0, 1, 2, 0])).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_talking_heads_are_refused():
    config = AutoConfig.for_model("deberta", **COMMON, pos_att_type=BOTH, talking_head=True)
    with pytest.raises(NotImplementedError, match="backbone: DeBERTa with talking_head"):
        PromptModel(AutoModel.from_config(config))


def test_positions_that_are_not_added_are_refused():
    backbone = tiny_deberta("v3")
    model = PromptModel(backbone).eval()
    with pytest.raises(ValueError, match="position_offset: the backbone adds no positions"):
        model.add_task("task", replace(SHORT, position_offset=3))
    ids = torch.randint(4, 100, (1, 6))
    with pytest.raises(ValueError, match="position_ids: deberta-v2 has none"):
        model(ids, position_ids=torch.arange(6)[None], task=None)


def test_kinds_of_positions_without_relative_attention():
    """A stock configuration may name them although nothing reads them."""
    settings = dict(relative_attention=False, share_att_key=False, pos_att_type=BOTH)
    config = AutoConfig.for_model("deberta-v2", **COMMON | settings)
    backbone = AutoModel.from_config(config).eval()
    ids = torch.randint(4, 100, (1, 6))
    expected = backbone(ids).last_hidden_state
    got = PromptModel(copy.deepcopy(backbone)).eval()(ids, task=None).last_hidden_state
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)

"""What other packages get wrong without a word (PEFT 0.21, adapters 1.3), done right here.

One test a failure; each says whose it is. Everything is small and in float32 on the CPU.
"""

import copy
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from ptv2 import PromptConfig, PromptModel
from tests.conftest import FAMILIES
from tests.textbook_model import states_with_prompt

FEATURES = PromptConfig("feature-extraction", prompt_length=5)
CLASSES = PromptConfig("sequence-classification", ("a", "b"), prompt_length=5)
TAGS = PromptConfig("token-classification", ("O", "X"), prompt_length=5)
QUESTIONS = PromptConfig("question-answering", prompt_length=5)


@pytest.fixture
def ids():
    return torch.randint(4, 100, (3, 9))


def states(model, task, ids, **inputs):
    return model(ids, task=[task] * len(ids), **inputs).last_hidden_state


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_a_prompt_acts_in_every_family_with_and_without_a_mask(family, tiny_backbone, ids, masked):
    """PEFT: no effect at all on ALBERT and ModernBERT, and on DistilBERT without a mask."""
    model = PromptModel(tiny_backbone(family)).eval()
    model.add_task("task", FEATURES)
    inputs = {"attention_mask": torch.ones_like(ids)} if masked else {}
    got = states(model, "task", ids, **inputs)
    assert not torch.allclose(got, states(model, None, ids, **inputs), atol=1e-2)
    torch.testing.assert_close(got, states(model, "task", ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_checkpointing_trains_the_prompt(tiny_backbone, ids, masked, when):
    """PEFT: switched on after wrapping, without a mask, the prompt is neither seen nor trained."""
    gradients = []
    for checkpointing in (False, True):
        backbone = tiny_backbone("bert")
        if checkpointing and when == "before":
            options = {"use_reentrant": False}
            enable = getattr(backbone, "activation_checkpointing_enable", None)
            (enable or backbone.gradient_checkpointing_enable)(options)
        model = PromptModel(backbone)
        torch.manual_seed(1)
        model.add_task("task", CLASSES)
        module = model.for_task("task").train()
        if checkpointing and when == "after":
            module.gradient_checkpointing_enable()
        inputs = {"attention_mask": torch.ones_like(ids)} if masked else {}
        torch.manual_seed(2)
        module(ids, **inputs, labels=torch.tensor([0, 1, 0])).loss.backward()
        gradients.append(module.prompt.embedding.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
def test_the_stock_trainer_checkpoints_and_trains(tiny_backbone, ids, tmp_path):
    """PEFT: `TrainingArguments(gradient_checkpointing=True)` leaves the prompt where it was."""
    model = PromptModel(tiny_backbone("bert"))
    model.add_task("task", CLASSES)
    before = model.prompts["task"].embedding.clone()
    arguments = TrainingArguments(
        str(tmp_path), gradient_checkpointing=True, max_steps=2, report_to="none", use_cpu=True,
        gradient_checkpointing_kwargs={"use_reentrant": False}, dataloader_pin_memory=False,
    )  # fmt: skip
    data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": [0, 1, 0]})
    Trainer(model.for_task("task"), arguments, train_dataset=data).train()
    assert (model.prompts["task"].embedding - before).abs().max() > 1e-6


@torch.no_grad()
def test_every_row_gets_its_own_prompt_and_an_unknown_one_is_an_error(tiny_backbone, ids):
    """PEFT: `adapter_names` of a batch are ignored, also names that do not exist."""
    model = PromptModel(tiny_backbone("bert")).eval()
    for name in ("first", "second"):
        model.add_task(name, FEATURES)
    mixed = model(ids, task=["first", None, "second"]).last_hidden_state
    for row, task in enumerate(("first", None, "second")):
        wanted = states(model, task, ids)[row]
        torch.testing.assert_close(mixed[row], wanted, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="task: 'third' is unknown"):
        model(ids, task=["first", "third", "second"])


@torch.no_grad()
def test_prompts_of_unequal_lengths_in_one_batch(family, tiny_backbone, ids):
    """adapters: `BatchSplit` lets rows of the shorter prompt see its padding, with a bias of 1."""
    backbone = tiny_backbone(family)
    model = PromptModel(copy.deepcopy(backbone)).eval()
    for name, length in (("short", 3), ("long", 7)):
        model.add_task(name, replace(FEATURES, prompt_length=length))
    mask = torch.ones_like(ids)
    got = model(ids, mask, task=["short", "long", "short"]).last_hidden_state
    for row, task in enumerate(("short", "long", "short")):
        inputs = {"input_ids": ids[row : row + 1]}
        wanted = states_with_prompt(backbone, inputs, model.key_value(task))[0]
        torch.testing.assert_close(got[row], wanted, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", sorted({"bert", "roberta", "electra", "distilbert"}))
def test_all_positions_are_left_to_the_text(tiny_backbone, family):
    """PEFT and the official code: the prompt takes positions, and P fewer tokens fit."""
    backbone = tiny_backbone(family)
    model = PromptModel(copy.deepcopy(backbone)).eval()
    model.add_task("task", FEATURES)
    ids = torch.randint(4, 100, (1, 64))
    got = states(model, "task", ids)
    wanted = states_with_prompt(backbone, {"input_ids": ids}, model.key_value("task"))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_start_that_is_the_bare_backbone(tiny_backbone, ids):
    """PEFT's `init_weights="zero"` is called a no-op; zero keys take a share of the softmax."""
    model = PromptModel(tiny_backbone("bert")).eval()
    model.add_task("zero", replace(FEATURES, init_std=0.0))
    model.add_task("gated", replace(FEATURES, gate=True))
    bare = states(model, None, ids)
    assert not torch.allclose(states(model, "zero", ids), bare, atol=1e-2)
    assert torch.equal(states(model, "gated", ids), bare)


@torch.no_grad()
@pytest.mark.parametrize("config", [QUESTIONS, CLASSES, TAGS], ids=lambda x: x.task)
def test_token_types_and_positions_reach_the_backbone(tiny_backbone, ids, config):
    """PEFT: for question answering both are dropped."""
    model = PromptModel(tiny_backbone("bert")).eval()
    model.add_task("task", config)

    def logits(**inputs):
        out = model(ids, task="task", **inputs)
        return out.start_logits if config.task == "question-answering" else out.logits

    types = (torch.arange(9) > 4).long().expand(3, -1)
    positions = torch.arange(9).flip(0).expand(3, -1)
    assert not torch.allclose(logits(), logits(token_type_ids=types), atol=1e-3)
    assert not torch.allclose(logits(), logits(position_ids=positions), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("offset", [0, 5])
def test_embeddings_count_positions_as_tokens_do(tiny_backbone, ids, offset):
    """PEFT on RoBERTa: `inputs_embeds` get other positions than `input_ids`."""
    model = PromptModel(tiny_backbone("roberta")).eval()
    model.add_task("task", replace(FEATURES, position_offset=offset))
    embeds = model.backbone.get_input_embeddings()(ids)
    got = model(inputs_embeds=embeds, task="task").last_hidden_state
    torch.testing.assert_close(got, model(ids, task="task").last_hidden_state, rtol=0, atol=1e-6)


def test_attention_weights_cannot_be_had(tiny_backbone, ids):
    """adapters: with sdpa, asking for them drops the prompt."""
    model = PromptModel(tiny_backbone("bert"))
    model.add_task("task", FEATURES)
    with pytest.raises(TypeError, match="output_attentions"):
        model(ids, task="task", output_attentions=True)
    with pytest.raises(ValueError, match="`output_attentions` attribute is not supported"):
        model.backbone.config.output_attentions = True


@torch.no_grad()
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_padding_changes_nothing(tiny_backbone, family, ids):
    """adapters on DistilBERT with sdpa: every score of the prompt is 1 too high, by its mask."""
    backbone = tiny_backbone(family)
    model = PromptModel(copy.deepcopy(backbone)).eval()
    model.add_task("task", FEATURES)
    mask = (torch.arange(9) < 5).long().expand(3, -1)
    padded = states(model, "task", ids, attention_mask=mask)[:, :5]
    for row in range(3):
        inputs = {"input_ids": ids[row : row + 1, :5]}
        wanted = states_with_prompt(backbone, inputs, model.key_value("task"))[0]
        torch.testing.assert_close(padded[row], wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_without_a_task_the_backbone_is_bare(family, tiny_backbone, ids):
    """PEFT's `disable_adapter()` raises on encoders."""
    backbone = tiny_backbone(family)
    expected = backbone(ids).last_hidden_state
    model = PromptModel(copy.deepcopy(backbone)).eval()
    model.add_task("task", FEATURES)
    got = model(ids, task=None).last_hidden_state
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("parametrization", ["mlp", "lstm"])
def test_a_reparametrised_prompt_is_saved_to_train_on(
    tiny_backbone, ids, tmp_path, parametrization
):
    """PEFT: the network is not saved, and a loaded adapter cannot be trained on."""
    model = PromptModel(tiny_backbone("bert"))
    model.add_task("task", replace(CLASSES, parametrization=parametrization, network_size=8))
    model.save_task("task", tmp_path / "task")
    model.load_task(tmp_path / "task", "again")
    module = model.for_task("again").train()
    module(ids, labels=torch.tensor([0, 1, 0])).loss.backward()
    before, after = (dict(model.prompts[name].named_parameters()) for name in ("task", "again"))
    assert before.keys() == after.keys()
    for name, parameter in after.items():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is not None


@torch.no_grad()
def test_prompts_before_the_input_add_no_rows_to_the_answer(tiny_backbone, ids):
    """PEFT's prompt tuning and P-tuning: heads read the prompt's first state, tags come out P
    too many, and their loss counts the prompt's."""
    model = PromptModel(tiny_backbone("bert")).eval()
    model.add_task("tags", replace(TAGS, depth="input"))
    model.add_task("classes", replace(CLASSES, depth="input", pooling="first"))
    labels = torch.randint(0, 2, ids.shape)
    out = model(ids, task="tags", labels=labels)
    assert out.logits.shape == (3, 9, 2)
    loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(out.loss, loss)
    embeds = model.backbone.get_input_embeddings()(ids)
    prompt = model.prompts["classes"].embedding.expand(3, -1, -1)
    stock = model.backbone(inputs_embeds=torch.cat((prompt, embeds), 1)).last_hidden_state
    wanted = model.heads["classes"].linear(stock[:, 5])  # the text's own first token
    torch.testing.assert_close(model(ids, task="classes").logits, wanted, rtol=0, atol=1e-5)


def test_the_families_here_are_all_that_are_supported():
    from ptv2.families import FAMILIES as SUPPORTED

    of_other_tests = {"clip_vision_model", "vit", "deberta", "deberta-v2"}
    assert set(SUPPORTED) - set(FAMILIES) == of_other_tests

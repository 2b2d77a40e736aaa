"""Every family, mixed tasks and padding in one forward, against the textbook forms row by row."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModel

from ptv2 import PromptConfig, PromptModel
from ptv2.families import FAMILIES, family_of
from ptv2.layout import Padded
from tests.textbook_model import inject_process_slice, states_with_prompt

LENGTHS = (14, 5, 9, 1, 12)
TASKS = ("long", "short", None, "some-layers", "recurrent")
CONFIGS = {
    "long": PromptConfig(
        task="sequence-classification", labels=("a", "b", "c"), prompt_length=7, init_std=1.0
    ),
    "short": PromptConfig(
        task="token-classification", labels=("O", "X"), prompt_length=3, init_std=1.0,
        parametrization="mlp", network_size=16,
    ),
    "recurrent": PromptConfig(
        task="sequence-classification", labels=("a", "b"), prompt_length=5, init_std=1.0,
        parametrization="lstm", network_size=8,
    ),
    "some-layers": PromptConfig(
        task="sequence-classification", labels=("a", "b"), prompt_length=4, init_std=1.0,
        layers=(0, 2), pooling="first",
    ),
}  # fmt: skip


@pytest.fixture
def batch():
    ids = torch.randint(4, 100, (len(LENGTHS), max(LENGTHS)))
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return {"input_ids": ids.masked_fill(~mask, 1), "attention_mask": mask.long()}


def prompt_model(backbone, **changes):
    model = PromptModel(copy.deepcopy(backbone)).eval()
    causal = family_of(backbone.config.model_type).causal
    for name, config in CONFIGS.items():
        values = config.to_dict() | changes
        if causal and config.pooling == "first":  # there a token that sees no other
            values["pooling"] = "last"
        model.add_task(name, PromptConfig(**values))
    return model


def by_layer(model, task):
    """Per call of an attention module: (2, heads, prompt_length, head_dim), or None."""
    prompts = [None] * model.geometry.layers
    if task is not None:
        for layer, prompt in zip(model.prompts[task].layers, model.key_value(task), strict=True):
            prompts[layer] = prompt
    return prompts


def row_inputs(batch, row):
    return {"input_ids": batch["input_ids"][row : row + 1, : LENGTHS[row]]}


@torch.no_grad()
def test_mixed_padded_batch_equals_concatenation(family, tiny_backbone, batch):
    backbone = tiny_backbone(family)
    model = prompt_model(backbone)
    out = model(**batch, task=TASKS)
    for row, task in enumerate(TASKS):
        states = states_with_prompt(backbone, row_inputs(batch, row), by_layer(model, task))
        got = out.last_hidden_state[row, : LENGTHS[row]]
        torch.testing.assert_close(got, states[0], rtol=0, atol=1e-5)
        if task is None:
            assert out.logits[row] is None
            continue
        logits = model.heads[task](states, Padded(None))[0]
        got = out.logits[row]
        got = got if got.dim() == 1 else got[: LENGTHS[row]]
        torch.testing.assert_close(got, logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_bare_backbone_equals_stock(family, tiny_backbone, batch):
    stock = tiny_backbone(family)
    model = prompt_model(stock)
    model.add_task("closed", PromptConfig("feature-extraction", prompt_length=5, gate=True))
    expected = stock(**batch).last_hidden_state
    valid = batch["attention_mask"].bool()
    for task in (None, [None] * len(LENGTHS), "closed", ["closed", None] * 2 + ["closed"]):
        got = model(**batch, task=task).last_hidden_state
        torch.testing.assert_close(got[valid], expected[valid], rtol=0, atol=1e-5)


@torch.no_grad()
def test_one_task_equals_its_rows_of_a_mixed_batch(family, tiny_backbone, batch):
    model = prompt_model(tiny_backbone(family))
    alone = model(**batch, task="long").logits
    mixed = model(**batch, task=TASKS).logits
    for row, task in enumerate(TASKS):
        if task == "long":
            torch.testing.assert_close(alone[row], mixed[row], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("parametrization", ["direct", "mlp"])
def test_hidden_state_injection_equals_inject_process_slice(
    family, parametrization, tiny_backbone, batch
):
    backbone = tiny_backbone(family)
    model = prompt_model(backbone, injection="hidden-state", parametrization=parametrization)
    out = model(**batch, task=TASKS)
    for row, task in enumerate(TASKS):
        states = [None] * model.geometry.layers
        if task is not None:
            prompt = model.prompts[task]
            hidden = prompt.embedding
            if parametrization == "mlp":
                hidden = (
                    prompt.network(hidden).unflatten(1, (len(prompt.layers), -1)).transpose(0, 1)
                )
            for layer, prompt_states in zip(prompt.layers, hidden, strict=True):
                states[layer] = prompt_states
        layers = family_of(family).layers(backbone)
        expected = inject_process_slice(backbone, layers, row_inputs(batch, row), states)
        got = out.last_hidden_state[row, : LENGTHS[row]]
        torch.testing.assert_close(got, expected[0], rtol=0, atol=1e-5)


def test_gradients_equal_concatenation(family, tiny_backbone, batch):
    backbone = tiny_backbone(family)
    model = prompt_model(backbone)
    out = model(**batch, task="long")
    (got,) = torch.autograd.grad(out.logits.square().sum(), model.prompts["long"].embedding)
    expected = 0
    for row in range(len(LENGTHS)):
        states = states_with_prompt(backbone, row_inputs(batch, row), by_layer(model, "long"))
        expected = expected + model.heads["long"](states, Padded(None)).square().sum()
    (want,) = torch.autograd.grad(expected, model.prompts["long"].embedding)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_checkpointing_gives_the_same_bits(family, tiny_backbone, batch):
    """With dropout on; ALBERT has no checkpointing in transformers, which says so."""
    gradients, calls = [], []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        task = prompt_model(tiny_backbone(family)).for_task("long").train()
        if checkpointing and family == "albert":
            with pytest.raises(ValueError, match="does not support"):
                task.gradient_checkpointing_enable()
            return
        if checkpointing:
            task.gradient_checkpointing_enable()
        calls.append(0)
        for layer in family_of(family).layers(task.backbone):
            family_of(family).attention(layer).register_forward_pre_hook(
                lambda *_: calls.append(calls.pop() + 1)
            )
        torch.manual_seed(3)
        labels = torch.tensor([0, 1, 2, 0, 1])
        task(**batch, labels=labels).loss.backward()
        gradients.append(task.prompt.embedding.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.equal(*gradients)
    assert calls == [3, 6]  # of three layers, whose forward is computed again


@torch.no_grad()
def test_compiles_without_a_break(family, tiny_backbone, batch):
    model = prompt_model(tiny_backbone(family))
    expected = model(**batch, task="long").logits
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**batch, task="long").logits, expected)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*:DeprecationWarning")
def test_mixed_batch_compiles_without_a_break(tiny_backbone, batch):
    """torch compiles no LSTM; everything else."""
    model = prompt_model(tiny_backbone("bert"))
    gated = PromptConfig("sequence-classification", ("a", "b"), prompt_length=5, gate=True)
    model.add_task("gated", gated)
    model.prompts["gated"].gate.uniform_(-1, 1)
    tasks = (*TASKS[:4], "gated")
    expected = model(**batch, task=tasks).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(**batch, task=tasks).logits, expected, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want)


def test_unsupported_family_says_which_work():
    backbone = AutoModel.from_config(
        AutoConfig.for_model("mpnet", vocab_size=20, hidden_size=16, num_hidden_layers=1,
                             num_attention_heads=2, intermediate_size=16)
    )  # fmt: skip
    with pytest.raises(NotImplementedError) as error:
        PromptModel(backbone)
    assert "mpnet" in str(error.value)
    assert all(name in str(error.value) for name in FAMILIES)

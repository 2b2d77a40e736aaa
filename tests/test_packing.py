"""Packed batches equal padded ones: states, logits, losses and gradients, in every family."""

import copy
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from ptv2 import PromptConfig, PromptModel
from ptv2.layout import Packed, Padded

LENGTHS = (14, 5, 9, 1, 12, 8)
TASKS = ("topic", "tags", None, "few", "answer", "tags")
CONFIGS = {
    "topic": PromptConfig("sequence-classification", ("a", "b", "c"), prompt_length=7),
    "tags": PromptConfig("token-classification", ("O", "X"), prompt_length=3),
    "few": PromptConfig(
        "sequence-classification", ("a", "b"), prompt_length=4, layers=(0, 2), pooling="last"
    ),
    "answer": PromptConfig("question-answering", prompt_length=5),
    "choose": PromptConfig("multiple-choice", prompt_length=2),
    "embed": PromptConfig("feature-extraction", prompt_length=2),
}
LABELS: dict[str, dict[str, Any]] = {
    "topic": {"labels": torch.tensor([0, 1, 2, 0, 1, 1])},
    "few": {"labels": torch.tensor([0, 1, 1, 0, 1, 1])},
    "answer": {
        "start_positions": torch.tensor([0, 4, 3, 0, 13, 2]),  # 13: beyond that one's 12 tokens
        "end_positions": torch.tensor([13, 4, 8, 0, 11, 4]),
    },
    "choose": {"labels": torch.tensor([1, 2])},
    "embed": {},
}


@pytest.fixture
def padded() -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 100, (len(LENGTHS), max(LENGTHS)))
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return {"input_ids": ids.masked_fill(~mask, 1), "attention_mask": mask.long()}


@pytest.fixture
def packed(padded: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "input_ids": pack(padded["input_ids"]),
        "cu_seqlens": torch.tensor([0, *LENGTHS]).cumsum(0).int(),
        "max_seqlen": max(LENGTHS),
    }


def pack(x: torch.Tensor) -> torch.Tensor:
    """(rows, length, ...) -> (1, tokens, ...)."""
    return torch.cat([row[:n] for row, n in zip(x, LENGTHS, strict=True)])[None]


def new_model(backbone: Any) -> PromptModel:
    torch.manual_seed(1)
    model = PromptModel(copy.deepcopy(backbone)).eval()
    for name, config in CONFIGS.items():
        model.add_task(name, config)
    return model


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_a_mixed_batch(family: str, tiny_backbone: Any, padded: Any, packed: Any) -> None:
    model = new_model(tiny_backbone(family))
    tags = [torch.tensor([0, 1, -100, 0, 1])[: n % 6] for n in LENGTHS]
    tags = [torch.cat((row, torch.full((14 - len(row),), -100))) for row in tags]
    labels = [1, tags[1], None, 0, torch.tensor([3, 5]), tags[5]]
    want = model(**padded, task=TASKS, labels=labels)
    labels[1], labels[5] = tags[1][:5], tags[5][:8]
    got = model(**packed, task=TASKS, labels=labels)
    close(got.last_hidden_state, pack(want.last_hidden_state))
    close(got.loss, want.loss)
    for row, (a, b) in enumerate(zip(got.logits, want.logits, strict=True)):
        if b is None:
            assert a is None
        else:
            close(a, b if b.dim() == 1 else b[: LENGTHS[row]])
    assert got.logits[4].shape == (12, 2)


@pytest.mark.parametrize("name", LABELS)
def test_one_task_and_its_gradient(
    family: str, name: str, tiny_backbone: Any, padded: Any, packed: Any
) -> None:
    model = new_model(tiny_backbone(family))
    found = []
    for inputs in (padded, packed):
        inputs = dict(inputs)
        if name == "choose":  # two questions of three choices
            if inputs is not packed and "cu_seqlens" not in inputs:
                inputs = {key: x.view(2, 3, -1) for key, x in inputs.items()}
            else:
                inputs["choices"] = 3
        out = model(**inputs, task=name, **LABELS[name])
        value = out.last_hidden_state if name == "embed" else out.loss
        if name == "embed" and "cu_seqlens" not in inputs:
            value = pack(value)
        (gradient,) = torch.autograd.grad(value.square().sum(), model.prompts[name].embedding)
        found.append((value, gradient))
    close(found[1][0], found[0][0])
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("task", ["embed", None])
def test_a_list_of_tasks_without_heads(tiny_backbone: Any, packed: Any, task: str | None) -> None:
    model = new_model(tiny_backbone("bert"))
    output = model(**packed, task=[task] * len(LENGTHS))
    assert output.logits == (None,) * len(LENGTHS)
    expected = model(**packed, task=task).last_hidden_state
    torch.testing.assert_close(output.last_hidden_state, expected, rtol=0, atol=1e-5)


def test_roberta_counts_no_padding_token_in_a_text(tiny_backbone: Any, packed: Any) -> None:
    """Its position ids skip a padding token wherever it stands."""
    backbone = tiny_backbone("roberta")
    packed["input_ids"][0, 3] = backbone.config.pad_token_id
    got = new_model(backbone)(**packed, task="embed").last_hidden_state
    for start, end in zip(packed["cu_seqlens"], packed["cu_seqlens"][1:], strict=False):
        alone = packed["input_ids"][:, start:end]
        want = new_model(backbone)(input_ids=alone, task="embed").last_hidden_state
        close(got[:, start:end], want)


def test_embeddings_and_positions_may_be_given(
    family: str, tiny_backbone: Any, packed: Any
) -> None:
    backbone = tiny_backbone(family)
    model = new_model(backbone)
    want = model(**packed, task="embed").last_hidden_state
    ids = packed.pop("input_ids")
    embeds = backbone.get_input_embeddings()(ids)
    if family == "esm":  # there they stand for what its embedding module makes of them
        embeds = backbone.embeddings(ids)
    if family == "clip_text_model":
        with pytest.raises(ValueError, match="inputs_embeds: clip_text_model has none"):
            model(**packed, inputs_embeds=embeds, task="embed")
        return
    close(model(**packed, inputs_embeds=embeds, task="embed").last_hidden_state, want)


@torch.no_grad()
def test_compiles_without_a_break(tiny_backbone: Any, packed: Any) -> None:
    model = new_model(tiny_backbone("bert"))
    expected = model(**packed, task="topic").logits
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**packed, task="topic").logits, expected)


@pytest.mark.parametrize("packing", [False, True])
def test_a_new_length_compiles_nothing_new(tiny_backbone: Any, packing: bool) -> None:
    task = new_model(tiny_backbone("bert")).for_task("topic").train()
    torch._dynamo.reset()
    compiled = CompileCounterWithBackend("aot_eager")
    task.compile(backend=compiled)
    for rows, length in ((4, 9), (5, 11), (6, 14), (7, 12)):
        inputs: dict[str, Any] = {"input_ids": torch.randint(4, 100, (rows, length))}
        if packing:
            cu_seqlens = torch.arange(0, rows * length + 1, length, dtype=torch.int32)
            inputs = {"input_ids": inputs["input_ids"].view(1, -1), "cu_seqlens": cu_seqlens}
            inputs["max_seqlen"] = length
        task(**inputs, labels=torch.ones(rows, dtype=torch.long)).loss.backward()
    assert compiled.frame_count == 2  # the first length's own, and one for all


def test_checkpointing_gives_the_same_bits(tiny_backbone: Any, packed: Any) -> None:
    gradients = []
    for checkpointing in (False, True):
        task = new_model(tiny_backbone("bert")).for_task("topic").train()
        if checkpointing:
            task.activation_checkpointing_enable()
        torch.manual_seed(3)
        task(**packed, **LABELS["topic"]).loss.backward()
        gradients.append(task.prompt.embedding.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": torch.ones(1, 49)}, "attention_mask: a packed batch has no padding"),
        ({"input_ids": torch.ones(2, 49, dtype=torch.long)}, r"input_ids: expected \(1, tokens\)"),
        ({"cu_seqlens": None}, "max_seqlen: expected cu_seqlens with it"),
        ({"cu_seqlens": torch.tensor([0, 40], dtype=torch.int32)}, "cu_seqlens"),
        ({"max_seqlen": 3}, "max_seqlen"),
        ({"task": list(TASKS)[:5]}, "task: expected 6 names, one a row, got 5"),
        ({"choices": 2}, "choices: sequence-classification has none, expected None, got 2"),
        ({"task": "choose"}, "choices: expected a divisor of the 6 sequences"),
        ({"task": "choose", "choices": 4}, "choices: expected a divisor of the 6 sequences"),
        (
            {"task": list(TASKS), "choices": 2},
            r"choices: expected a divisor .* in task, \{\}, got",
        ),
        ({"cu_seqlens": [0, 49]}, "cu_seqlens: expected a tensor, got list"),
    ],
)
def test_errors(tiny_backbone: Any, packed: Any, change: dict[str, Any], message: str) -> None:
    model = new_model(tiny_backbone("bert"))
    with pytest.raises(ValueError, match=message):
        model(**{"task": "topic", **packed, **change})


def test_layouts_agree() -> None:
    states = torch.randn(len(LENGTHS), max(LENGTHS), 3)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    a, b = Padded(mask), Packed(torch.tensor([0, *LENGTHS]).cumsum(0).int(), 14, sum(LENGTHS))
    flat = pack(states)
    close(a.first(states), b.first(flat))
    close(a.mean(states), b.mean(flat))
    close(a.rows(states, -1.0), b.rows(flat, -1.0))
    for groups in ([[4, 1], [2]], [[0, 1], [2, 3, 4]], [list(range(len(LENGTHS)))]):
        found, padded = b.groups(flat, groups), a.groups(states, groups)
        for group, (part, layout), (rows, padded_layout) in zip(
            groups, found, padded, strict=True
        ):
            assert [len(x) for x in layout.split(part)] == [LENGTHS[i] for i in group]
            close(layout.mean(part), a.mean(states)[group])
            close(padded_layout.mean(rows), a.mean(states)[group])
    empty = Packed(torch.tensor([0, 0, 2], dtype=torch.int32), 2, 2)
    assert empty.mean(torch.ones(1, 2, 3))[0].tolist() == [0, 0, 0]


def test_esm_scales_by_its_masked_tokens(tiny_backbone: Any, packed: Any) -> None:
    """By those of the row, which would be all sequences of a packed one."""
    model = new_model(tiny_backbone("esm"))
    packed["input_ids"][0, 1] = 2
    with pytest.raises(NotImplementedError, match=r"takes no mask token \(2\) in a packed batch"):
        model(**packed, task="topic")

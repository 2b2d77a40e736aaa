"""Prompts that count their own positions, and prompts without token types."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from ptv2 import PromptModel
from ptv2.layout import Padded
from tests.model.configs import CLASSIFY, TAG
from tests.textbook_model import states_with_prompt

SHIFTED = replace(TAG, position_offset=3)
LENGTHS = (9, 4, 6, 1)


@pytest.fixture(params=["bert", "roberta"])
def backbone(request, tiny_backbone):
    return tiny_backbone(request.param)


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
def test_positions_move_on_by_the_offset(backbone, batch, packed):
    model = PromptModel(backbone).eval()
    model.add_task("shifted", SHIFTED)
    model.add_task("plain", CLASSIFY)
    tasks = ["shifted", "plain", "shifted", None]
    inputs = {
        **batch,
        "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 1),
    }
    rows = [ids[:length] for ids, length in zip(batch["input_ids"], LENGTHS, strict=True)]
    if packed:
        ends = torch.tensor([0, *LENGTHS]).cumsum(0).int()
        inputs = {"input_ids": torch.cat(rows)[None], "cu_seqlens": ends, "max_seqlen": 9}
    states = model(**inputs, task=tasks).last_hidden_state
    found = states[0].split(LENGTHS) if packed else states
    first = 2 if backbone.config.model_type == "roberta" else 0
    expected = []
    for row, task in enumerate(tasks):
        offset = 3 if task == "shifted" else 0
        places = torch.arange(LENGTHS[row])[None] + first + offset
        prompts = [None] * 3 if task is None else model.key_value(task)
        row_inputs = {"input_ids": rows[row][None], "position_ids": places}
        expected.append((row_inputs, prompts))
    for row, (row_inputs, prompts) in enumerate(expected):
        wanted = states_with_prompt(model.backbone, row_inputs, prompts)[0]
        torch.testing.assert_close(found[row][: LENGTHS[row]], wanted, rtol=0, atol=1e-5)


def test_own_position_ids_are_moved_too(tiny_backbone, batch):
    model = PromptModel(tiny_backbone("bert")).eval()
    model.add_task("shifted", SHIFTED)
    expected = model(**batch, task="shifted").logits
    own = torch.arange(9).expand(4, 9)
    assert torch.equal(model(**batch, position_ids=own, task="shifted").logits, expected)


@pytest.mark.parametrize("packed", [False, True])
def test_position_ids_that_an_offset_would_move_out(tiny_backbone, packed):
    model = PromptModel(tiny_backbone("bert")).eval()
    model.add_task("shifted", SHIFTED)
    ids = torch.arange(4, 9)[None]
    own = {"cu_seqlens": torch.tensor([0, 5], dtype=torch.int32)} if packed else {}
    model(ids, position_ids=torch.arange(56, 61)[None], task="shifted", **own)
    with pytest.raises(ValueError, match="position_ids: expected less than 61 beside a posit"):
        model(ids, position_ids=torch.arange(57, 62)[None], task="shifted", **own)
    if not packed:  # padding may stand anywhere
        mask = torch.tensor([[1, 1, 1, 1, 0]])
        model(ids, mask, position_ids=torch.arange(57, 62)[None], task="shifted")


@torch.no_grad()
def test_padding_on_the_left_takes_no_position(tiny_backbone):
    """RoBERTa counts tokens alone: 50 of them and an offset of 10 fit into 64 positions."""
    model = PromptModel(tiny_backbone("roberta")).eval()
    model.add_task("shifted", replace(TAG, position_offset=10))
    ids = torch.randint(4, 100, (1, 50))
    padded = torch.cat((torch.ones(1, 14, dtype=torch.long), ids), 1)
    got = model(padded, (padded != 1).long(), task="shifted").logits[:, 14:]
    torch.testing.assert_close(got, model(ids, task="shifted").logits, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_pooling_beside_padding_on_the_left(tiny_backbone, pooling):
    model = PromptModel(tiny_backbone("roberta")).eval()
    model.add_task("pooled", replace(CLASSIFY, pooling=pooling))
    ids = torch.randint(4, 100, (1, 6))
    padded = torch.cat((torch.ones(1, 3, dtype=torch.long), ids), 1)
    got = model(padded, (padded != 1).long(), task="pooled").logits
    torch.testing.assert_close(got, model(ids, task="pooled").logits, rtol=0, atol=1e-5)


def test_an_offset_beyond_all_positions(tiny_backbone):
    model = PromptModel(tiny_backbone("bert"))
    with pytest.raises(ValueError, match="position_offset: expected less than the backbone's 64"):
        model.add_task("far", replace(TAG, position_offset=64))


def test_no_token_without_a_position(tiny_backbone):
    """The tiny backbones have 64 positions; padding may lie beyond them."""
    model = PromptModel(tiny_backbone("bert")).eval()
    model.add_task("shifted", SHIFTED)
    ids = torch.randint(4, 100, (2, 64))
    with pytest.raises(ValueError, match=r"at most 61 tokens beside .* of 3, got 64"):
        model(ids, task="shifted")
    mask = (torch.arange(64) < torch.tensor([61, 20])[:, None]).long()
    padded = model(ids, mask, task="shifted").logits[:, :61]
    fitting = model(ids[:, :61], mask[:, :61], task="shifted").logits
    torch.testing.assert_close(padded[mask[:, :61].bool()], fitting[mask[:, :61].bool()])
    mask[1, 61] = 1
    with pytest.raises(ValueError, match=r"at most 61 tokens beside .* of 3, got 62"):
        model(ids, mask, task=["shifted", "shifted"])


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
def test_token_types_are_dropped_where_a_prompt_was_trained_without(model, batch, packed):
    model.add_task("untyped", replace(TAG, token_types=False))
    model.prompts["untyped"].load_state_dict(model.prompts["tag"].state_dict())
    types = torch.randint(0, 2, batch["input_ids"].shape)
    inputs = {"input_ids": batch["input_ids"], "token_type_ids": types}
    tasks = ["tag", "untyped", None, "untyped"]
    expected = model(**inputs, task=["tag", "tag", None, "tag"]).last_hidden_state
    inputs_without = {**inputs, "token_type_ids": torch.zeros_like(types)}
    without = model(**inputs_without, task=["tag"] * 4).last_hidden_state
    if packed:
        ends = torch.arange(0, 37, 9).int()
        inputs = {name: x.reshape(1, -1) for name, x in inputs.items()} | {"cu_seqlens": ends}
    got = model(**inputs, task=tasks).last_hidden_state.view(4, 9, -1)
    for row, wanted in enumerate((expected, without, expected, without)):
        torch.testing.assert_close(got[row], wanted[row], rtol=0, atol=1e-5)


def test_a_head_with_a_hidden_layer(model, batch):
    model.add_task("deep", replace(CLASSIFY, pooling="first", head_activation="gelu"))
    head = model.heads["deep"]
    states = model(**batch, task=["deep"] * 4).last_hidden_state
    hidden = torch.nn.functional.gelu(head.dense(states[:, 0]))
    torch.testing.assert_close(head(states, Padded(None)), head.linear(hidden))


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
def test_pooling_the_last_token(model, batch, packed):
    model.add_task("last", replace(CLASSIFY, pooling="last"))
    inputs = batch
    if packed:
        ids = batch["input_ids"]
        tokens = torch.cat([ids[row, :length] for row, length in enumerate(LENGTHS)])
        inputs = {
            "input_ids": tokens[None],
            "cu_seqlens": torch.tensor([0, *LENGTHS]).cumsum(0).int(),
        }
    got = model(**inputs, task="last").logits
    for row, length in enumerate(LENGTHS):
        ids = batch["input_ids"][row : row + 1, :length]
        states = model(ids, task=["last"]).last_hidden_state[0, -1]
        wanted = model.heads["last"].linear(states)
        torch.testing.assert_close(got[row], wanted, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", ["modernbert", "eurobert", "nomic_bert", "esm"])
def test_rotary_backbones_beside_padding_on_the_left(tiny_backbone, family):
    """A prompt stands at a position of its own, from which padding must not move a text."""
    model = PromptModel(tiny_backbone(family)).eval()
    model.add_task("layers", CLASSIFY)
    model.add_task("shifted", replace(CLASSIFY, position_offset=5))
    if family in ("eurobert", "nomic_bert"):
        model.add_task("input", replace(CLASSIFY, depth="input"))
    ids = torch.randint(4, 100, (1, 6))
    left = F.pad(ids, (7, 0)), F.pad(torch.ones_like(ids), (7, 0))
    if family == "modernbert":
        model.add_task("windows", replace(CLASSIFY, depth="input"))
        with pytest.raises(NotImplementedError, match="attention_mask: expected padding on the r"):
            model(*left, task="windows")
    for name in model.tasks.keys() - {"windows"}:
        got, wanted = model(*left, task=name).logits, model(ids, task=name).logits
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    rows = torch.cat((left[0], F.pad(ids, (0, 7)))), torch.cat((left[1], left[1].flip(1)))
    mixed = model(*rows, task=["layers", None]).last_hidden_state
    bare = model(ids, task=None).last_hidden_state
    torch.testing.assert_close(mixed[1:, :6], bare, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        mixed[:1, 7:], model(*left, task=["layers"]).last_hidden_state[:, 7:], rtol=0, atol=1e-5
    )

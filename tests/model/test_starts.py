"""How a prompt starts: from one of another length, from a text, behind closed gates."""

from dataclasses import replace

import pytest
import torch
from transformers import BertModel

from ptv2 import PromptModel
from tests.model.configs import CLASSIFY, TAG

GATED = replace(CLASSIFY, gate=True)


def states(model, batch, task):
    tasks = [task] * len(batch["input_ids"])
    return model(**batch, task=tasks).last_hidden_state


def trained(model, name):
    """Give a gated prompt gates that are open, closed and below 0."""
    with torch.no_grad():
        model.prompts[name].gate.uniform_(-0.5, 1.5)
    return model


@pytest.mark.parametrize("length", [2, 9])
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"injection": "hidden-state"},
        {"parametrization": "mlp", "network_size": 6},
        {"parametrization": "mlp", "network_size": 6, "injection": "hidden-state"},
    ],
    ids=str,
)
def test_another_length(tiny_backbone, length, form):
    model = PromptModel(tiny_backbone("bert"))
    model.add_task("first", replace(CLASSIFY, **form))
    model.add_task("other", replace(CLASSIFY, prompt_length=length, **form), start_from="first")
    first, other = model.key_value("first"), model.key_value("other")
    rows = min(length, CLASSIFY.prompt_length)
    torch.testing.assert_close(other[..., :rows, :], first[..., :rows, :], rtol=0, atol=1e-6)
    assert other.shape[3] == length
    if length > rows:
        assert other[..., rows:, :].std() > 0.05


def test_rows_of_an_lstm_depend_on_its_length(tiny_backbone):
    form = {"parametrization": "lstm", "network_size": 6}
    model = PromptModel(tiny_backbone("bert"))
    model.add_task("first", replace(CLASSIFY, **form))
    model.add_task("same", replace(CLASSIFY, **form), start_from="first")
    assert torch.equal(model.key_value("same"), model.key_value("first"))
    with pytest.raises(ValueError, match="start_from: expected a prompt with prompt_length 2"):
        model.add_task("other", replace(CLASSIFY, prompt_length=2, **form), start_from="first")


@pytest.mark.parametrize("start", ["plain", "gated"])
def test_gates_close_the_rows_that_the_other_prompt_does_not_have(model, batch, start):
    model.add_task("plain", CLASSIFY)
    model.add_task("gated", GATED)
    trained(model, "gated")
    model.add_task("longer", replace(GATED, prompt_length=11), start_from=start)
    expected = states(model, batch, start)
    torch.testing.assert_close(states(model, batch, "longer"), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="start_from: expected a prompt with gate False, got"):
        model.add_task("new", CLASSIFY, start_from="gated")


def test_closed_gates_are_the_bare_backbone_and_open_in_training(model, batch):
    model.add_task("gated", GATED)
    model.add_task("zero", replace(CLASSIFY, init_std=0.0))
    bare = states(model, batch, None)
    assert torch.equal(states(model, batch, "gated"), bare)
    assert not torch.allclose(states(model, batch, "zero"), bare, atol=1e-2)

    labels = torch.tensor([0, 1, 2, 0])
    parameters = [*model.prompts["gated"].parameters(), *model.heads["gated"].parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    losses = []
    for _ in range(30):
        loss = model(**batch, task="gated", labels=labels).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if len(losses) == 1:
            opening = model.prompts["gated"].gate.grad
            assert opening.count_nonzero() > opening.numel() / 4
            assert opening.max() <= 0  # what would close further is left out
        optimizer.step()
    assert losses[-1] < losses[0] / 2
    gate = model.prompts["gated"].gate
    assert (gate > 0).float().mean() > 0.3


def test_prompts_with_and_without_gates_in_one_batch(model, batch, tmp_path):
    model.add_task("gated", GATED)
    trained(model, "gated")
    tasks = ["gated", "tag", None, "gated"]
    mixed = model(**batch, task=tasks).last_hidden_state
    for row, task in enumerate(tasks):
        length = int(batch["attention_mask"][row].sum())
        alone = model(batch["input_ids"][row : row + 1, :length], task=[task]).last_hidden_state
        torch.testing.assert_close(mixed[row, :length], alone[0], rtol=0, atol=1e-5)

    model.save_task("gated", tmp_path / "gated")
    model.load_task(tmp_path / "gated", "loaded")
    assert torch.equal(states(model, batch, "loaded"), states(model, batch, "gated"))
    assert model.prompts["loaded"].gate.min() == 0


@pytest.mark.parametrize("injection", ["key-value", "hidden-state"])
def test_text(tiny_backbone, injection):
    """The keys and values are those that the stock model has of the text, repeated to fit."""
    backbone = tiny_backbone("bert")
    stock = BertModel(backbone.config).eval()
    stock.load_state_dict(backbone.state_dict(), strict=False)
    model = PromptModel(backbone).train()
    config = replace(TAG, prompt_length=5, injection=injection, layers=(0, 2))
    model.add_task("text", config, start_from_text=[7, 8, 9])
    assert model.backbone.training
    with torch.no_grad():
        found = stock(torch.tensor([[7, 8, 9, 7, 8]]), output_hidden_states=True).hidden_states
        for place, layer in enumerate((0, 2)):
            attention = stock.encoder.layer[layer].attention.self
            for which, projection in enumerate((attention.key, attention.value)):
                wanted = projection(found[layer])[0].unflatten(-1, (4, -1)).transpose(0, 1)
                got = model.key_value("text")[place, which]
                torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "change", "given", "message"),
    [
        ("a text", {}, {}, "start_from_text: expected token ids, got the text 'a text'"),
        ([], {}, {}, r"start_from_text: expected token ids \(tokens,\), at least one"),
        ([[1, 2]], {}, {}, r"start_from_text: expected token ids .* got \(1, 2\)"),
        ([0.5], {}, {}, "start_from_text: expected token ids .* got .* torch.float32"),
        ([100], {}, {}, r"start_from_text: expected token ids below 100, got \[100\]"),
        ([5], {"prompt_length": 65}, {}, "expected prompt_length from 1 to 64, got 65"),
        ([5], {"prompt_length": 0}, {}, "expected prompt_length from 1 to 64, got 0"),
        ([5], {"parametrization": "mlp"}, {}, "start_from_text: expected parametrization"),
        ([5], {}, {"start_from": "tag"}, "start_from_text: the prompt has its values already"),
        ([5], {}, {"share_prompt_with": "tag"}, "start_from_text: the prompt has its values"),
    ],
)
def test_texts_that_a_prompt_cannot_start_from(model, text, change, given, message):
    with pytest.raises(ValueError, match=message):
        model.add_task("new", replace(TAG, **change), start_from_text=text, **given)
    assert "new" not in model.tasks

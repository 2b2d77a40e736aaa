"""Prompts that tasks share, and prompts that start from others."""

import copy
from dataclasses import replace

import pytest
import torch

from ptv2 import PromptModel
from tests.model.configs import CLASSIFY, TAG


def test_a_shared_prompt_has_the_sum_of_the_tasks_gradients(model, batch, tmp_path):
    model.add_task("other", replace(TAG, prompt_length=5), share_prompt_with="classify")
    tags = torch.randint(0, 2, (9,))
    tasks, labels = ["classify", "other", "classify", "other"], [2, tags, 0, tags.flip(0)]
    prompt = model.prompts["classify"].embedding

    def gradient(loss):
        (found,) = torch.autograd.grad(loss, prompt, retain_graph=True)
        return found

    losses = model(**batch, task=tasks, labels=labels).losses
    both = gradient(losses["classify"] + losses["other"])
    torch.testing.assert_close(both, gradient(losses["classify"]) + gradient(losses["other"]))
    rows = {name: x[[0, 2]] for name, x in batch.items()}
    alone = gradient(model(**rows, task="classify", labels=torch.tensor([2, 0])).loss)
    torch.testing.assert_close(gradient(losses["classify"]), alone)

    assert len({id(p) for p in model.prompts.parameters()}) == len(model.tasks) - 1
    twin = copy.deepcopy(model)
    assert twin.prompts["other"] is twin.prompts["classify"]
    for name in ("classify", "other"):
        model.save_task(name, tmp_path / name)
        twin.remove_task(name)
        twin.load_task(tmp_path / name)
        assert twin.tasks[name] == model.tasks[name]
        assert torch.equal(twin.key_value(name), model.key_value("classify"))


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"parametrization": "mlp", "network_size": 7},
        {"parametrization": "lstm", "network_size": 6},
        {"injection": "hidden-state", "layers": (0, 2)},
    ],
    ids=["direct", "mlp", "lstm", "hidden-state"],
)
def test_a_prompt_starts_from_another(tiny_backbone, tmp_path, form):
    model = PromptModel(tiny_backbone("bert"))
    model.add_task("first", replace(CLASSIFY, prompt_dropout=0.5, **form))
    model.save_task("first", tmp_path / "first")
    plain = replace(TAG, prompt_length=5, layers=form.get("layers"))
    model.add_task("plain", plain, start_from="first")
    model.add_task("saved", plain, start_from=tmp_path / "first")
    model.add_task("same", replace(CLASSIFY, **form), start_from=str(tmp_path / "first"))
    expected = model.key_value("first")
    for name in ("plain", "saved", "same"):
        assert torch.equal(model.key_value(name), expected)
        assert model.prompts[name] is not model.prompts["first"]
    with torch.no_grad():
        model.prompts["plain"].embedding.add_(1)
    assert torch.equal(model.key_value("first"), expected)


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        (
            {"layers": (0,)},
            {"start_from": "tag"},
            r"start_from: expected a prompt with layers \(0,",
        ),
        (
            {"parametrization": "mlp"},
            {"start_from": "tag"},
            "with parametrization mlp, got direct",
        ),
        ({}, {"start_from": "tag", "share_prompt_with": "tag"}, "start_from: a shared prompt has"),
        ({}, {"share_prompt_with": "none"}, "task: 'none' is unknown"),
        ({"init_std": 2.0}, {"share_prompt_with": "tag"}, "share_prompt_with: expected a prompt"),
    ],
)
def test_prompts_that_cannot_be_shared_or_started_from(model, change, given, message):
    with pytest.raises(ValueError, match=message):
        model.add_task("new", replace(TAG, **change), **given)
    assert "new" not in model.tasks

"""Versions of tasks: loaded from files, replaced, unloaded, kept while somebody reads them."""

import pytest
import torch

from ptv2 import PromptConfig, PromptModel, UnknownTaskError
from ptv2.serving import Bank, Engine, Served

CONFIG = PromptConfig("sequence-classification", ("a", "b", "c"), prompt_length=4)
ROW = [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]}]


@pytest.fixture
def model(tiny_backbone):
    return PromptModel(tiny_backbone("bert")).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"parametrization": "mlp", "gate": True},
        {"layers": (0, 2)},
        {"head_activation": "tanh"},
    ],
)
def test_a_saved_task_is_served_as_the_model_has_it(model, changes, tmp_path):
    model.add_task("mood", PromptConfig.from_dict(CONFIG.to_dict() | changes))
    if changes.get("gate"):
        model.prompts["mood"].gate.data.uniform_(0.5, 2)
    model.save_task("mood", tmp_path / "mood")
    bank = Bank(model)
    served = bank.load(tmp_path / "mood")
    assert (served.name, served.version) == ("mood", 1)
    assert served.sha256 == Served.of_task(model, "mood").sha256
    (logits,) = Engine(model).run([served], ROW)
    expected = model(torch.tensor([[5, 6, 7]]), task="mood").logits[0]
    torch.testing.assert_close(logits, expected.detach(), rtol=0, atol=1e-5)
    assert bank.load(tmp_path / "mood", "other").name == "other"


def test_versions_count_on_and_are_kept_for_their_readers(model):
    model.add_task("mood", CONFIG)
    bank = Bank(model)
    first = bank.publish(Served.of_task(model, "mood"))
    with bank.lease("mood") as held:
        assert held is first
        second = bank.publish(Served.of_task(model, "mood"))
        assert (second.version, bank.readers(first)) == (2, 1)
        assert bank.retired() == []
        with bank.lease("mood") as current:
            assert current is second
        bank.unload("mood")
        gone = "task: 'mood' is not served; these are: none"
        with pytest.raises(UnknownTaskError, match=gone), bank.lease("mood"):
            pass
    assert set(bank.retired()) == {first, second}
    assert bank.retired() == []
    assert bank.publish(Served.of_task(model, "mood")).version == 3
    with pytest.raises(UnknownTaskError, match="task: 'x' is not served; these are: mood"):
        bank.unload("x")


def test_a_request_that_fails_is_no_reader_any_more(model):
    model.add_task("mood", CONFIG)
    bank = Bank(model)
    task = bank.publish(Served.of_task(model, "mood"))
    with pytest.raises(RuntimeError, match="request"), bank.lease("mood"):
        raise RuntimeError("request")
    assert bank.readers(task) == 0
    assert bank.tasks() == {"mood": task}


def test_what_cannot_be_served_leaves_what_is(model, tiny_backbone, tmp_path):
    model.add_task("mood", CONFIG)
    model.save_task("mood", tmp_path / "mood")
    bank = Bank(model)
    task = bank.load(tmp_path / "mood")
    data = (tmp_path / "mood" / "prompt.safetensors").read_bytes()
    (tmp_path / "mood" / "prompt.safetensors").write_bytes(data[:-1] + b"x")
    with pytest.raises(ValueError, match="corrupt"):
        bank.load(tmp_path / "mood")
    other = PromptModel(tiny_backbone("roberta"))
    other.add_task("mood", CONFIG)
    other.save_task("mood", tmp_path / "other")
    with pytest.raises(ValueError, match="was trained on the backbone"):
        bank.load(tmp_path / "other", "mood")
    model.add_task("shallow", PromptConfig("feature-extraction", depth="input"))
    model.save_task("shallow", tmp_path / "shallow")
    with pytest.raises(ValueError, match="task: expected depth 'layers' for 'shallow'"):
        bank.load(tmp_path / "shallow")
    with pytest.raises(ValueError, match="name: expected"):
        bank.load(tmp_path / "shallow", "../x")
    with pytest.raises(FileNotFoundError):
        bank.load(tmp_path / "nowhere")
    assert bank.tasks() == {"mood": task}

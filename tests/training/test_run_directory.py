"""The directory of a run: stopping and going on, diverging, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from ptv2 import UnknownTaskError
from ptv2.tasks import make_task
from ptv2.train_config import TrainConfig
from ptv2.trainer import Diverged, PromptTrainer
from ptv2.training import _arguments, evaluate, train
from tests.training.runs import CONFIG, DATA, checkpoints, new, stop_at


@pytest.mark.parametrize("step", [3, 6, 14], ids=["no checkpoint yet", "epoch end", "mid-epoch"])
def test_resuming_is_bitwise_the_same_as_not_stopping(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    predictor, task = new(encoder)
    whole = train(predictor.model, "t", task, DATA, tmp_path / "whole", CONFIG)

    stopped, task = new(encoder)
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            train(stopped.model, "t", task, DATA, tmp_path / "run", CONFIG)
    assert not (tmp_path / "run" / "prompt.safetensors").exists()

    resumed, task = new(encoder)
    metrics = train(resumed.model, "t", task, DATA, tmp_path / "run", CONFIG, resume=True)
    ends = [checkpoints(tmp_path / run)[-1] / "model.safetensors" for run in ("whole", "run")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    assert [epoch["accuracy"] for epoch in metrics["history"]] == [
        epoch["accuracy"] for epoch in whole["history"]
    ]
    expected, got = (p.model.state_dict() for p in (predictor, resumed))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_run_is_resumed_only_with_its_settings(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, task = new(encoder)
    short = TrainConfig(epochs=1, batch_size=24)
    with pytest.raises(FileNotFoundError, match="resume: there is no run in"):
        train(predictor.model, "t", task, DATA, tmp_path / "run", short, resume=True)
    assert not (tmp_path / "run").exists()
    train(predictor.model, "t", task, DATA, tmp_path / "run", short)
    other = TrainConfig(epochs=1, batch_size=12)
    message = r"resume: the run was started with train\.batch_size = 24, got 12"
    with pytest.raises(ValueError, match=message):
        train(predictor.model, "t", task, DATA, tmp_path / "run", other, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr("ptv2.run_directory.process_count", lambda: 2)
        with pytest.raises(ValueError, match=r"started with processes = 1, got 2"):
            train(predictor.model, "t", task, DATA, tmp_path / "run", short, resume=True)
    same = DATA[0].add_column("_source", [f"line {i} of moved.jsonl" for i in range(48)])
    train(predictor.model, "t", task, (same, DATA[1]), tmp_path / "run", short, resume=True)
    turned = DATA[0].select(range(47, -1, -1))
    with pytest.raises(
        ValueError, match=r"resume: .* with data_sha256\.train = \w{64}, got \w{64}"
    ):
        train(predictor.model, "t", task, (turned, DATA[1]), tmp_path / "run", short, resume=True)


def test_a_run_says_what_its_prompt_started_from(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    model, config = predictor.model, replace(CONFIG, epochs=1, batch_size=24)
    model.save_task("t", tmp_path / "other")
    saved = tmp_path / "other"
    starts = {
        "random": ({}, {"start_from": None}),
        "text": ({"start_from_text": [5, 6]}, {"start_from_text": [5, 6, 5, 6]}),
        "saved": ({"start_from": saved / ".." / "other"}, {"start_from": str(saved)}),
        "own": ({"start_from": "t"}, {"start_from": "t"}),
    }
    for name, (start, expected) in starts.items():
        model.add_task(name, model.tasks["t"], **start)
        train(model, name, task, DATA, tmp_path / name, config)
        run = json.loads((tmp_path / name / "run_config.json").read_text())
        assert expected.items() <= run.items()
    model.remove_task("text")
    model.add_task("text", model.tasks["t"])
    message = r"resume: the run was started with start_from_text = \[5, 6, 5, 6\], got None"
    with pytest.raises(ValueError, match=message):
        train(model, "text", task, DATA, tmp_path / "text", config, resume=True)


def test_nothing_is_overwritten_unasked(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    (tmp_path / "notes.txt").write_text("mine")
    short = TrainConfig(epochs=1, batch_size=24)
    with pytest.raises(FileExistsError, match=r"output: .* is not empty; choose another, or over"):
        train(predictor.model, "t", task, DATA, tmp_path, short)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    first = train(predictor.model, "t", task, DATA, tmp_path, short, overwrite=True)
    with pytest.raises(FileExistsError, match="resume it or overwrite it"):
        train(predictor.model, "t", task, DATA, tmp_path, short)
    with pytest.raises(ValueError, match="overwrite: expected either resume or overwrite, got b"):
        train(predictor.model, "t", task, DATA, tmp_path, short, resume=True, overwrite=True)
    second = train(predictor.model, "t", task, DATA, tmp_path, short, overwrite=True)
    assert second["history"] != first["history"]  # the prompt went on from where it was
    assert (tmp_path / "notes.txt").read_text() == "mine"


class Killed(BaseException):
    """Ends a training as a kill does."""


def test_a_kill_while_overwriting_leaves_a_directory_to_go_on_with(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, task = new(encoder)
    short = TrainConfig(epochs=1, batch_size=24)
    train(predictor.model, "t", task, DATA, tmp_path, short)
    rename = Path.rename

    def killed_before(path: Path, target: Path) -> Path:
        raise Killed

    def killed_between(path: Path, target: Path) -> Path:
        if target.name == "checkpoints":
            raise Killed
        return rename(path, target)

    def killed_within(path: Path, **_: Any) -> None:
        if path.is_dir():
            (path / "run_config.json").unlink(missing_ok=True)
            raise Killed

    for place, kill in (
        ("pathlib.Path.rename", killed_before),
        ("pathlib.Path.rename", killed_between),
        ("shutil.rmtree", killed_within),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, kill)
            with pytest.raises(Killed):
                train(predictor.model, "t", task, DATA, tmp_path, short, overwrite=True)
        assert (tmp_path / "prompt.safetensors").is_file()
        train(predictor.model, "t", task, DATA, tmp_path, short, overwrite=True)
        assert not list(tmp_path.glob(".*"))


def test_what_cannot_be_trained_leaves_no_lock(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    short = TrainConfig(epochs=1, batch_size=24)
    predictor.model.backbone.supports_gradient_checkpointing = False
    refused = replace(short, checkpointing="layers")
    with pytest.raises(ValueError, match="does not support"):
        train(predictor.model, "t", task, DATA, tmp_path / "run", refused)
    assert not (tmp_path / "run").exists()
    train(predictor.model, "t", task, DATA, tmp_path / "run", short)


def test_checkpointing_is_of_one_run(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    layers = predictor.model.backbone.encoder.layer
    for checkpointing in ("layers", "none", "selective", "none"):
        config = TrainConfig(epochs=1, batch_size=24, checkpointing=checkpointing)
        train(predictor.model, "t", task, DATA, tmp_path / "run", config, overwrite=True)
        assert [x.gradient_checkpointing for x in layers] == [checkpointing != "none"] * 2


def test_several_gpus_are_not_taken_by_one_process(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, task = new(encoder)

    def with_two_gpus(self: TrainingArguments) -> torch.device:
        self._n_gpu = 2
        return torch.device("cpu")

    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(with_two_gpus))
    arguments = _arguments(task, tmp_path, TrainConfig(batch_size=8))
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 8)


def diverge_after(epochs: int, patch: pytest.MonkeyPatch) -> None:
    """Make the loss on the validation data NaN once so many epochs are done."""
    whole = PromptTrainer._forward_all

    def broken(self: PromptTrainer, features: Any) -> tuple[float, Any]:
        loss, logits = whole(self, features)
        done = self.state.epoch is not None and self.state.epoch > epochs
        return (float("nan") if done else loss), logits

    patch.setattr(PromptTrainer, "_forward_all", broken)


def test_the_epochs_before_a_divergence_count(
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    predictor, task = new(encoder)
    diverge_after(1, monkeypatch)
    metrics = train(predictor.model, "t", task, DATA, tmp_path / "run", CONFIG)
    assert metrics["diverged_at_step"] == 12  # an epoch has 6 steps
    assert [epoch["epoch"] for epoch in metrics["history"]] == [1]
    assert metrics["best"] == metrics["history"][0]
    message = (
        "the loss on the validation data is nan at step 12, expected a rate smaller than 0.03"
    )
    assert message in caplog.text
    assert "the epochs before it count" in caplog.text
    scores = evaluate(predictor, "t", task, DATA[1])
    assert scores["accuracy"] == metrics["best"]["accuracy"]


def test_a_run_that_kept_nothing_is_replaced(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    with pytest.raises(Diverged, match=r"learning_rate: the loss .* is nan at step 6, expected"):
        train(predictor.model, "t", task, DATA, tmp_path, replace(CONFIG, learning_rate=1e38))
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"run_config.json"}
    predictor, task = new(encoder)
    metrics = train(predictor.model, "t", task, DATA, tmp_path, replace(CONFIG, epochs=1))
    assert metrics["diverged_at_step"] is None


def test_bad_data_writes_nothing(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    for part, data in (("training", (DATA[0].select([]), DATA[1])), ("validation", (DATA[0], []))):
        with pytest.raises(ValueError, match=f"data: expected {part} examples, got none"):
            train(predictor.model, "t", task, data, tmp_path / "run", CONFIG)
    unlabelled = DATA[1].remove_columns("label")
    with pytest.raises(ValueError, match="label_column: expected one of the data's columns"):
        train(predictor.model, "t", task, (DATA[0], unlabelled), tmp_path / "run", CONFIG)
    other = make_task(task.kind, task.tokenizer, labels=("a", "b"))
    with pytest.raises(ValueError, match=r"labels: expected \('bad', 'good'\), got \('a', 'b'\)"):
        train(predictor.model, "t", other, DATA, tmp_path / "run", CONFIG)
    tags = make_task("token-classification", task.tokenizer, labels=task.labels)
    with pytest.raises(ValueError, match="task: expected sequence-classification, got token-cla"):
        train(predictor.model, "t", tags, DATA, tmp_path / "run", CONFIG)
    with pytest.raises(UnknownTaskError, match="task: 'u' is unknown; the model's tasks are: t"):
        train(predictor.model, "u", task, DATA, tmp_path / "run", CONFIG)
    several = replace(task, multi_label=True)
    with pytest.raises(ValueError, match="multi_label: expected False, got True"):
        train(predictor.model, "t", several, DATA, tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()

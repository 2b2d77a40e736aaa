"""Many prompts at once: each learns as if alone, also after a stop."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import set_seed

from ptv2.schedules import SCHEDULES
from ptv2.sweep import Run, sweep
from ptv2.sweep.learner import Learner
from ptv2.training import train
from tests.sweep.runs import SMALL, metrics_of, new, stop_at, values

DROPOUT = {"head_dropout": 0.1, "prompt_dropout": 0.2}


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-5)


def train_alone(encoder: Path, run: Run, output: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    model = new(encoder)
    set_seed(run.train.seed)
    model.add_task(run.name, run.prompt)
    metrics = train(model, run.name, run.task, run.data, output, run.train)
    return metrics, values(model, run.name)


def test_each_run_learns_what_it_would_alone(
    encoder: Path, tmp_path: Path, make: Callable[..., Run]
) -> None:
    runs = [
        make("plain"),
        make("long", prompt_length=9, seed=3, scheduler="cosine", batch_size=5, epochs=3),
        make("pair", "pair", SMALL, injection="hidden-state", warmup_ratio=0.3, layers=(1,)),
        make("tags", "tags", parametrization="mlp", learning_rate=1e-3, weight_decay=0.1),
        make("answer", "answer", SMALL, head_learning_rate=1e-3, max_grad_norm=0.1),
        make("choose", "choose", token_budget=120, batch_size=32, packing=True, seed=1),
        make("head", prompt_length=0, pooling="first"),
    ]
    model = new(encoder)
    table = sweep(model, runs, tmp_path / "sweep")
    rows = {row["name"]: row for row in table["runs"]}
    for run in runs:
        alone, expected = train_alone(encoder, run, tmp_path / run.name)
        got = values(model, run.name)
        if run.task.kind in ("question-answering", "multiple-choice"):
            # the softmax runs over tokens or choices, so this bias has no gradient but rounding
            del got["head.linear.bias"], expected["head.linear.bias"]
        assert_close(got, expected)
        metrics = metrics_of(tmp_path / "sweep" / run.name)
        assert metrics["best"]["epoch"] == alone["best"]["epoch"] == rows[run.name]["epoch"]
        assert metrics["trained_parameters"] == alone["trained_parameters"]
        assert metrics["majority"] == alone["majority"]
        for epoch, other in zip(metrics["history"], alone["history"], strict=True):
            assert epoch == pytest.approx(other, rel=0, abs=1e-5)
        config = json.loads((tmp_path / "sweep" / run.name / "run_config.json").read_text())
        of_alone = json.loads((tmp_path / run.name / "run_config.json").read_text())
        assert of_alone.items() <= config.items()
        fresh = new(encoder)
        fresh.load_task(tmp_path / "sweep" / run.name)
        assert torch.equal(fresh.key_value(run.name), model.key_value(run.name))


def test_every_schedule_is_the_same_alone(
    encoder: Path, tmp_path: Path, make: Callable[..., Run]
) -> None:
    runs = [make(name, scheduler=name) for name in SCHEDULES]
    model = new(encoder)
    sweep(model, runs, tmp_path / "sweep")
    for run in runs:
        _, expected = train_alone(encoder, run, tmp_path / run.name)
        assert_close(values(model, run.name), expected)


def break_run(name: str, step: int, patch: pytest.MonkeyPatch) -> None:
    """Put a NaN into a run's prompt before a step."""
    next_batch = Learner.next_batch

    def broken(self: Learner) -> Any:
        if self.step == step and name in self.batches:
            with torch.no_grad():
                self.parts["prompt"].embedding.view(-1)[0] = math.nan
        return next_batch(self)

    patch.setattr(Learner, "next_batch", broken)


@pytest.mark.parametrize("step", [2, 7], ids=["before its best epoch", "after it"])
def test_a_run_that_diverges_does_no_harm(
    encoder: Path,
    tmp_path: Path,
    make: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    runs = [make("a", seed=1), make("bad", prompt_length=7), make("tags", "tags", epochs=3)]
    expected = new(encoder)
    sweep(expected, [runs[0], runs[2]], tmp_path / "without")

    break_run("bad", step, monkeypatch)
    model = new(encoder)
    table = sweep(model, runs, tmp_path / "with")
    for name in ("a", "tags"):
        assert_close(values(model, name), values(expected, name))
    rows = {row["name"]: row for row in table["runs"]}
    assert {name: row["diverged_at_step"] for name, row in rows.items()} == {
        "a": None,
        "bad": step + 1,
        "tags": None,
    }
    assert json.loads((tmp_path / "with" / "sweep.json").read_text()) == table
    kept = step > 5  # an epoch has 5 steps
    assert (rows["bad"]["score"] is not None) == kept
    assert ("bad" in model.tasks) == kept
    assert (tmp_path / "with" / "bad" / "prompt.safetensors").exists() == kept
    assert not kept or torch.isfinite(model.key_value("bad")).all()


def test_a_rate_beyond_all_bounds_diverges(
    encoder: Path, tmp_path: Path, make: Callable[..., Run]
) -> None:
    model = new(encoder)
    table = sweep(model, [make("wild", learning_rate=1e38)], tmp_path / "sweep")
    assert table["best"] == []
    assert table["runs"][0]["diverged_at_step"] is not None
    assert model.tasks == {}
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"checkpoints", "sweep.json"}


@pytest.mark.parametrize("step", [2, 8, 12], ids=["no checkpoint yet", "mid-epoch", "one is done"])
def test_resuming_is_bitwise_the_same_as_not_stopping(
    encoder: Path,
    tmp_path: Path,
    make: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    noisy = {"backbone_dropout": True, "save_steps": 7, **DROPOUT}
    runs = [
        make("a", **noisy),
        make("tags", "tags", SMALL, epochs=5, **noisy),
        make("b", shared="both", seed=4, **noisy),
        make("pair", "pair", SMALL, shared="both", seed=4, **noisy),
    ]
    whole = new(encoder)
    expected = sweep(whole, runs, tmp_path / "whole")

    stopped = new(encoder)
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            sweep(stopped, runs, tmp_path / "run")
    assert not stopped.tasks
    assert not (tmp_path / "run" / "sweep.json").exists()

    table = sweep(stopped, runs, tmp_path / "run", resume=True)
    assert table["runs"] == expected["runs"]
    assert table["best"] == expected["best"]
    for run in runs:
        got, wanted = values(stopped, run.name), values(whole, run.name)
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_runs_that_share_a_prompt(encoder: Path, tmp_path: Path, make: Callable[..., Run]) -> None:
    runs = [
        make("mood", shared="both", epochs=3),
        make("tags", "tags", SMALL, shared="both", epochs=3, batch_size=3),
    ]
    model = new(encoder)
    table = sweep(model, runs, tmp_path / "shared")
    assert model.prompts["mood"] is model.prompts["tags"]
    first, second = table["runs"]
    assert len(first["history"]) == len(second["history"]) == 3  # of the longer data
    assert first["epoch"] == second["epoch"]
    scores = [
        (a["accuracy"] + b["f1"]) / 2
        for a, b in zip(first["history"], second["history"], strict=True)
    ]
    assert first["epoch"] == scores.index(max(scores)) + 1
    fresh = new(encoder)
    for name in ("mood", "tags"):
        fresh.load_task(tmp_path / "shared" / name)
        assert torch.equal(fresh.key_value(name), model.key_value("mood"))

    special = make("special", start_from=tmp_path / "shared" / "mood", learning_rate=1e-12)
    sweep(model, [special], tmp_path / "special")
    assert model.prompts["special"] is not model.prompts["mood"]
    torch.testing.assert_close(model.key_value("special"), model.key_value("mood"))

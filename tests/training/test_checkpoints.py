"""A run survives a kill at any moment, a move, a full disk, and a second run beside it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import Trainer

from ptv2 import checkpoints
from ptv2.run_directory import open_run
from ptv2.train_config import TrainConfig
from ptv2.training import train
from tests.training.runs import CONFIG, DATA, new, stop_at
from tests.training.runs import checkpoints as checkpoints_of

ROOT = Path(__file__).parents[2]


def stop(
    encoder: Path,
    output: Path,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
    config: TrainConfig = CONFIG,
) -> None:
    """Train until a step."""
    predictor, task = new(encoder)
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            train(predictor.model, "t", task, DATA, output, config)


def assert_same_prompt(folder: Path, *runs: str) -> None:
    first, second = ((folder / run / "prompt.safetensors").read_bytes() for run in runs)
    assert first == second


def test_the_end_is_the_same_after_a_kill_at_any_of_fifty_moments() -> None:
    path = os.pathsep.join([str(ROOT / "kernels"), str(ROOT)])
    result = subprocess.run(
        [sys.executable, "-m", "tests.killed_runs"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["killed"] >= 50
    assert any("and a part" in state for state in found["states"])  # in the midst of a save
    assert len(found["states"]) > 4


def test_resuming_within_an_epoch_is_bitwise_the_same(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, save_steps=2)
    predictor, task = new(encoder)
    whole = train(predictor.model, "t", task, DATA, tmp_path / "whole", config)
    stop(encoder, tmp_path / "run", 9, monkeypatch, config)
    assert [p.name for p in checkpoints_of(tmp_path / "run")] == ["checkpoint-6", "checkpoint-8"]
    resumed, task = new(encoder)
    metrics = train(resumed.model, "t", task, DATA, tmp_path / "run", config, resume=True)
    assert metrics["history"] == whole["history"]
    assert_same_prompt(tmp_path, "whole", "run")


def test_a_run_may_be_moved_and_then_resumed(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the best epoch was before the move."""
    predictor, task = new(encoder)
    whole = train(predictor.model, "t", task, DATA, tmp_path / "whole", CONFIG)
    stop(encoder, tmp_path / "here", 14, monkeypatch)
    shutil.move(tmp_path / "here", tmp_path / "there")
    resumed, task = new(encoder)
    metrics = train(resumed.model, "t", task, DATA, tmp_path / "there", CONFIG, resume=True)
    assert metrics["best"] == whole["best"]
    assert_same_prompt(tmp_path, "whole", "there")


def test_a_finished_run_may_be_resumed(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    first = train(predictor.model, "t", task, DATA, tmp_path / "run", CONFIG)
    (tmp_path / "run" / "metrics.json").unlink()
    again, task = new(encoder)
    second = train(again.model, "t", task, DATA, tmp_path / "run", CONFIG, resume=True)
    assert (second["history"], second["steps"]) == (first["history"], first["steps"])
    assert (tmp_path / "run" / "metrics.json").exists()


def test_a_failed_save_leaves_the_last_checkpoint(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(staged: Path, final: Path) -> None:
        if final.name == "checkpoint-12":
            raise OSError(28, "No space left on device")
        publish(staged, final)

    publish = checkpoints.publish
    predictor, task = new(encoder)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "publish", full)
        with pytest.raises(OSError, match="No space left on device"):
            train(predictor.model, "t", task, DATA, tmp_path / "run", CONFIG)
    assert [path.name for path in checkpoints_of(tmp_path / "run")] == ["checkpoint-6"]
    again, task = new(encoder)
    train(again.model, "t", task, DATA, tmp_path / "run", CONFIG, resume=True)
    whole, task = new(encoder)
    train(whole.model, "t", task, DATA, tmp_path / "whole", CONFIG)
    assert_same_prompt(tmp_path, "whole", "run")


def test_two_runs_in_one_directory(encoder: Path, tmp_path: Path) -> None:
    lock = open_run(tmp_path / "run", {"train": {}}, resume=False, overwrite=False)
    predictor, task = new(encoder)
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(FileExistsError, match="output: another run is writing in"):
            train(predictor.model, "t", task, DATA, tmp_path / "run", CONFIG, **options)
    os.close(lock)
    train(predictor.model, "t", task, DATA, tmp_path / "run", CONFIG, overwrite=True)


def test_publishing_and_discarding(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None
    for step in (2, 10, 9):
        staged = checkpoints.clear(tmp_path)
        (staged / "checkpoint").mkdir()
        (staged / "checkpoint" / "file").write_text(str(step))
        checkpoints.publish(staged / "checkpoint", checkpoints.place(tmp_path, step))
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-10"
    with pytest.raises(FileExistsError, match="checkpoint-9 exists already"):
        checkpoints.publish(tmp_path / "checkpoint-2", checkpoints.place(tmp_path, 9))
    checkpoints.discard_others(tmp_path, {2, 9})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".staged", "checkpoint-2", "checkpoint-9",
    ]  # fmt: skip


def test_sharding_is_refused(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sharded(self: Trainer) -> None:
        create(self)
        self.is_fsdp_enabled = True  # as `accelerate launch --use_fsdp` sets it

    create = Trainer.create_accelerator_and_postprocess
    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", sharded)
    predictor, task = new(encoder)
    with pytest.raises(NotImplementedError, match="accelerate: FSDP and DeepSpeed would shard"):
        train(predictor.model, "t", task, DATA, tmp_path / "run", CONFIG)


def test_a_copy_under_another_name_is_no_checkpoint(tmp_path: Path) -> None:
    for name in ("checkpoint-8", "checkpoint-16", "checkpoint-best", "checkpoint-8-copy"):
        (tmp_path / name).mkdir()
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-16"
    checkpoints.discard_others(tmp_path, [16])
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"checkpoint-16", "checkpoint-best", "checkpoint-8-copy"}

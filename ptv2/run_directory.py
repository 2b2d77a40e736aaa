"""The directory of a training run: what it says, one writer, and nothing overwritten unasked."""

import fcntl
import json
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from .assets import CARD, is_asset
from .model import PromptModel
from .processes import process_count
from .storage import write_json
from .tasks import Task
from .train_config import TrainConfig
from .version import __version__

CHECKPOINTS, RUN_CONFIG, METRICS = "checkpoints", "run_config.json", "metrics.json"
_STAGED, _DISCARDED = f".{CHECKPOINTS}", f".{CHECKPOINTS}-discarded"


def describe_run(
    model: PromptModel,
    name: str,
    task: Task,
    config: TrainConfig,
    data: tuple[Dataset, Dataset],
    sha256: Sequence[str],
) -> dict[str, Any]:
    """What `run_config.json` holds: all that a run depends on, before it starts.

    Args:
        name: of the task in the model.
        data: training and validation examples.
        sha256: of each.
    """
    parts = ("train", "validation")
    return {
        "name": name,
        "backbone": model.identity.describe(),
        "task": task.settings(),
        "prompt": model.tasks[name].to_dict(),
        "start_from": None,
        **model.origin(name),
        "train": asdict(config),
        "examples": dict(zip(parts, map(len, data), strict=True)),
        "data_sha256": dict(zip(parts, sha256, strict=True)),
        "processes": process_count(),
    }


def surroundings(
    model: PromptModel, name: str, task: Task, references: Sequence[Any]
) -> dict[str, Any]:
    """What `metrics.json` holds beside the scores, to compare them with.

    Args:
        name: of the task in the model.
        references: of the validation examples.
    """
    module = model.for_task(name)
    return {
        "majority": task.majority(references),
        "trained_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "environment": environment(),
    }


def save_run(
    model: PromptModel, name: str, directory: Path, run: dict[str, Any], metrics: dict[str, Any]
) -> None:
    """Save a trained task with its settings and metrics."""
    model.save_task(name, directory)
    write_json(directory / RUN_CONFIG, run)
    write_json(directory / METRICS, metrics)


def open_run(output_dir: Path, run: dict[str, Any], resume: bool, overwrite: bool) -> int:
    """Make the run's directory, or check that it may be continued or replaced.

    Returns:
        An open file that holds a lock on the directory, so that no other run writes there.
    """
    started = output_dir / CHECKPOINTS / RUN_CONFIG
    if resume and not started.is_file():
        raise FileNotFoundError(f"resume: there is no run in {output_dir}")
    if output_dir.exists() and not output_dir.is_dir():
        raise FileExistsError(f"output: {output_dir} is a file, expected a directory")
    output_dir.mkdir(parents=True, exist_ok=True)
    lock = os.open(output_dir, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if resume:
            _check_same_run(json.loads(started.read_text()), json.loads(json.dumps(run)))
        else:
            _start_run(output_dir, started, run, overwrite)
    except BlockingIOError:
        os.close(lock)
        raise FileExistsError(f"output: another run is writing in {output_dir}") from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _start_run(output_dir: Path, started: Path, run: dict[str, Any], overwrite: bool) -> None:
    if any(output_dir.iterdir()):
        if not overwrite and not _kept_nothing(output_dir):
            hint = "resume it or overwrite it" if started.is_file() else "overwrite it"
            raise FileExistsError(f"output: {output_dir} is not empty; choose another, or {hint}")
        for name, ours in ((CHECKPOINTS, started.is_file()), (CARD, is_asset(output_dir))):
            if (output_dir / name).exists() and not ours:
                raise FileExistsError(f"output: {output_dir} has a {name} that is not of a run")
    staged, discarded = output_dir / _STAGED, output_dir / _DISCARDED
    for left_over in (staged, discarded):  # of a run that was killed right here
        shutil.rmtree(left_over, ignore_errors=True)
    staged.mkdir()
    write_json(staged / RUN_CONFIG, run)
    if started.is_file():
        (output_dir / CHECKPOINTS).rename(discarded)
    staged.rename(output_dir / CHECKPOINTS)
    shutil.rmtree(discarded, ignore_errors=True)


def _kept_nothing(output_dir: Path) -> bool:
    """Whether there is nothing but a run that ended before its first checkpoint."""
    folders = [output_dir / CHECKPOINTS, output_dir / _STAGED]
    return all(
        path in folders
        and path.is_dir()
        and {file.name for file in path.iterdir()} <= {RUN_CONFIG}
        for path in output_dir.iterdir()
    )


def _check_same_run(before: dict[str, Any], now: dict[str, Any], path: str = "") -> None:
    for key in before | now:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            _check_same_run(old, new, f"{path}{key}.")
        elif old != new:
            raise ValueError(f"resume: the run was started with {path}{key} = {old}, got {new}")


def task_settings(directory: Path) -> dict[str, Any]:
    """How the run that left a prompt there read its data; nothing if no run did.

    Raises:
        ValueError: the run's file is not one of a run.
    """
    path = directory / RUN_CONFIG
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["task"])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: expected the settings of a run, got {error!r}") from None


def environment() -> dict[str, Any]:
    """What a result depends on beside its settings."""
    return {
        "ptv2": __version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "datasets")},
    }

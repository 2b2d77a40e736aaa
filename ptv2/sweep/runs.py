"""What a sweep trains: its runs, grids of settings, and what can share a forward."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from os import PathLike
from typing import Any

from datasets import Dataset

from ..config import PromptConfig, check_task_name
from ..model import PromptModel
from ..run_directory import CHECKPOINTS
from ..tasks import TASKS, Task
from ..train_config import TrainConfig

BEST = "best"
_RESERVED = (BEST, CHECKPOINTS)
_OF_DATA = {"task", "labels", *(name for task in TASKS.values() for name in task.prompt_fields)}
PROMPT_SETTINGS = {f.name for f in fields(PromptConfig)} - _OF_DATA
TRAIN_SETTINGS = {f.name for f in fields(TrainConfig)}
_ABBREVIATIONS = {
    "learning_rate": "lr",
    "head_learning_rate": "head-lr",
    "prompt_length": "len",
    "batch_size": "batch",
    "warmup_ratio": "warmup",
    "weight_decay": "decay",
}


@dataclass(frozen=True)
class Run:
    """One prompt of a sweep.

    Args:
        name: of the task in the model, and of its folder in the sweep's.
        task: how the data is read; its labels are the prompt's.
        data: training and validation examples. Runs that hold the same objects share features.
        prompt: the prompt and its head.
        train: how it is trained.
        shared: runs that name the same group train one prompt together, with a head each. Every
            step has a batch of each of them, and the prompt's gradient is the sum of theirs. An
            epoch is a pass over the longest of their data; shorter data starts again. The best
            epoch is the one with the best mean score.
        start_from: the directory of a saved prompt, whose values the prompt starts with.
    """

    name: str
    task: Task
    data: tuple[Dataset, Dataset]
    prompt: PromptConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    shared: str | None = None
    start_from: str | PathLike[str] | None = None


def grid(
    prompt: PromptConfig, train: TrainConfig, **axes: Sequence[Any]
) -> dict[str, tuple[PromptConfig, TrainConfig]]:
    """Every combination of some settings, by names such as "lr2e-2-len32-seed0".

    Args:
        prompt, train: the settings that all have.
        axes: the values of a setting of either, as `learning_rate=(1e-2, 2e-2)`.

    Raises:
        ValueError: an axis is no setting, or has no values, one twice or one out of its range.
    """
    known = PROMPT_SETTINGS | TRAIN_SETTINGS
    if not axes:
        raise ValueError("axes: expected at least one setting with its values, got none")
    for name, values in axes.items():
        if name not in known:
            raise ValueError(f"axes: expected some of {', '.join(sorted(known))}, got {name!r}")
        if isinstance(values, str) or not values or any(values.count(v) > 1 for v in values):
            raise ValueError(f"{name}: expected a list of distinct values, got {values!r}")
    found: dict[str, tuple[PromptConfig, TrainConfig]] = {}
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        own = {key: value for key, value in chosen.items() if key in PROMPT_SETTINGS}
        rest = {key: value for key, value in chosen.items() if key in TRAIN_SETTINGS}
        configs = replace(prompt, **own), replace(train, **rest)
        name = "-".join(_setting_name(*setting) for setting in chosen.items())
        if name in found:
            raise ValueError(f"axes: expected values that differ, got {name!r} twice")
        found[name] = configs
    return found


def _setting_name(name: str, value: Any) -> str:
    short = _ABBREVIATIONS.get(name, name.replace("_", "-"))
    if isinstance(value, float):
        _, digits, exponent = Decimal(str(value)).normalize().as_tuple()
        assert isinstance(exponent, int)
        number = "".join(map(str, digits))
        return short + (f"{number}e{exponent}" if exponent < 0 else number + "0" * exponent)
    if type(value) is int:
        return f"{short}{value}"
    text = "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return f"{short}-{text.lower()}"


def groups_of(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs that share a prompt; a run without a group is alone."""
    groups: dict[tuple[bool, str], list[Run]] = {}
    for run in runs:
        alone = run.shared is None
        groups.setdefault((alone, run.name if run.shared is None else run.shared), []).append(run)
    return list(groups.values())


def check_runs(model: PromptModel, runs: Sequence[Run]) -> None:
    """Raise a ValueError unless the runs can train together, each under its name."""
    if not runs:
        raise ValueError("runs: expected at least one, got none")
    names = [run.name for run in runs]
    for run in runs:
        check_task_name(run.name)
        if run.name in _RESERVED or run.name in model.tasks or names.count(run.name) > 1:
            raise ValueError(
                f"name: expected a name of its own for every run, other than {BEST}, "
                f"{CHECKPOINTS} and the model's tasks, got {run.name!r}"
            )
        _check_run(run)
    for setting in ("precision", "backbone_dropout", "checkpointing", "save_steps"):
        _require_one(setting, {run.name: getattr(run.train, setting) for run in runs})
    for group in groups_of(runs):
        for f in fields(TrainConfig):
            if f.name != "batch_size":
                _require_one(f.name, {run.name: getattr(run.train, f.name) for run in group})
        _require_one("start_from", {run.name: run.start_from for run in group})


def _check_run(run: Run) -> None:
    if (run.prompt.task, run.prompt.labels) != (run.task.kind, run.task.labels):
        raise ValueError(
            f"prompt: expected {run.task.kind} with the labels {run.task.labels} for "
            f"{run.name!r}, got {run.prompt.task} with {run.prompt.labels}"
        )
    for name in run.task.prompt_fields:
        expected, got = getattr(run.task, name), getattr(run.prompt, name)
        if got != expected:
            raise ValueError(f"prompt: expected {name} {expected} for {run.name!r}, got {got}")
    if run.prompt.task == "image-classification":
        raise ValueError(f"task: a sweep packs texts, expected a task on texts for {run.name!r}")
    if run.prompt.depth == "input":
        raise ValueError(f"depth: a batch of a sweep is mixed, expected 'layers' for {run.name!r}")
    if run.train.precision == "fp16":
        raise ValueError("precision: a sweep scales no losses, expected fp32 or bf16, got fp16")
    if run.train.compile:
        raise ValueError("compile: a sweep's forward is not compiled, expected False, got True")
    for part, data in zip(("training", "validation"), run.data, strict=True):
        if not len(data):
            raise ValueError(f"data: expected {part} examples for {run.name!r}, got none")


def _require_one(setting: str, values: Mapping[str, Any]) -> None:
    (first, expected), *others = values.items()
    for name, value in others:
        if value != expected:
            raise ValueError(
                f"{setting}: expected one value for runs that train together, got {expected!r} "
                f"for {first!r} and {value!r} for {name!r}"
            )

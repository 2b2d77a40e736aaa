"""Runs from a plan: a table of settings for each data set, in which a list makes a grid."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..config import PromptConfig
from ..heads import POOLED
from ..predictor import Predictor
from ..settings import UNREAD, reads, require_room
from ..tasks import TASKS, Task, load_data, make_task
from ..tasks.tokens import shortest
from ..train_config import TrainConfig
from .runs import PROMPT_SETTINGS, TRAIN_SETTINGS, Run, grid

Load = Callable[[str, str | None, str], Dataset]

_REQUIRED = ("task", "train", "validation")
_OF_RUN = (*_REQUIRED, "train_split", "validation_split", "shared", "start_from")


def read_plan(path: Path) -> dict[str, dict[str, Any]]:
    """The tables of a TOML file, by their names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not TOML, or something in it is no table.
    """
    try:
        plan = tomllib.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"plan: {path} is not TOML: {error}") from None
    for name, entry in plan.items():
        if not isinstance(entry, dict):
            raise ValueError(f"plan: expected tables such as [mood], got {name} = {entry!r}")
    return plan


def runs_of_plan(predictor: Predictor, plan: Mapping[str, Mapping[str, Any]]) -> list[Run]:
    """The runs of all entries; data that several of them read is loaded once.

    Args:
        predictor: of the backbone.
        plan: entries by name. An entry has `task`, `train` and `validation`, and what else it
            needs of `train_split`, `validation_split`, `shared`, `start_from`, the task's own
            options, and the fields of `PromptConfig` and `TrainConfig`. A list of values for one
            of the last makes a run for each, named after the entry and the value.

    Raises:
        FileNotFoundError: a data file, or a prompt to start from, does not exist.
        ValueError: an entry lacks a field or has an unknown one, or one with a bad value or one
            that its prompt would not read.
    """
    load = cache(load_data)
    return [run for name, entry in plan.items() for run in _runs_of(predictor, name, entry, load)]


def _runs_of(predictor: Predictor, name: str, entry: Mapping[str, Any], load: Load) -> list[Run]:
    _check_fields(name, entry)
    data = (
        load(entry["train"], entry.get("train_split"), "train"),
        load(entry["validation"], entry.get("validation_split"), "validation"),
    )
    settings = {key: x for key, x in entry.items() if key in PROMPT_SETTINGS | TRAIN_SETTINGS}
    axes = {key: x for key, x in settings.items() if _is_axis(key, x)}
    own = {key: x for key, x in settings.items() if key not in axes}
    try:
        task = _task_of(predictor, entry).fit_labels(*data)
        kept = {field: getattr(task, field) for field in task.prompt_fields}
        of_prompt = {key: x for key, x in own.items() if key in PROMPT_SETTINGS}
        prompt = PromptConfig.from_dict(
            {"task": task.kind, "labels": task.labels, **kept, **of_prompt}
        )
        train = TrainConfig(**{key: x for key, x in own.items() if key in TRAIN_SETTINGS})
        chosen = grid(prompt, train, **axes) if axes else {"": (prompt, train)}
    except TypeError as error:  # text for a number
        raise ValueError(
            f"plan: {name or 'settings'}: a setting has a wrong type: {error}"
        ) from None
    rest = entry.get("shared"), entry.get("start_from")
    for key in settings:
        read = [reads(key, prompt, entry.get("start_from")) for prompt, _ in chosen.values()]
        if not (all(read) if key in axes else any(read)):
            raise ValueError(f"plan: {name}: {UNREAD[key]}" if name else UNREAD[key])
    return [
        Run("-".join(filter(None, (name, settings))) or "run", task, data, *configs, *rest)
        for settings, configs in chosen.items()
    ]


def _task_of(predictor: Predictor, entry: Mapping[str, Any]) -> Task:
    known = {*_OF_RUN, *PROMPT_SETTINGS, *TRAIN_SETTINGS}
    options = {key: x for key, x in entry.items() if key not in known}
    offsets = entry.get("position_offset", 0)
    offset = max(offsets, default=0) if isinstance(offsets, list) else offsets
    longest = predictor.length_beside(offset)
    require_room(predictor, "position_offset", offset)
    options["max_length"] = shortest(longest, options.get("max_length"))
    return make_task(entry["task"], predictor.tokenizer, **options)


def _is_axis(name: str, value: Any) -> bool:
    if name == "layers" and isinstance(value, list):  # itself a list
        return bool(value) and isinstance(value[0], (list, tuple))
    return isinstance(value, list)


def _check_fields(name: str, entry: Mapping[str, Any]) -> None:
    where = f"plan: {name or 'settings'}"
    for field in _OF_RUN:
        types = (str, PathLike) if field == "start_from" else str
        if not isinstance(entry.get(field), types) and (field in entry or field in _REQUIRED):
            raise ValueError(f"{where}: expected {field}, a text, got {entry.get(field)!r}")
    if entry["task"] not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {entry['task']!r}")
    task = TASKS[entry["task"]]
    of_task = {f.name for f in fields(task)} - {"tokenizer", "labels", *task.prompt_fields}
    known = {*_OF_RUN, *of_task, *PROMPT_SETTINGS, *TRAIN_SETTINGS}
    if "pooling" in entry and task.kind not in POOLED:
        raise ValueError(f"{where}: pooling: {task.kind} pools nothing, expected none")
    for field in entry:
        if field not in known:
            raise ValueError(
                f"{where}: {field!r} is unknown, expected some of {', '.join(sorted(known))}"
            )

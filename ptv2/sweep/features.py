"""Features of the runs' data; what several runs share is prepared once."""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from datasets import Dataset

from ..batches import token_counts
from ..tasks import Task
from ..tasks.data import data_sha256
from ..tasks.task import Feature
from .runs import Run


class Features:
    """Training or validation examples as a task reads them.

    Raises:
        ValueError: the data does not fit the task.
    """

    def __init__(self, task: Task, data: Dataset) -> None:
        self.task = task
        self._data = data
        self._features = task.prepare(data)
        self._tokens: dict[bool, list[int]] = {}

    @cached_property
    def references(self) -> list[Any]:
        """What the examples' answers are compared with."""
        return self.task.references(self._data)

    @cached_property
    def sha256(self) -> str:
        """What tells the examples from others."""
        return data_sha256(self._data)

    def tokens(self, packing: bool) -> list[int]:
        """How many tokens each feature adds to a batch."""
        if packing not in self._tokens:
            self._tokens[packing] = token_counts(self.task, self._features, packing)
        return self._tokens[packing]

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, places: Sequence[int]) -> list[Feature]:
        """Some of the features."""
        rows: list[Feature] = self._features.__getitems__(list(places))
        return rows


def prepare(runs: Sequence[Run]) -> dict[str, tuple[Features, Features]]:
    """Training and validation features of every run, by its name."""
    known: dict[tuple[Any, ...], Features] = {}

    def of(task: Task, data: Dataset) -> Features:
        settings = json.dumps(task.settings(), sort_keys=True)
        key = (task.kind, settings, id(task.tokenizer), id(data))
        if key not in known:
            known[key] = Features(task, data)
        return known[key]

    return {run.name: (of(run.task, run.data[0]), of(run.task, run.data[1])) for run in runs}

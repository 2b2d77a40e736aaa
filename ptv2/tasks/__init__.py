"""Kinds of tasks, one a file, and the data they read."""

from dataclasses import fields
from typing import Any

from .collate import Collator
from .data import load_data
from .feature_extraction import FeatureExtraction
from .image_classification import ImageClassification
from .multiple_choice import MultipleChoice
from .question_answering import QuestionAnswering
from .sequence_classification import SequenceClassification
from .task import Task
from .token_classification import TokenClassification

__all__ = [
    "TASKS",
    "Collator",
    "FeatureExtraction",
    "ImageClassification",
    "MultipleChoice",
    "QuestionAnswering",
    "SequenceClassification",
    "Task",
    "TokenClassification",
    "load_data",
    "make_task",
]

TASKS: dict[str, type[Task]] = {
    task.kind: task
    for task in (
        SequenceClassification,
        TokenClassification,
        QuestionAnswering,
        MultipleChoice,
        ImageClassification,
        FeatureExtraction,
    )
}
"""The kinds of tasks by their names in `PromptConfig.task`."""


def make_task(kind: str, tokenizer: Any, **options: Any) -> Task:
    """A task of a kind in `TASKS`; the options are its class's other arguments.

    Raises:
        ValueError: there is no such kind, or it has no such option.
    """
    if kind not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {kind!r}")
    known = [field.name for field in fields(TASKS[kind])][1:]
    for name in options:
        if name not in known:
            raise ValueError(f"{name}: {kind} has no such option, expected {', '.join(known)}")
    return TASKS[kind](tokenizer, **options)

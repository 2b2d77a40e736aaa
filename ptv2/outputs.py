"""What a forward returns: transformers' own output classes, and one for batches of mixed tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers.modeling_outputs import (
    BaseModelOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import ModelOutput

from .config import PromptConfig
from .heads import Head

_CLASSES: dict[str, type[ModelOutput]] = {
    "sequence-classification": SequenceClassifierOutput,
    "token-classification": TokenClassifierOutput,
    "multiple-choice": MultipleChoiceModelOutput,
}


def task_output(
    config: PromptConfig,
    head: Head | None,
    encoded: BaseModelOutput,
    attention_mask: Tensor | None,
    labels: Tensor | None,
    choices: int | None = None,
) -> ModelOutput:
    """Apply one task's head to a batch of its own.

    Args:
        head: None for feature extraction.
        encoded: states (rows, length, hidden_size).
        attention_mask: (rows, length).
        labels: as `Head.loss` takes them.
        choices: of a multiple choice, whose rows are examples * choices.
    """
    if head is None:
        if labels is not None:
            raise ValueError(f"labels: {config.task} has no loss, expected None")
        return encoded
    logits = head(encoded.last_hidden_state, attention_mask)
    if choices is not None:
        logits = logits.view(-1, choices)
    loss = None if labels is None else head.loss(logits, labels)
    if config.task == "question-answering":
        start, end = logits.unbind(-1)
        return QuestionAnsweringModelOutput(loss, start, end, encoded.hidden_states)
    return _CLASSES[config.task](loss=loss, logits=logits, hidden_states=encoded.hidden_states)


@dataclass
class MixedTaskOutput(ModelOutput):
    """The output of a batch whose rows belong to different tasks.

    Attributes:
        loss: mean over the labelled rows, if there are labels.
        logits: one entry a row: (labels,) for a sequence classification, (1,) for one choice of a
            multiple choice, (length, labels) for a token classification, (length, 2) for question
            answering; None for feature extraction and for the bare backbone.
        last_hidden_state: (rows, length, hidden_size).
        hidden_states: of every layer, if asked for.
    """

    loss: Tensor | None = None
    logits: tuple[Tensor | None, ...] | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None

    @classmethod
    def of_rows(
        cls,
        tasks: Sequence[str | None],
        heads: Mapping[str, Head],
        encoded: BaseModelOutput,
        attention_mask: Tensor | None,
        labels: Tensor | Sequence[Any] | None,
    ) -> Self:
        """Apply each task's head to its rows.

        Raises:
            ValueError: labels are not one a row, or belong to a row without a loss.
        """
        states = encoded.last_hidden_state
        assert states is not None
        if labels is not None:
            _check_labels(tasks, heads, labels)
        logits: list[Tensor | None] = [None] * len(tasks)
        total: Tensor | None = None
        labelled = 0
        for name, head in heads.items():
            rows = [row for row, task in enumerate(tasks) if task == name]
            index = torch.tensor(rows, device=states.device)
            mask = None if attention_mask is None else attention_mask[index]
            task_logits = head(states[index], mask)
            for row, row_logits in zip(rows, task_logits, strict=True):
                logits[row] = row_logits
            if labels is not None:
                part, count = _loss_of_rows(head, task_logits, [labels[row] for row in rows])
                total, labelled = part if total is None else total + part, labelled + count
        loss = total / labelled if total is not None and labelled else None
        return cls(loss, tuple(logits), states, encoded.hidden_states)


def _loss_of_rows(head: Head, logits: Tensor, labels: Sequence[Any]) -> tuple[Tensor, int]:
    """One task's loss times its labelled rows, and their count."""
    places = [place for place, label in enumerate(labels) if label is not None]
    if not places:
        return logits.new_zeros(()), 0
    wanted = torch.stack(
        [torch.as_tensor(labels[place], device=logits.device) for place in places]
    )
    return head.loss(logits[places], wanted) * len(places), len(places)


def _check_labels(
    tasks: Sequence[str | None], heads: Mapping[str, Head], labels: Tensor | Sequence[Any]
) -> None:
    if len(labels) != len(tasks):
        raise ValueError(f"labels: expected {len(tasks)}, one a row, got {len(labels)}")
    for row, (task, label) in enumerate(zip(tasks, labels, strict=True)):
        head = None if task is None else heads.get(task)
        if label is not None and (head is None or head.config.task == "multiple-choice"):
            raise ValueError(
                f"labels: row {row} has a label, but its task {task!r} has no loss of single rows"
            )

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
from .layout import Layout, Packed

_CLASSES: dict[str, type[ModelOutput]] = {
    "sequence-classification": SequenceClassifierOutput,
    "token-classification": TokenClassifierOutput,
    "multiple-choice": MultipleChoiceModelOutput,
}


def task_output(
    config: PromptConfig,
    head: Head | None,
    encoded: BaseModelOutput,
    layout: Layout,
    labels: Tensor | None,
    choices: int | None = None,
) -> ModelOutput:
    """Apply one task's head to a batch of its own.

    Args:
        head: None for feature extraction.
        encoded: states (rows, length, hidden_size), or packed (1, tokens, hidden_size).
        layout: how the sequences lie in them.
        labels: as `Head.loss` takes them.
        choices: of a multiple choice, whose sequences are examples * choices.
    """
    if head is None:
        if labels is not None:
            raise ValueError(f"labels: {config.task} has no loss, expected None")
        return encoded
    logits = head(encoded.last_hidden_state, layout)
    if choices is not None:
        logits = logits.view(-1, choices)
    loss = None if labels is None else head.loss(logits, labels, layout)
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
            answering; None for feature extraction and for the bare backbone. A padded batch's
            length includes the padding.
        last_hidden_state: (rows, length, hidden_size), or packed (1, tokens, hidden_size).
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
        layout: Layout,
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
            task_states, task_layout = layout.select(states, rows)
            task_logits = head(task_states, task_layout)
            split = list(task_logits) if head.pools else task_layout.split(task_logits)
            for row, row_logits in zip(rows, split, strict=True):
                logits[row] = row_logits
            if labels is not None:
                wanted = [labels[row] for row in rows]
                part, count = _loss_of_rows(head, task_logits, task_layout, wanted)
                total, labelled = part if total is None else total + part, labelled + count
        loss = total / labelled if total is not None and labelled else None
        return cls(loss, tuple(logits), states, encoded.hidden_states)


def _loss_of_rows(
    head: Head, logits: Tensor, layout: Layout, labels: Sequence[Any]
) -> tuple[Tensor, int]:
    """One task's loss times its labelled rows, and their count."""
    places = [place for place, label in enumerate(labels) if label is not None]
    if not places:
        return logits.new_zeros(()), 0
    wanted = [torch.as_tensor(labels[place], device=logits.device) for place in places]
    if head.pools:
        logits = logits[places]
    else:
        logits, layout = layout.select(logits, places)
    stacked = torch.cat(wanted)[None] if _packs_labels(head, layout) else torch.stack(wanted)
    return head.loss(logits, stacked, layout) * len(places), len(places)


def _packs_labels(head: Head, layout: Layout) -> bool:
    return head.config.task == "token-classification" and isinstance(layout, Packed)


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

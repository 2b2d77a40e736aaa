"""What a forward returns: transformers' own output classes, and one for batches of mixed tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers.modeling_outputs import (
    BaseModelOutput,
    ImageClassifierOutput,
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
    "image-classification": ImageClassifierOutput,
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
        loss: mean over the labelled rows, if there are labels; of the labelled examples of a
            multiple choice.
        logits: one entry a row: (labels,) for a sequence classification, (1,) for one choice of a
            multiple choice, (length, labels) for a token classification, (length, 2) for question
            answering; None for feature extraction and for the bare backbone. A padded batch's
            length includes the padding.
        last_hidden_state: (rows, length, hidden_size), or packed (1, tokens, hidden_size).
        hidden_states: of every layer, if asked for.
        losses: each task's own mean loss, of the tasks that have labelled rows.
    """

    loss: Tensor | None = None
    logits: tuple[Tensor | None, ...] | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    losses: dict[str, Tensor] | None = None

    @classmethod
    def of_rows(
        cls,
        tasks: Sequence[str | None],
        heads: Mapping[str, Head],
        encoded: BaseModelOutput,
        layout: Layout,
        labels: Tensor | Sequence[Any] | None,
        choices: int | None = None,
    ) -> Self:
        """Apply each task's head to its rows.

        Args:
            choices: of every example of a multiple choice; None: as its labels say, of which
                every example then has one.

        Raises:
            ValueError: labels are not one a row, or belong to a row without a loss; or choices
                do not divide the rows of a multiple choice, or there is none.
        """
        states = encoded.last_hidden_state
        assert states is not None
        if labels is not None:
            _check_labels(tasks, heads, labels)
        if choices is not None:
            _check_choices(tasks, heads, choices)
        rows_of: dict[str, list[int]] = {name: [] for name in heads}
        for row, task in enumerate(tasks):
            if task in rows_of:
                rows_of[task].append(row)
        logits: list[Tensor | None] = [None] * len(tasks)
        losses: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        groups: Sequence[tuple[Tensor, Layout]] = layout.groups(states, list(rows_of.values()))
        for (name, rows), (task_states, task_layout) in zip(rows_of.items(), groups, strict=True):
            head = heads[name]
            task_logits = head(task_states, task_layout)
            split = list(task_logits) if head.pools else task_layout.split(task_logits)
            for row, row_logits in zip(rows, split, strict=True):
                logits[row] = row_logits
            wanted = [] if labels is None else [labels[row] for row in rows]
            counts[name] = sum(label is not None for label in wanted)
            if counts[name]:
                losses[name] = _loss_of_rows(name, head, task_logits, task_layout, wanted, choices)
        if not losses:
            return cls(None, tuple(logits), states, encoded.hidden_states)
        sums = torch.stack([loss * counts[name] for name, loss in losses.items()])
        loss = sums.sum() / sum(counts.values())
        return cls(loss, tuple(logits), states, encoded.hidden_states, losses)


def _loss_of_rows(
    name: str,
    head: Head,
    logits: Tensor,
    layout: Layout,
    labels: Sequence[Any],
    choices: int | None,
) -> Tensor:
    """One task's mean loss over its labelled rows, of which there is one at least."""
    places = [place for place, label in enumerate(labels) if label is not None]
    wanted = [torch.as_tensor(labels[place]) for place in places]
    if head.config.task == "multiple-choice":
        logits = _labelled_choices(name, logits, places, choices)
    elif len(places) < len(labels):
        if head.pools:
            logits = logits[places]
        else:
            logits, layout = layout.select(logits, places)
    stacked = torch.cat(wanted)[None] if _packs_labels(head, layout) else torch.stack(wanted)
    return head.loss(logits, stacked.to(logits.device), layout)


def _labelled_choices(
    name: str, logits: Tensor, places: Sequence[int], choices: int | None
) -> Tensor:
    """(labelled examples, choices) of the logits (rows, 1) of a multiple choice.

    Args:
        places: the rows that have a label.
    """
    rows = len(logits)
    each = choices or rows // len(places)
    firsts = range(0, rows, each)
    right = set(places) <= set(firsts) if choices else places == list(firsts)
    if rows % each or not right:
        raise ValueError(
            f"labels: expected one at the first choice of every example of {name!r}, which have "
            f"{choices or 'as many'} choices each, got labels at its rows {places} of {rows}; "
            "if not every example has one, give choices"
        )
    return logits.view(-1, each)[[place // each for place in places]]


def _check_choices(tasks: Sequence[str | None], heads: Mapping[str, Head], choices: int) -> None:
    rows = {
        name: tasks.count(name)
        for name, head in heads.items()
        if head.config.task == "multiple-choice"
    }
    if not rows or choices < 1 or any(count % choices for count in rows.values()):
        raise ValueError(
            f"choices: expected a divisor of the rows of every multiple choice in task, {rows}, "
            f"got {choices}"
        )


def _packs_labels(head: Head, layout: Layout) -> bool:
    return head.config.task == "token-classification" and isinstance(layout, Packed)


def _check_labels(
    tasks: Sequence[str | None], heads: Mapping[str, Head], labels: Tensor | Sequence[Any]
) -> None:
    if len(labels) != len(tasks):
        raise ValueError(f"labels: expected {len(tasks)}, one a row, got {len(labels)}")
    for row, (task, label) in enumerate(zip(tasks, labels, strict=True)):
        head = None if task is None else heads.get(task)
        if label is not None and head is None:
            raise ValueError(f"labels: row {row} has a label, but its task {task!r} has no loss")

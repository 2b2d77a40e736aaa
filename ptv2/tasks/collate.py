"""Batches for a model: sequences padded to one length, or packed one after another."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..heads import IGNORED
from .task import Feature, Task


class Collator:
    """Makes the keyword arguments of a forward from a list of features.

    Args:
        task: what the features are of.
        packing: lay the sequences one after another, (1, tokens) with `cu_seqlens`, without a
            padding token. Else they are padded on the right, (rows, length).
    """

    def __init__(self, task: Task, packing: bool = False) -> None:
        self.task = task
        self.packing = packing

    def __call__(self, features: Sequence[Feature]) -> dict[str, Any]:
        sequences = [sequence for feature in features for sequence in self.task.sequences(feature)]
        choices = len(sequences) // len(features)
        batch = pack(sequences) if self.packing else pad(self.task, sequences)
        if self.task.kind == "multiple-choice":
            if self.packing:
                batch["choices"] = choices
            else:
                batch = {name: x.unflatten(0, (-1, choices)) for name, x in batch.items()}
        for name in self.task.label_columns:
            if name in features[0]:
                batch[name] = self._labels([feature[name] for feature in features])
        return batch

    def _labels(self, labels: list[Any]) -> Tensor:
        if not self.task.token_labels:
            return torch.tensor(labels)
        rows = [torch.tensor(row) for row in labels]
        if self.packing:
            return torch.cat(rows)[None]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def pad(task: Task, sequences: Sequence[Feature]) -> dict[str, Any]:
    """Model inputs (rows, length), filled up on the right; or images of one size."""
    if "pixel_values" in sequences[0]:
        return {"pixel_values": torch.stack([s["pixel_values"] for s in sequences])}
    return dict(task.tokenizer.pad(sequences, padding_side="right", return_tensors="pt"))


def pack(sequences: Sequence[Feature]) -> dict[str, Any]:
    """Model inputs (1, tokens), `cu_seqlens` (sequences + 1,) int32 and `max_seqlen`."""
    if "pixel_values" in sequences[0]:
        raise ValueError("packing: images of one size need none, expected False")
    lengths = [len(sequence["input_ids"]) for sequence in sequences]
    names = [name for name in sequences[0] if name != "attention_mask"]
    return {
        **{name: torch.cat([torch.tensor(s[name]) for s in sequences])[None] for name in names},
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32),
        "max_seqlen": max(lengths),
    }


def split_logits(logits: Tensor, batch: dict[str, Any], lengths: Sequence[int]) -> list[Tensor]:
    """The logits of each sequence of a batch, without padding.

    Args:
        logits: as a forward of that batch gives them; (sequences, outputs), or with an entry a
            token (sequences, length, outputs), packed (1, tokens, outputs).
        batch: what a `Collator` made.
        lengths: of the sequences.
    """
    if logits.dim() == 2:
        return list(logits.reshape(len(lengths), -1))
    if "cu_seqlens" in batch:
        return list(logits[0].split(list(lengths)))
    return [row[:length] for row, length in zip(logits, lengths, strict=True)]


def mix(tasks: Mapping[str, Task], batches: Mapping[str, Sequence[Feature]]) -> dict[str, Any]:
    """One packed batch of several tasks' labelled features, for a forward with a task a sequence.

    Args:
        tasks: by name.
        batches: features of each task, by its name.

    Returns:
        Model inputs as `pack` makes them; "task", the name of each sequence's; "labels", one a
        sequence, None for those of a feature after its first.
    """
    sequences: list[Feature] = []
    names: list[str] = []
    labels: list[Any] = []
    for name, features in batches.items():
        columns = tasks[name].label_columns
        for feature in features:
            own = tasks[name].sequences(feature)
            label = [feature[column] for column in columns]
            sequences += own
            names += [name] * len(own)
            labels += [torch.tensor(label[0] if len(label) == 1 else label)]
            labels += [None] * (len(own) - 1)
    return pack(sequences) | {"task": names, "labels": labels}

"""Sequence classification: one label for a text or a pair of texts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor
from transformers import DataCollatorWithPadding

from .data import check_columns, label_ids, label_names
from .task import Collator, Ids, Task
from .tokens import encode


@dataclass(frozen=True)
class SequenceClassification(Task):
    """Texts, or pairs of texts, with a label each.

    Args:
        text_column, text_pair_column, label_column: where the data keeps its fields.
    """

    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"

    kind: ClassVar[str] = "sequence-classification"
    best_metric: ClassVar[str] = "accuracy"

    def fit_labels(self, *parts: Dataset) -> Self:
        for part in parts:
            check_columns(part, label_column=self.label_column)
        values = [value for part in parts for value in part[self.label_column]]
        labels = label_names(values, parts[0].features[self.label_column])
        if len(labels) < 2:
            raise ValueError(f"label_column: expected at least two labels, got {labels}")
        return replace(self, labels=labels)

    def prepare(self, data: Dataset, labelled: bool = True) -> Dataset:
        columns = {"text_column": self.text_column}
        if self.text_pair_column is not None:
            columns["text_pair_column"] = self.text_pair_column
        check_columns(data, **columns)
        texts = [[str(text) for text in data[column]] for column in columns.values()]
        features, _ = encode(self.tokenizer, self.max_length, *texts)
        if labelled:
            check_columns(data, label_column=self.label_column)
            class_label = data.features[self.label_column]
            features["labels"] = label_ids(
                data[self.label_column], self.labels, self.label_column, class_label
            )
        return Dataset.from_dict(features)

    def prepare_inputs(self, inputs: Sequence[str | tuple[str, str]]) -> Dataset:
        """Features of texts, or of (text, text_pair)s."""
        if all(isinstance(text, str) for text in inputs):
            columns: list[list[Any]] = [list(inputs)]
        elif all(not isinstance(text, str) and len(text) == 2 for text in inputs):
            columns = [list(column) for column in zip(*inputs, strict=True)]
        else:
            raise ValueError("inputs: expected texts, or pairs of texts, got other or both kinds")
        return Dataset.from_dict(encode(self.tokenizer, self.max_length, *columns)[0])

    def collator(self) -> Collator:
        # The method, not the object: a Trainer saves the tokenizer of an object that has one.
        return DataCollatorWithPadding(self.tokenizer).__call__

    def predictions(self, logits: Tensor) -> Tensor:
        """(..., num_labels) -> label ids, (...)."""
        return logits.argmax(-1)

    def decode(self, logits: Tensor, feature: dict[str, Any]) -> dict[str, Any]:
        """One row of logits, (num_labels,) -> its "label" and that one's probability, "score".

        A regression, which has one label, gives its "value".
        """
        if len(self.labels) == 1:
            return {"value": round(float(logits[0]), 4)}
        probability, label = torch.softmax(logits.float(), -1).max(-1)
        return {"label": self.labels[int(label)], "score": round(float(probability), 4)}

    def score(self, predictions: Ids, references: Ids) -> dict[str, float]:
        """Accuracy and macro-F1 of label ids, (examples,)."""
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0)),
        }

    def majority(self, references: Ids) -> dict[str, float]:
        commonest = np.bincount(np.asarray(references)).argmax()
        return self.score(np.full(len(references), commonest), references)

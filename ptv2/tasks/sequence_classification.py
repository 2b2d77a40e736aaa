"""Sequence classification: one label for a text or a pair of texts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from datasets import Dataset
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor

from .data import check_columns, label_ids, label_names
from .task import Answer, Feature, Task
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
        features = self._encode(
            *([str(text) for text in data[column]] for column in columns.values())
        )
        if labelled:
            features["labels"] = self._label_ids(data)
        return Dataset.from_dict(features)

    def prepare_inputs(self, inputs: Sequence[str | tuple[str, str]]) -> Dataset:
        """Features of texts, or of (text, text_pair)s."""
        if all(isinstance(text, str) for text in inputs):
            columns: list[list[Any]] = [list(inputs)]
        elif all(not isinstance(text, str) and len(text) == 2 for text in inputs):
            columns = [list(column) for column in zip(*inputs, strict=True)]
        else:
            raise ValueError("inputs: expected texts, or pairs of texts, got other or both kinds")
        return Dataset.from_dict(self._encode(*columns))

    def _encode(self, *texts: list[str]) -> dict[str, list[Any]]:
        features, _ = encode(self.tokenizer, self.max_length, *texts)
        return features | {"example": list(range(len(texts[0])))}

    def _label_ids(self, data: Dataset) -> list[int]:
        check_columns(data, label_column=self.label_column)
        class_label = data.features[self.label_column]
        return label_ids(data[self.label_column], self.labels, self.label_column, class_label)

    def decode(self, logits: Sequence[Tensor], features: Sequence[Feature]) -> Answer:
        """Logits (labels,) -> "label" and its probability, "score".

        A regression, which has one label, gives its "value".
        """
        (row,) = logits
        if len(self.labels) == 1:
            return {"value": float(row[0])}
        probability, label = torch.softmax(row.float(), -1).max(-1)
        return {"label": self.labels[int(label)], "score": round(float(probability), 4)}

    def references(self, data: Dataset) -> list[Any]:
        return [self.labels[label] for label in self._label_ids(data)]

    def score(self, answers: Sequence[Answer], references: Sequence[Any]) -> dict[str, float]:
        """Accuracy and macro-F1."""
        given = [answer["label"] for answer in answers]
        return {
            "accuracy": float(accuracy_score(references, given)),
            "macro_f1": float(f1_score(references, given, average="macro", zero_division=0)),
        }

    def majority(self, references: Sequence[Any]) -> dict[str, float]:
        ((commonest, _),) = Counter(references).most_common(1)
        return self.score([{"label": commonest}] * len(references), references)

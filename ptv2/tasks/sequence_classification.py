"""Sequence classification: a label, several labels or a number for a text or a pair of texts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import Any, ClassVar, Self

import numpy as np
from datasets import Dataset
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor

from .data import check_columns, example, label_ids, label_names
from .task import Answer, Feature, Task
from .tokens import encode


@dataclass(frozen=True)
class SequenceClassification(Task):
    """Texts, or pairs of texts, with what there is to say of each.

    The labels show which kind it is: names or integers are classes; lists of them, also empty
    ones, are several labels a text; floating-point numbers are a regression.

    Args:
        text_column, text_pair_column, label_column: where the data keeps its fields.
        multi_label: whether a text has any number of labels; `fit_labels` sets it.
    """

    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"
    multi_label: bool = False

    kind: ClassVar[str] = "sequence-classification"
    metric: ClassVar[str] = "accuracy"
    prompt_fields: ClassVar[tuple[str, ...]] = ("multi_label",)

    @property
    def best_metric(self) -> str:
        if self.regression:
            return "pearson"
        return "micro_f1" if self.multi_label else self.metric

    @property
    def regression(self) -> bool:
        """Whether the label is a number."""
        return len(self.labels) == 1 and not self.multi_label

    def fit_labels(self, *parts: Dataset) -> Self:
        for part in parts:
            check_columns(part, label_column=self.label_column)
        values = [value for part in parts for value in part[self.label_column]]
        if all(isinstance(value, float) for value in values):
            return replace(self, labels=(self.label_column,), multi_label=False)
        feature = parts[0].features[self.label_column]
        multi_label = all(isinstance(value, list) for value in values)
        if multi_label:
            values = [name for value in values for name in value]
            feature = getattr(feature, "feature", None)
        labels = label_names(values, feature)
        if len(labels) < (1 if multi_label else 2):
            raise ValueError(f"label_column: expected at least two labels, got {labels}")
        return replace(self, labels=labels, multi_label=multi_label)

    def prepare(self, data: Dataset, labelled: bool = True) -> Dataset:
        columns = text_columns(data, self.text_column, self.text_pair_column)
        features = encode_texts(self, columns)
        if labelled:
            features["labels"] = self._targets(data)
        return Dataset.from_dict(features)

    def prepare_inputs(self, inputs: Sequence[str | tuple[str, str]]) -> Dataset:
        """Features of texts, or of (text, text_pair)s."""
        return Dataset.from_dict(encode_texts(self, inputs))

    def _targets(self, data: Dataset) -> list[Any]:
        """What the loss takes: label ids, numbers, or a 0 or 1 for every label."""
        check_columns(data, label_column=self.label_column)
        column, where = self.label_column, partial(example, data)
        values, feature = data[column], data.features[column]
        if self.regression:
            return [_number(value, column, where(place)) for place, value in enumerate(values)]
        if not self.multi_label:
            return label_ids(values, self.labels, column, feature, data)
        rows = []
        for place, value in enumerate(values):
            if not isinstance(value, list):
                raise ValueError(
                    f"{column}: expected a list of labels, got {value!r} in {where(place)}"
                )
            inner = getattr(feature, "feature", None)
            ids = set(label_ids(value, self.labels, column, inner, data, place))
            rows.append([float(i in ids) for i in range(len(self.labels))])
        return rows

    def decode(self, logits: Sequence[Tensor], features: Sequence[Feature]) -> Answer:
        """Logits (labels,) -> the answer.

        Returns:
            "label" and its probability, "score"; of several labels those "labels" that have more
            than a half, and all "scores"; of a regression the "value".
        """
        row = logits[0].float()
        if self.regression:
            return {"value": float(row[0])}
        if self.multi_label:
            shares = dict(zip(self.labels, row.sigmoid().tolist(), strict=True))
            return {
                "labels": [label for label, share in shares.items() if share > 0.5],
                "scores": {label: round(share, 4) for label, share in shares.items()},
            }
        probability, label = row.softmax(-1).max(-1)
        return {"label": self.labels[int(label)], "score": round(float(probability), 4)}

    def references(self, data: Dataset) -> list[Any]:
        """Each example's label, its list of labels, or its number."""
        targets = self._targets(data)
        if self.regression:
            return targets
        if self.multi_label:
            return [
                [label for label, is_one in zip(self.labels, row, strict=True) if is_one]
                for row in targets
            ]
        return [self.labels[label] for label in targets]

    def score(self, answers: Sequence[Answer], references: Sequence[Any]) -> dict[str, float]:
        """Accuracy and macro-F1; of several labels also micro-F1, and accuracy is that of whole
        sets; of a regression the correlations, 0 where one side is constant, and the mean square
        error."""
        if self.regression:
            return _regression_scores([answer["value"] for answer in answers], references)
        if self.multi_label:
            given = self._indicators([answer["labels"] for answer in answers])
            wanted: Any = self._indicators(references)
            micro = f1_score(wanted, given, average="micro", zero_division=0)
            scores = {"micro_f1": float(micro)}
        else:
            given, wanted, scores = [answer["label"] for answer in answers], references, {}
        return {
            "accuracy": float(accuracy_score(wanted, given)),
            "macro_f1": float(f1_score(wanted, given, average="macro", zero_division=0)),
            **scores,
        }

    def _indicators(self, rows: Sequence[Sequence[str]]) -> Any:
        return np.array([[label in row for label in self.labels] for row in rows], dtype=int)

    def majority(self, references: Sequence[Any]) -> dict[str, float]:
        """The scores of always the commonest label, set of labels, or the mean."""
        if self.regression:
            answer: Answer = {"value": float(np.mean(references))}
        else:
            keys = [tuple(x) if self.multi_label else x for x in references]
            ((commonest, _),) = Counter(keys).most_common(1)
            answer = {"labels" if self.multi_label else "label": commonest}
        return self.score([answer] * len(references), references)


def text_columns(data: Dataset, text_column: str, text_pair_column: str | None) -> list[Any]:
    """The texts of a data set, or its pairs of texts.

    Raises:
        ValueError: a column is missing or lacks a value.
    """
    check_columns(data, text_column=text_column)
    texts = [str(text) for text in data[text_column]]
    if text_pair_column is None:
        return texts
    check_columns(data, text_pair_column=text_pair_column)
    return list(zip(texts, (str(text) for text in data[text_pair_column]), strict=True))


def encode_texts(task: Task, inputs: Sequence[str | tuple[str, str]]) -> dict[str, list[Any]]:
    """Features of texts, or of pairs of texts."""
    if all(isinstance(text, str) for text in inputs):
        columns: list[list[Any]] = [list(inputs)]
    elif all(not isinstance(text, str) and len(text) == 2 for text in inputs):
        columns = [list(column) for column in zip(*inputs, strict=True)]
    else:
        raise ValueError("inputs: expected texts, or pairs of texts, got other or both kinds")
    features, _ = encode(task.tokenizer, task.max_length, *columns)
    return features | {"example": list(range(len(inputs)))}


def _number(value: Any, column: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise ValueError(f"{column}: expected a finite number in {where}, got {value!r}")
    return float(value)


def _regression_scores(given: Sequence[float], wanted: Sequence[float]) -> dict[str, float]:
    constant = len(set(given)) < 2 or len(set(wanted)) < 2
    return {
        "pearson": 0.0 if constant else float(pearsonr(given, wanted).statistic),
        "spearman": 0.0 if constant else float(spearmanr(given, wanted).statistic),
        "mse": float(np.mean((np.asarray(given) - np.asarray(wanted)) ** 2)),
    }

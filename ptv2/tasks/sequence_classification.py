"""Sequence classification: a label, several labels or a number for a text or a pair of texts."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from math import isfinite
from typing import Any, ClassVar, Self

import numpy as np
from datasets import Dataset
from scipy.stats import rankdata
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor

from .data import check_columns, check_labels, common_labels, example, label_ids, texts_of
from .task import Answer, Feature, Task, rows_of
from .tokens import encode

_NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")
_MISSING_NUMBER = re.compile(
    r"\s*([+-]?(nan|inf|infinity)|#?n/a|na|<na>|null|none)?\s*", re.IGNORECASE
)


@dataclass(frozen=True)
class SequenceClassification(Task):
    """Texts, or pairs of texts, with what there is to say of each.

    The labels show which kind it is: names or integers are classes; lists of them, also empty
    ones, are several labels a text; numbers that are floating-point or, in text as of CSV files,
    have a fraction in one example at least are a regression, in which no number may be missing
    and, if most labels are numbers, nothing else may stand.
    One label that is given when the task is made makes it a regression too.

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
        if self.labels:
            for part in parts:
                self.targets(part)
            return self
        if not self.multi_label and any(_has_fraction(value) for value in values):
            self._refuse_other_than_numbers(*parts)
            if all(_as_number(value) is not None for value in values):
                return replace(self, labels=(self.label_column,))
        multi_label = self.multi_label or all(isinstance(value, list) for value in values)
        task = replace(self, multi_label=multi_label)
        rows = [task._names(part) for part in parts]
        if any(rows) and all(sorted(row) == [0, 1] for row in chain.from_iterable(rows)):
            raise ValueError(
                "label_column: expected lists of labels, not a 0 or 1 for each of two labels, got "
                "0 and 1 in every example"
            )
        labels = common_labels(
            "label_column",
            [
                (list(chain.from_iterable(own)), task._class_label(part))
                for own, part in zip(rows, parts, strict=True)
            ],
        )
        if len(labels) < (1 if multi_label else 2):
            raise ValueError(f"label_column: expected at least two labels, got {labels}")
        return replace(task, labels=labels)

    def prepare(self, data: Dataset, labelled: bool = True) -> Dataset:
        columns = text_columns(data, self.text_column, self.text_pair_column)
        features = encode_texts(self, columns)
        if labelled:
            features["labels"] = self.targets(data)
        return Dataset.from_dict(features)

    def prepare_inputs(self, inputs: Sequence[str | tuple[str, str]]) -> list[Feature]:
        """Features of texts, or of (text, text_pair)s."""
        return rows_of(encode_texts(self, inputs))

    def targets(self, data: Dataset) -> list[Any]:
        """What the loss takes: label ids, numbers, or a 0 or 1 for every label."""
        column, where = self.label_column, partial(example, data)
        if self.regression:
            check_columns(data, label_column=column)
            return [_number(x, column, where(place)) for place, x in enumerate(data[column])]
        names = self._names(data)
        known = (self.labels, column, self._class_label(data), data)
        if not self.multi_label:
            return label_ids([name for (name,) in names], *known)
        ids = [label_ids(row, *known, place) for place, row in enumerate(names)]
        return [[float(i in row) for i in range(len(self.labels))] for row in ids]

    def _names(self, data: Dataset) -> list[list[Any]]:
        """The labels of each example, of which there is one unless it is `multi_label`."""
        check_columns(data, label_column=self.label_column)
        values: list[Any] = data[self.label_column][:]
        rows = values if self.multi_label else [[value] for value in values]
        for place, row in enumerate(rows):
            if not isinstance(row, list):
                raise ValueError(
                    f"{self.label_column}: expected a list of labels, got {row!r} in "
                    f"{example(data, place)}"
                )
        check_labels(data, "label_column", rows, self.labels)
        for place, row in enumerate(rows):
            if len(set(row)) < len(row):
                raise ValueError(
                    f"{self.label_column}: expected a list of distinct labels, not a 0 or 1 for "
                    f"each, got {row!r} in {example(data, place)}"
                )
        return rows

    def _refuse_other_than_numbers(self, *parts: Dataset) -> None:
        """Raise a ValueError for text that says a number is missing or infinite, and for anything
        else that is no number if most labels are."""
        values = [value for part in parts for value in part[self.label_column]]
        mostly = 2 * sum(_as_number(value) is not None for value in values) > len(values)
        for part in parts:
            for place, value in enumerate(part[self.label_column]):
                if _is_missing_number(value) or (mostly and _as_number(value) is None):
                    raise ValueError(
                        f"{self.label_column}: expected a finite number in {example(part, place)} "
                        f"beside labels with a fraction, got {value!r}"
                    )

    def _class_label(self, data: Dataset) -> Any:
        feature = data.features[self.label_column]
        return getattr(feature, "feature", None) if self.multi_label else feature

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
        targets = self.targets(data)
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
            sets = references, [answer["labels"] for answer in answers]
            return _set_scores(
                *(np.array([[label in row for label in self.labels] for row in x]) for x in sets)
            )
        given = [answer["label"] for answer in answers]
        return {
            "accuracy": float(accuracy_score(references, given)),
            "macro_f1": float(f1_score(references, given, average="macro", zero_division=0)),
        }

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
        ValueError: a column is missing, or a value is missing or no text.
    """
    texts = texts_of(data, "text_column", text_column)
    if text_pair_column is None:
        return texts
    return list(zip(texts, texts_of(data, "text_pair_column", text_pair_column), strict=True))


def encode_texts(task: Task, inputs: Sequence[str | tuple[str, str]]) -> dict[str, list[Any]]:
    """Features of texts, or of pairs of texts."""
    if all(isinstance(text, str) for text in inputs):
        columns: list[list[Any]] = [list(inputs)]
    elif all(_is_pair(text) for text in inputs):
        columns = [list(column) for column in zip(*inputs, strict=True)]
    else:
        raise ValueError("inputs: expected texts, or pairs of texts, got other or both kinds")
    features, _ = encode(task.tokenizer, task.max_length, *columns)
    return features | {"example": list(range(len(inputs)))}


def _is_pair(texts: Any) -> bool:
    return (
        isinstance(texts, list | tuple)
        and len(texts) == 2
        and all(isinstance(text, str) for text in texts)
    )


def _as_number(value: Any) -> float | None:
    """A label as a number; text has to say a finite one."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value) and isfinite(float(value)) else None
    return float(value) if type(value) in (int, float) else None


def _has_fraction(value: Any) -> bool:
    """Whether a label is a floating-point number, or text of one that is no integer."""
    if isinstance(value, str):
        number = _as_number(value)
        return number is not None and not number.is_integer()
    return isinstance(value, float)


def _is_missing_number(value: Any) -> bool:
    """Whether a label is text of a number that is missing, infinite or too large."""
    if not isinstance(value, str):
        return False
    too_large = _NUMBER.fullmatch(value) and _as_number(value) is None
    return bool(too_large or _MISSING_NUMBER.fullmatch(value))


def _number(value: Any, column: str, where: str) -> float:
    number = _as_number(value)
    if number is None or not isfinite(number):
        raise ValueError(f"{column}: expected a finite number in {where}, got {value!r}")
    return number


def _set_scores(wanted: Any, given: Any) -> dict[str, float]:
    """Scores of sets of labels (examples, labels), bool; an F1 without any label at all is 0."""
    both, either = (wanted & given).sum(0), wanted.sum(0) + given.sum(0)
    return {
        "accuracy": float((wanted == given).all(1).mean()),
        "macro_f1": float(np.mean(2 * both / np.maximum(either, 1))),
        "micro_f1": float(2 * both.sum() / max(either.sum(), 1)),
    }


def _regression_scores(given: Sequence[float], wanted: Sequence[float]) -> dict[str, float]:
    with np.errstate(all="ignore"):  # a run that diverged
        return {
            "pearson": _correlation(np.array(given), np.array(wanted)),
            "spearman": _correlation(rankdata(given), rankdata(wanted)),
            "mse": float(np.mean((np.array(given) - np.array(wanted)) ** 2)),
        }


def _correlation(given: Any, wanted: Any) -> float:
    """Pearson's; 0 where a side is constant, or has something else than numbers."""
    if np.ptp(given) == 0 or np.ptp(wanted) == 0:
        return 0.0
    found = float(np.corrcoef(given, wanted)[0, 1])
    return found if isfinite(found) else 0.0

"""Token classification: one tag for every word, such as named entities or slots."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from datasets import Dataset
from seqeval.metrics import f1_score, precision_score, recall_score
from torch import Tensor

from ..heads import IGNORED
from .data import check_columns, label_ids, label_names
from .task import Answer, Feature, Task
from .tokens import encode

_CHUNK_PREFIXES = ("B-", "I-", "E-", "S-", "L-", "U-")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenClassification(Task):
    """Words with a tag each, read at the word's first piece; other pieces have the label -100.

    Args:
        tokens_column, tags_column: where the data keeps the words and their tags, as lists, or as
            text with a space between the words (as CSV files do).
    """

    tokens_column: str = "tokens"
    tags_column: str = "tags"

    kind: ClassVar[str] = "token-classification"
    metric: ClassVar[str] = "f1"
    token_labels: ClassVar[bool] = True

    def fit_labels(self, *parts: Dataset) -> Self:
        for part in parts:
            check_columns(part, tags_column=self.tags_column)
        tags = [tag for part in parts for row in part[self.tags_column] for tag in _words(row)]
        return replace(self, labels=label_names(tags, self._class_label(parts[0])))

    def prepare(self, data: Dataset, labelled: bool = True) -> Dataset:
        """Features, with "word_starts": each word's first piece, -1 for a word without one."""
        check_columns(data, tokens_column=self.tokens_column)
        words = [_words(row) for row in data[self.tokens_column]]
        if not labelled:
            return self.prepare_inputs(words)
        check_columns(data, tags_column=self.tags_column)
        tags = [_words(row) for row in data[self.tags_column]]
        _check_lengths(words, tags)
        features = self._encode(words)
        features["labels"] = self._align(features, tags, self._class_label(data))
        return Dataset.from_dict(features)

    def prepare_inputs(self, inputs: Sequence[str | list[str]]) -> Dataset:
        """Features of lists of words, or of texts, which are split at their spaces."""
        return Dataset.from_dict(self._encode([_words(row) for row in inputs]))

    def _encode(self, words: list[list[str]]) -> dict[str, list[Any]]:
        features, encodings = encode(
            self.tokenizer, self.max_length, words, is_split_into_words=True
        )
        features["word_starts"] = [
            _word_starts(encoding.word_ids, len(row))
            for encoding, row in zip(encodings, words, strict=True)
        ]
        features["example"] = list(range(len(words)))
        lost = sum(starts.count(-1) for starts in features["word_starts"])
        if lost:
            logger.warning("%d words were cut off or have no word piece: they get no tag", lost)
        return features

    def _align(
        self, features: dict[str, list[Any]], tags: list[list[Any]], class_label: Any
    ) -> list[list[int]]:
        aligned = []
        for tokens, starts, row in zip(
            features["input_ids"], features["word_starts"], tags, strict=True
        ):
            labels = [IGNORED] * len(tokens)
            ids = label_ids(row, self.labels, self.tags_column, class_label)
            for start, label in zip(starts, ids, strict=True):
                if start >= 0:
                    labels[start] = label
            aligned.append(labels)
        return aligned

    def _class_label(self, data: Dataset) -> Any:
        return getattr(data.features[self.tags_column], "feature", None)

    def decode(self, logits: Sequence[Tensor], features: Sequence[Feature]) -> Answer:
        """Logits (length, labels) -> "tags", one a word, None for a word without a piece."""
        ids = logits[0].argmax(-1).tolist()
        starts = features[0]["word_starts"]
        return {"tags": [self.labels[ids[start]] if start >= 0 else None for start in starts]}

    def references(self, data: Dataset) -> list[Any]:
        check_columns(data, tags_column=self.tags_column)
        class_label = self._class_label(data)
        ids = (
            label_ids(_words(row), self.labels, self.tags_column, class_label)
            for row in data[self.tags_column]
        )
        return [[self.labels[i] for i in row] for row in ids]

    def score(self, answers: Sequence[Answer], references: Sequence[Any]) -> dict[str, float]:
        """Precision, recall and F1 of entities; a word without a tag counts as "O".

        Tags of no chunk scheme, such as parts of speech, count as an entity for every word.
        """
        chunks = all(label == "O" or label[:2] in _CHUNK_PREFIXES for label in self.labels)
        prefix = "" if chunks else "B-"
        expected = [[prefix + tag for tag in row] for row in references]
        given = [[prefix + tag if tag else "O" for tag in answer["tags"]] for answer in answers]
        return {
            "precision": float(precision_score(expected, given, zero_division=0)),
            "recall": float(recall_score(expected, given, zero_division=0)),
            "f1": float(f1_score(expected, given, zero_division=0)),
        }

    def majority(self, references: Sequence[Any]) -> dict[str, float]:
        ((commonest, _),) = Counter(tag for row in references for tag in row).most_common(1)
        return self.score([{"tags": [commonest] * len(row)} for row in references], references)


def _words(row: Any) -> list[Any]:
    return row.split() if isinstance(row, str) else list(row)


def _check_lengths(words: list[list[Any]], tags: list[list[Any]]) -> None:
    for row, (own, given) in enumerate(zip(words, tags, strict=True)):
        if len(own) != len(given):
            raise ValueError(
                f"tags_column: expected one tag a word, but example {row} has {len(own)} words "
                f"and {len(given)} tags"
            )


def _word_starts(word_ids: list[int | None], n_words: int) -> list[int]:
    starts = [-1] * n_words
    for position, word in reversed(list(enumerate(word_ids))):
        if word is not None:
            starts[word] = position
    return starts

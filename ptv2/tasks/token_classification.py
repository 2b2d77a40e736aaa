"""Token classification: one tag for every word, such as named entities or slots."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from datasets import Dataset
from seqeval.metrics import f1_score, precision_score, recall_score
from torch import Tensor
from transformers import DataCollatorForTokenClassification

from ..heads import IGNORED
from .data import check_columns, label_ids, label_names
from .task import Collator, Ids, Task
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
    best_metric: ClassVar[str] = "f1"

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

    def collator(self) -> Collator:
        # The method, not the object: a Trainer saves the tokenizer of an object that has one.
        return DataCollatorForTokenClassification(self.tokenizer).__call__

    def predictions(self, logits: Tensor) -> Tensor:
        """(..., length, num_labels) -> tag ids, (..., length)."""
        return logits.argmax(-1)

    def decode(self, logits: Tensor, feature: dict[str, Any]) -> dict[str, Any]:
        """One row of logits, (length, num_labels) -> "tags", one a word, None for a lost word."""
        ids = logits.argmax(-1).tolist()
        return {"tags": [self.labels[ids[i]] if i >= 0 else None for i in feature["word_starts"]]}

    def score(self, predictions: Ids, references: Ids) -> dict[str, float]:
        """Precision, recall and F1 of entities, from tag ids (examples, length), -100 left out.

        Tags of no chunk scheme, such as parts of speech, count as an entity for every word.
        """
        chunks = all(label == "O" or label[:2] in _CHUNK_PREFIXES for label in self.labels)
        names = self.labels if chunks else [f"B-{label}" for label in self.labels]
        kept = [np.asarray(row) != IGNORED for row in references]
        expected, given = (
            [
                [names[i] for i in np.asarray(row)[keep]]
                for row, keep in zip(rows, kept, strict=True)
            ]
            for rows in (references, predictions)
        )
        return {
            "precision": float(precision_score(expected, given, zero_division=0)),
            "recall": float(recall_score(expected, given, zero_division=0)),
            "f1": float(f1_score(expected, given, zero_division=0)),
        }

    def majority(self, references: Ids) -> dict[str, float]:
        tags = np.concatenate([np.asarray(row) for row in references])
        commonest = np.bincount(tags[tags != IGNORED]).argmax()
        return self.score([np.full(len(row), commonest) for row in references], references)


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

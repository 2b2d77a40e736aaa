"""Token classification: one tag for every word, such as named entities or slots."""

import logging
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any, ClassVar, Self

from datasets import Dataset
from seqeval.metrics import f1_score, precision_score, recall_score
from torch import Tensor

from ..heads import IGNORED
from .data import check_columns, example, label_ids, label_names
from .task import Answer, Feature, Task
from .tokens import CHUNK, progress, token_limit

_CHUNK_TAG = re.compile("O|[BIESLU](-.*)?")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenClassification(Task):
    """Words with a tag each, read at the word's first piece; other pieces have the label -100.

    A sentence that is too long is read in windows, each word in the one that shows most of what
    is around it; there alone it has its label.

    Args:
        tokens_column, tags_column: where the data keeps the words and their tags, as lists, or as
            text with a space between the words (as CSV files do).
        stride: tokens that neighbouring windows share; at most half a window.
    """

    tokens_column: str = "tokens"
    tags_column: str = "tags"
    stride: int = 64

    kind: ClassVar[str] = "token-classification"
    metric: ClassVar[str] = "f1"
    token_labels: ClassVar[bool] = True

    def fit_labels(self, *parts: Dataset) -> Self:
        for part in parts:
            check_columns(part, tags_column=self.tags_column)
        tags = [tag for part in parts for row in part[self.tags_column] for tag in _words(row)]
        return replace(self, labels=label_names(tags, self._class_label(parts[0])))

    def prepare(self, data: Dataset, labelled: bool = True) -> Dataset:
        """A feature a window, with "word_starts": each word's first piece, -1 for a word without
        one or one that is read in another window."""
        check_columns(data, tokens_column=self.tokens_column)
        words = [_words(row) for row in data[self.tokens_column]]
        if not labelled:
            return self.prepare_inputs(words)
        check_columns(data, tags_column=self.tags_column)
        tags = [_words(row) for row in data[self.tags_column]]
        _check_lengths(data, words, tags)
        features = self._encode(words)
        features["labels"] = self._align(features, self._tag_ids(data))
        return Dataset.from_dict(features)

    def prepare_inputs(self, inputs: Sequence[str | list[str]]) -> Dataset:
        """Features of lists of words, or of texts, which are split at their spaces."""
        return Dataset.from_dict(self._encode([_words(row) for row in inputs]))

    def _encode(self, words: list[list[str]]) -> dict[str, list[Any]]:
        features: dict[str, list[Any]] = {"example": [], "word_starts": []}
        limit = token_limit(self.tokenizer, self.max_length)
        room = limit - self.tokenizer.num_special_tokens_to_add()
        if room < 1:
            raise ValueError(f"max_length: expected at least {limit - room + 1}, got {limit}")
        stride = min(self.stride, room // 2)
        for first in progress(range(0, len(words), CHUNK), "tokenising"):
            encoded = self.tokenizer(
                words[first : first + CHUNK],
                is_split_into_words=True,
                truncation=True,
                max_length=limit,
                stride=stride,
                return_overflowing_tokens=True,
            )
            places = [first + place for place in encoded.pop("overflow_to_sample_mapping")]
            features["example"] += places
            for name, rows in encoded.items():
                features.setdefault(name, []).extend(rows)
            for place, group in groupby(
                zip(places, encoded.encodings, strict=True), key=itemgetter(0)
            ):
                windows = [encoding.word_ids for _, encoding in group]
                starts = _word_starts(windows, len(words[place]), room - stride)
                features["word_starts"] += starts
        lost = sum(map(len, words)) - sum(
            start >= 0 for starts in features["word_starts"] for start in starts
        )
        if lost:
            logger.warning("%d words have no word piece: they get no tag", lost)
        return features

    def _tag_ids(self, data: Dataset) -> list[list[int]]:
        check_columns(data, tags_column=self.tags_column)
        known = (self.labels, self.tags_column, self._class_label(data))
        return [
            label_ids(_words(row), *known, data, place)
            for place, row in enumerate(data[self.tags_column])
        ]

    def _align(self, features: dict[str, list[Any]], ids: list[list[int]]) -> list[list[int]]:
        """A label a token: a word's where the word is read, else -100."""
        aligned = []
        for tokens, starts, place in zip(
            features["input_ids"], features["word_starts"], features["example"], strict=True
        ):
            labels = [IGNORED] * len(tokens)
            for start, label in zip(starts, ids[place], strict=True):
                if start >= 0:
                    labels[start] = label
            aligned.append(labels)
        return aligned

    def _class_label(self, data: Dataset) -> Any:
        return getattr(data.features[self.tags_column], "feature", None)

    def decode(self, logits: Sequence[Tensor], features: Sequence[Feature]) -> Answer:
        """Logits (length, labels) of every window -> "tags", one a word, None for a word without
        a piece."""
        tags: list[str | None] = [None] * len(features[0]["word_starts"])
        for window, feature in zip(logits, features, strict=True):
            ids = window.argmax(-1).tolist()
            for word, start in enumerate(feature["word_starts"]):
                if start >= 0:
                    tags[word] = self.labels[ids[start]]
        return {"tags": tags}

    def references(self, data: Dataset) -> list[Any]:
        return [[self.labels[i] for i in row] for row in self._tag_ids(data)]

    def score(self, answers: Sequence[Answer], references: Sequence[Any]) -> dict[str, float]:
        """Precision, recall and F1 of entities; a word without a tag counts as "O".

        Entities are read as conlleval does (IOB1, IOB2, IO), with the ends and single words that
        IOBES and BILOU mark. Tags of no such scheme, as parts of speech, count as an entity for
        every word.
        """
        chunks = all(_CHUNK_TAG.fullmatch(label) for label in self.labels)
        expected = [[_scored(tag, chunks) for tag in row] for row in references]
        given = [[_scored(tag, chunks) for tag in answer["tags"]] for answer in answers]
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


def _check_lengths(data: Dataset, words: list[list[Any]], tags: list[list[Any]]) -> None:
    for place, (own, given) in enumerate(zip(words, tags, strict=True)):
        if len(own) != len(given):
            raise ValueError(
                f"tags_column: expected one tag a word, but {example(data, place)} has "
                f"{len(own)} words and {len(given)} tags"
            )


def _word_starts(windows: list[list[int | None]], n_words: int, step: int) -> list[list[int]]:
    """Where each word is read in each window of a sentence; -1 for nowhere there.

    Args:
        windows: the word of each token, None for special tokens.
        step: how many tokens the next window begins later.
    """
    pieces: dict[int, dict[int, tuple[int, int]]] = {}  # word: token: the best (margin, window)
    positions: dict[tuple[int, int], int] = {}
    for window, word_ids in enumerate(windows):
        inside = [(position, word) for position, word in enumerate(word_ids) if word is not None]
        for place, (position, word) in enumerate(inside):
            left = place if window > 0 else sys.maxsize
            right = len(inside) - 1 - place if window < len(windows) - 1 else sys.maxsize
            seen = (min(left, right), -window)
            of_word = pieces.setdefault(word, {})
            token = window * step + place
            of_word[token] = max(seen, of_word.get(token, seen))
            positions[window, token] = position
    starts = [[-1] * n_words for _ in windows]
    for word, of_word in pieces.items():
        token = min(of_word)
        window = -of_word[token][1]
        starts[window][word] = positions[window, token]
    return starts


def _scored(tag: str | None, chunks: bool) -> str:
    """A tag as seqeval reads it, which knows E and S but not BILOU's L and U."""
    if tag is None:
        return "O"
    if not chunks:
        return f"B-{tag}"
    return {"L": "E", "U": "S"}.get(tag[0], tag[0]) + tag[1:]

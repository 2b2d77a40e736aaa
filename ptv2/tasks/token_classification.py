"""Token classification: one tag for every word, such as named entities or slots."""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, ClassVar, Self

from datasets import Dataset
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..heads import IGNORED
from .data import check_columns, check_labels, common_labels, example, label_ids
from .task import Answer, Feature, Task, rows_of
from .tokens import CHUNK, progress, token_limit

_CHUNK_TAG = re.compile("O|[BIESLUM](-.*)?")

_WORD = re.compile(r"[^ \t\r\n]+")

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

    def __post_init__(self) -> None:
        if type(self.stride) is not int or self.stride < 0:
            raise ValueError(f"stride: expected an int of at least 0, got {self.stride!r}")

    def fit_labels(self, *parts: Dataset) -> Self:
        tags = [(list(chain.from_iterable(self._tags(part))), part) for part in parts]
        labels = self.labels or common_labels(
            "tags_column", [(own, self._class_label(part)) for own, part in tags]
        )
        if not labels:
            raise ValueError("tags_column: expected at least one tag, got none")
        _entity_prefix(labels)
        return replace(self, labels=labels)

    def prepare(self, data: Dataset, labelled: bool = True) -> Dataset:
        """A feature a window, with "word_starts": the first piece of each word that is read there,
        -1 for a word without a piece. The windows of a sentence share out its words in order."""
        words = _rows(data, "tokens_column", self.tokens_column)
        for row, own in enumerate(words):
            if not all(isinstance(word, str) for word in own):
                raise ValueError(
                    f"tokens_column: expected words, got {own!r} in {example(data, row)}"
                )
        ids = self._tag_ids(data) if labelled else None
        features = self._encode(words)
        if ids is not None:
            features["labels"] = _align(features, ids)
        return Dataset.from_dict(features)

    def prepare_inputs(self, inputs: Sequence[str | list[str]]) -> list[Feature]:
        """Features of lists of words, or of texts, which are split at their spaces."""
        for row in inputs:
            if isinstance(row, str):
                continue
            if not isinstance(row, list | tuple) or not all(isinstance(word, str) for word in row):
                raise ValueError(f"inputs: expected texts or lists of words, got {row!r}")
        return rows_of(self._encode([_words(row) for row in inputs]))

    def _encode(self, words: list[list[str]]) -> dict[str, list[Any]]:
        features: dict[str, list[Any]] = {"example": [], "word_starts": []}
        limit = token_limit(self.tokenizer, self.max_length, pair=False)
        if self.tokenizer.truncation_side != "right":
            raise ValueError("tokenizer: expected one that truncates on the right, got the left")
        room = limit - self.tokenizer.num_special_tokens_to_add()
        stride = min(self.stride, room // 2)
        space = _space(self.tokenizer)
        for first in progress(range(0, len(words), CHUNK), "tokenising"):
            encoded = self.tokenizer(
                [
                    [space + word if word else word for word in row]
                    for row in words[first : first + CHUNK]
                ],
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
                features["word_starts"] += _word_starts(windows, len(words[place]))
        lost = sum(starts.count(-1) for starts in features["word_starts"])
        if lost:
            logger.warning("%d words have no word piece: they get no tag", lost)
        return features

    def _tags(self, data: Dataset) -> list[list[Any]]:
        tags = _rows(data, "tags_column", self.tags_column)
        check_labels(data, "tags_column", tags, self.labels)
        return tags

    def _tag_ids(self, data: Dataset) -> list[list[int]]:
        """The label of each word, of which there are as many as words."""
        tags = self._tags(data)
        words = _rows(data, "tokens_column", self.tokens_column)
        for row, (own, given) in enumerate(zip(words, tags, strict=True)):
            if len(own) != len(given):
                raise ValueError(
                    f"tags_column: expected one tag a word, but {example(data, row)} has "
                    f"{len(own)} words and {len(given)} tags"
                )
        known = (self.labels, self.tags_column, self._class_label(data))
        return [label_ids(own, *known, data, row) for row, own in enumerate(tags)]

    def _class_label(self, data: Dataset) -> Any:
        return getattr(data.features[self.tags_column], "feature", None)

    def decode(self, logits: Sequence[Tensor], features: Sequence[Feature]) -> Answer:
        """Logits (length, labels) of every window -> "tags", one a word, None for a word without
        a piece."""
        tags: list[str | None] = []
        for window, feature in zip(logits, features, strict=True):
            ids = window.argmax(-1).tolist()
            tags += [self.labels[ids[i]] if i >= 0 else None for i in feature["word_starts"]]
        return {"tags": tags}

    def tag_scores(
        self, logits: Sequence[Tensor], features: Sequence[Feature]
    ) -> list[tuple[str, float] | None]:
        """Each word's tag and its probability; None for a word without a piece."""
        found: list[tuple[str, float] | None] = []
        for window, feature in zip(logits, features, strict=True):
            probabilities, ids = window.float().softmax(-1).max(-1)
            pairs = [
                (self.labels[label], probability)
                for label, probability in zip(ids.tolist(), probabilities.tolist(), strict=True)
            ]
            found += [pairs[i] if i >= 0 else None for i in feature["word_starts"]]
        return found

    def references(self, data: Dataset) -> list[Any]:
        return [[self.labels[i] for i in row] for row in self._tag_ids(data)]

    def score(self, answers: Sequence[Answer], references: Sequence[Any]) -> dict[str, float]:
        """Precision, recall and F1 of entities; a word without a tag counts as "O".

        The labels say which words make an entity:

        - all are "O" or begin with B, I, E, S, L, U or M, alone or before a "-": chunks, read as
          conlleval does. An entity begins at B, S or U, ends at E, L, S or U, and begins or ends
          where the type changes or "O" stands, in sequences of tags that fit together or not.
          This is right for IOB1, IOB2, IO, IOBES, BILOU and BMES.
        - "O" and others: types; neighbours of one type are an entity.
        - others alone, as parts of speech: every word is an entity.

        Raises:
            ValueError: some tags are chunks that begin with "B-" or "I-", and others are not.
        """
        prefix = _entity_prefix(self.labels)
        expected = [[_scored(tag, prefix) for tag in row] for row in references]
        given = [[_scored(tag, prefix) for tag in answer["tags"]] for answer in answers]
        return {
            "precision": float(precision_score(expected, given, zero_division=0)),
            "recall": float(recall_score(expected, given, zero_division=0)),
            "f1": float(f1_score(expected, given, zero_division=0)),
        }

    def entities(self, tags: Sequence[str | None]) -> list[tuple[str, int, int]]:
        """The entities that `score` counts: the type of each, "" if the tags name none, its first
        word and its last."""
        prefix = _entity_prefix(self.labels)
        found = get_entities([_scored(tag, prefix) for tag in tags])
        return [("" if kind == "_" else kind, first, last) for kind, first, last in found]

    def majority(self, references: Sequence[Any]) -> dict[str, float]:
        counts = Counter(tag for row in references for tag in row)
        commonest = max(counts, key=counts.__getitem__, default=None)
        return self.score([{"tags": [commonest] * len(row)} for row in references], references)


def _words(row: Any) -> list[Any]:
    """A list as it is, and a text split at ASCII whitespace: U+00A0 and U+0085 stand in words."""
    return _WORD.findall(row) if isinstance(row, str) else list(row)


def _space(tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands before a word: a space if the tokenizer has other pieces for words without.

    Byte-level tokenizers, such as RoBERTa's, see the spaces of a text but none in a list of words.
    """
    text = tokenizer("a a", add_special_tokens=False)["input_ids"]
    words = tokenizer(["a", "a"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    return "" if words[-1:] == text[-1:] else " "


def _rows(data: Dataset, argument: str, column: str) -> list[list[Any]]:
    """The words or tags of each example."""
    check_columns(data, **{argument: column})
    rows = []
    for row, value in enumerate(data[column]):
        if not isinstance(value, str | list):
            raise ValueError(
                f"{argument}: expected a list or a text, got {value!r} in {example(data, row)}"
            )
        rows.append(_words(value))
    return rows


def _align(features: dict[str, list[Any]], ids: list[list[int]]) -> list[list[int]]:
    """The label of every token of every window; -100 where no word is read."""
    aligned = []
    words = chain.from_iterable(ids)
    for tokens, starts in zip(features["input_ids"], features["word_starts"], strict=True):
        labels = [IGNORED] * len(tokens)
        for start in starts:
            label = next(words)
            if start >= 0:
                labels[start] = label
        aligned.append(labels)
    return aligned


def _word_starts(windows: Sequence[Sequence[int | None]], n_words: int) -> list[list[int]]:
    """The first piece of each word, in the window where it is furthest from the nearer end.

    A word whose pieces go on into a window stands at that window's very start, which is no
    further from an end than its first piece is elsewhere; so the earlier of two equal windows is
    the one.

    Args:
        windows: the word of each token, None for special tokens; from left to right.

    Returns:
        The places of the words that are read in each window, -1 for a word without a piece.
    """
    best = [(-1, 0, -1)] * n_words  # distance to the nearer end, -window, place
    for window, word_ids in enumerate(windows):
        inside = [(place, word) for place, word in enumerate(word_ids) if word is not None]
        seen = None
        for place, word in inside:
            if word != seen:
                distance = min(place - inside[0][0], inside[-1][0] - place)
                best[word] = max(best[word], (distance, -window, place))
            seen = word
    starts: list[list[int]] = [[] for _ in windows]
    window = 0
    for _, earlier, place in best:
        window = -earlier if place >= 0 else window
        starts[window].append(place)
    return starts


def _entity_prefix(labels: Sequence[str]) -> str:
    """What a tag lacks to be a chunk's; "" for tags that are."""
    others = [label for label in labels if not _CHUNK_TAG.fullmatch(label)]
    chunks = [label for label in labels if label.startswith(("B-", "I-"))]
    if others and chunks:
        raise ValueError(
            "tags_column: expected chunks alone, O or beginning with one of B, I, E, S, L, U, M "
            f"and '-', or other tags alone, got {chunks[0]!r} and {others[0]!r}"
        )
    if not others:
        return ""
    return "I-" if "O" in labels else "B-"


def _scored(tag: str | None, prefix: str) -> str:
    """A tag as seqeval reads it, which knows E, S and I but not L, U and M."""
    if tag is None or tag == "O":
        return "O"
    if prefix:
        return prefix + tag
    return {"L": "E", "U": "S", "M": "I"}.get(tag[0], tag[0]) + tag[1:]

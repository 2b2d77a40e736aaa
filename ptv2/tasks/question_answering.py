"""Extractive question answering: the span of a context that answers a question."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from datasets import Dataset
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from tokenizers import Encoding
from torch import Tensor

from . import squad
from .data import check_columns, example
from .task import Answer, Feature, Task
from .tokens import CHUNK, progress, token_limit

OUTSIDE = -1
"""The offset of a token that is not of the context."""


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """Questions and contexts in the form of SQuAD; a long context is read in windows.

    Args:
        question_column, context_column: where the data keeps the texts.
        answers_column: where it keeps {"text": [...], "answer_start": [...]}, the right answers
            and the characters where they begin; both empty where there is none. The first is
            trained on.
        stride: tokens of the context that neighbouring windows share; at most half the room.
        max_answer_length: longest answer in tokens.
        n_best: how many of the best spans share the probability.
        no_answer: whether "" may be the answer, as in SQuAD 2.0; `fit_labels` sets it.
        null_threshold: "" is the answer if its logits exceed the best span's by more than this.
    """

    question_column: str = "question"
    context_column: str = "context"
    answers_column: str = "answers"
    stride: int = 128
    max_answer_length: int = 30
    n_best: int = 20
    no_answer: bool = False
    null_threshold: float = 0.0

    kind: ClassVar[str] = "question-answering"
    metric: ClassVar[str] = "f1"
    label_columns: ClassVar[tuple[str, ...]] = ("start_positions", "end_positions")
    prompt_fields: ClassVar[tuple[str, ...]] = ("no_answer",)

    def __post_init__(self) -> None:
        for name, least in (("stride", 0), ("max_answer_length", 1), ("n_best", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")

    def fit_labels(self, *parts: Dataset) -> Self:
        found = [answers for part in parts for answers in self.references(part)]
        return replace(self, no_answer=not all(found))

    def prepare(self, data: Dataset, labelled: bool = True) -> Dataset:
        """A feature a window: model inputs, the context and each token's "offsets" in it."""
        columns = {"question_column": self.question_column, "context_column": self.context_column}
        check_columns(data, **columns)
        questions, contexts = ([str(text) for text in data[column]] for column in columns.values())
        features = self._windows(questions, contexts)
        if labelled:
            spans = self._spans(data, contexts)
            places = [
                _token_span(np.asarray(offsets), spans[example])
                for offsets, example in zip(features["offsets"], features["example"], strict=True)
            ]
            features["start_positions"] = [start for start, _ in places]
            features["end_positions"] = [end for _, end in places]
        return Dataset.from_dict(features)

    def prepare_inputs(self, inputs: Sequence[tuple[str, str]]) -> Dataset:
        """Features of (question, context) pairs."""
        if any(isinstance(pair, str) or len(pair) != 2 for pair in inputs):
            raise ValueError("inputs: expected pairs of a question and a context")
        questions, contexts = (list(column) for column in zip(*inputs, strict=True))
        return Dataset.from_dict(self._windows(questions, contexts))

    def _windows(self, questions: list[str], contexts: list[str]) -> dict[str, list[Any]]:
        limit = token_limit(self.tokenizer, self.max_length)
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        names = self.tokenizer.model_input_names
        features: dict[str, list[Any]] = {
            name: [] for name in (*names, "example", "offsets", "context")
        }
        for first in progress(range(0, len(questions), CHUNK), "tokenising"):
            asked = [question.lstrip() for question in questions[first : first + CHUNK]]
            own = self.tokenizer(asked, add_special_tokens=False, verbose=False)["input_ids"]
            for place, question in enumerate(asked, start=first):
                room = limit - special - len(own[place - first])
                if room < 2:
                    raise ValueError(
                        f"question_column: example {place} has {len(own[place - first])} tokens, "
                        f"which leave no room for a context in {limit}"
                    )
                encoded = self.tokenizer(
                    question,
                    contexts[place],
                    truncation="only_second",
                    max_length=limit,
                    stride=min(self.stride, room // 2),
                    return_overflowing_tokens=True,
                )
                for window, encoding in enumerate(encoded.encodings):
                    for name in names:
                        features[name].append(encoded[name][window])
                    features["example"].append(place)
                    features["offsets"].append(_context_offsets(encoding))
                    features["context"].append(contexts[place])
        return features

    def _spans(self, data: Dataset, contexts: list[str]) -> list[tuple[int, int] | None]:
        """The characters of each example's first answer; None for none."""
        check_columns(data, answers_column=self.answers_column)
        spans: list[tuple[int, int] | None] = []
        for place, (answers, context) in enumerate(
            zip(data[self.answers_column], contexts, strict=True)
        ):
            texts, starts = _texts(answers, example(data, place)), answers["answer_start"]
            if not texts:
                spans.append(None)
                continue
            start, end = starts[0], starts[0] + len(texts[0])
            if not texts[0] or context[start:end] != texts[0]:
                raise ValueError(
                    f"answers_column: expected the answer {texts[0]!r} of {example(data, place)} "
                    f"at character {start} of its context, got {context[start:end]!r}"
                )
            spans.append((start, end))
        return spans

    def decode(self, logits: Sequence[Tensor], features: Sequence[Feature]) -> Answer:
        """Logits (length, 2) of every window -> the best span.

        Returns:
            "answer", cut from the context at the characters "start" and "end", and "score", its
            share of the probability of the `n_best` spans. If there may be no answer, "null" is
            how much the logits of that exceed the best span's; the answer then may be "", whose
            "start" and "end" are None.
        """
        scores = [row.float().numpy() for row in logits]
        spans: dict[tuple[int, int], float] = {}
        for row, feature in zip(scores, features, strict=True):
            for score, start, end in self._best_spans(row, np.asarray(feature["offsets"])):
                spans[start, end] = max(score, spans.get((start, end), score))
        ranked = sorted(spans.items(), key=lambda item: -item[1])[: self.n_best]
        values = [score for _, score in ranked]
        null = min(float(row[0].sum()) for row in scores)
        if self.no_answer or not ranked:
            values.append(null)
        shares = torch.softmax(torch.tensor(values), 0).tolist()
        found: Answer = {"answer": "", "score": round(shares[-1], 4), "start": None, "end": None}
        margin = null - values[0]
        if ranked and not (self.no_answer and margin > self.null_threshold):
            (start, end), _ = ranked[0]
            text = features[0]["context"][start:end]
            found = {"answer": text, "score": round(shares[0], 4), "start": start, "end": end}
        return found | ({"null": round(margin, 4)} if self.no_answer else {})

    def _best_spans(
        self, scores: NDArray[Any], offsets: NDArray[Any]
    ) -> list[tuple[float, int, int]]:
        """(score, first character, end) of the best spans of a window, which has (length, 2)."""
        inside = np.flatnonzero(offsets[:, 0] != OUTSIDE)
        if not len(inside):
            return []
        starts, ends = scores[inside, 0], scores[inside, 1]
        beyond = np.full(self.max_answer_length - 1, -np.inf, ends.dtype)
        windows = sliding_window_view(np.concatenate((ends, beyond)), self.max_answer_length)
        sums = (starts[:, None] + windows).ravel()  # of start i and end i + j at i, j
        best = np.argsort(-sums, kind="stable")[: self.n_best]
        best = best[np.isfinite(sums[best])]
        first, more = np.divmod(best, self.max_answer_length)
        return [
            (float(sums[k]), int(offsets[inside[i], 0]), int(offsets[inside[i + j], 1]))
            for k, i, j in zip(best, first, more, strict=True)
        ]

    def references(self, data: Dataset) -> list[Any]:
        """The texts of the right answers; none where there is no answer."""
        check_columns(data, answers_column=self.answers_column)
        return [
            _texts(answers, example(data, place))
            for place, answers in enumerate(data[self.answers_column])
        ]

    def score(self, answers: Sequence[Answer], references: Sequence[Any]) -> dict[str, float]:
        """Exact match and F1 as SQuAD's scripts define them."""
        return squad.scores([answer["answer"] for answer in answers], references)

    def majority(self, references: Sequence[Any]) -> dict[str, float]:
        """The scores of always giving the text that most questions have as first answer."""
        firsts = Counter(texts[0] if texts else "" for texts in references)
        ((commonest, _),) = firsts.most_common(1)
        return squad.scores([commonest] * len(references), references)


def _context_offsets(encoding: Encoding) -> list[tuple[int, int]]:
    """The characters of each token of the context; OUTSIDE for the others."""
    return [
        offsets if sequence == 1 else (OUTSIDE, OUTSIDE)
        for offsets, sequence in zip(encoding.offsets, encoding.sequence_ids, strict=True)
    ]


def _token_span(offsets: NDArray[Any], span: tuple[int, int] | None) -> tuple[int, int]:
    """First and last token of characters; (0, 0) if there are none or not all in the window."""
    inside = np.flatnonzero(offsets[:, 0] != OUTSIDE)
    if span is None or not len(inside):
        return 0, 0
    starts, ends = offsets[inside, 0], offsets[inside, 1]
    if span[0] < starts[0] or span[1] > ends[-1]:
        return 0, 0
    first = np.searchsorted(starts, span[0], side="right") - 1
    last = np.searchsorted(ends, span[1], side="left")
    return int(inside[first]), int(inside[max(first, last)])


def _texts(answers: Any, where: str) -> list[str]:
    try:
        texts, starts = list(answers["text"]), list(answers["answer_start"])
    except (KeyError, TypeError):
        raise ValueError(
            f'answers_column: expected {{"text": [...], "answer_start": [...]}}, '
            f"got {answers!r} in {where}"
        ) from None
    if len(texts) != len(starts):
        raise ValueError(
            f"answers_column: expected one answer_start a text, got {len(starts)} and "
            f"{len(texts)} in {where}"
        )
    return texts

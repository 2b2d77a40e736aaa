"""Extractive question answering: the span of a context that answers a question."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, ClassVar, Self

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from ..heads import IGNORED
from .contexts import encode_contexts
from .data import check_columns, example, texts_of
from .squad import best_thresholds, squad_scores
from .task import Answer, Feature, Task, by_example

NO_ANSWER = 0
"""The position that stands for no answer in a window: its first token."""

Indices = NDArray[np.intp]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """Questions, each answered by a span of its context, or by none.

    Args:
        question_column, context_column, answers_column: where the data keeps its fields; answers
            as in SQuAD: {"text": [...], "answer_start": [...]}, starts counted in characters.
        stride: tokens that the windows of a long context share, at most half of those that the
            question leaves for the context.
        max_windows: windows at most of all contexts that are prepared at once. None: any number.
        max_answer_length: tokens of an answer at most.
        n_best: how many spans share the probability of an answer.
        no_answer: whether a question may have no answer; `fit_labels` sets it if one has none.
        null_threshold: with `no_answer`, how far the score of no answer must exceed that of the
            best span.

    Raises:
        ValueError: a number is out of its range.
    """

    question_column: str = "question"
    context_column: str = "context"
    answers_column: str = "answers"
    stride: int = 128
    max_windows: int | None = None
    max_answer_length: int = 30
    n_best: int = 20
    no_answer: bool = False
    null_threshold: float = 0.0

    kind: ClassVar[str] = "question-answering"
    metric: ClassVar[str] = "f1"
    prompt_fields: ClassVar[tuple[str, ...]] = ("no_answer",)
    label_columns: ClassVar[tuple[str, ...]] = ("start_positions", "end_positions")

    def __post_init__(self) -> None:
        for name, least in (("stride", 0), ("max_answer_length", 1), ("n_best", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name}: expected an int of at least {least}, got {value!r}")
        most = self.max_windows
        if most is not None and (type(most) is not int or most < 1):
            raise ValueError(f"max_windows: expected None or an int of at least 1, got {most!r}")
        if not math.isfinite(self.null_threshold):
            raise ValueError(
                f"null_threshold: expected a finite number, got {self.null_threshold!r}"
            )

    def fit_labels(self, *parts: Dataset) -> Self:
        """This task, with `no_answer` if a question of the data has no answer."""
        unanswered = any(not texts for part in parts for texts in self.references(part))
        return replace(self, no_answer=self.no_answer or unanswered)

    def prepare(self, data: Dataset, labelled: bool = True) -> Dataset:
        """Features, one a window of a context; see `encode_contexts`.

        An answer is trained in every window that holds all of it, on the tokens that it touches;
        other windows point to their first token. If no window holds all of it, none is trained:
        their labels are -100. Of several answers the first is trained.
        """
        questions = texts_of(data, "question_column", self.question_column)
        contexts = texts_of(data, "context_column", self.context_column)
        windows = self._encode(questions, contexts, partial(example, data))
        if labelled:
            self._add_labels(windows, self._answers(data), partial(example, data))
        return Dataset.from_list(windows)

    def prepare_inputs(self, inputs: Sequence[tuple[str, str]]) -> list[Feature]:
        """Features of (question, context)s."""
        for place, pair in enumerate(inputs):
            if not isinstance(pair, list | tuple) or [type(text) for text in pair] != [str] * 2:
                raise ValueError(
                    f"inputs: expected (question, context)s, got {pair!r} at place {place}"
                )
        return self._encode(
            [question for question, _ in inputs],
            [context for _, context in inputs],
            "example {}".format,
        )

    def _encode(
        self, questions: Sequence[str], contexts: Sequence[str], where: Callable[[int], str]
    ) -> list[Feature]:
        limits = self.max_length, self.stride, self.max_windows
        return encode_contexts(self.tokenizer, *limits, questions, contexts, where)

    def _add_labels(
        self,
        windows: list[Feature],
        answers: list[list[tuple[int, str]]],
        where: Callable[[int], str],
    ) -> None:
        lost = 0
        for group in by_example(windows):
            place = group[0]["example"]
            if not answers[place] and not self.no_answer:
                raise ValueError(
                    f"{self.answers_column}: expected an answer, but {where(place)} has none "
                    f"and the task's no_answer is False"
                )
            spans = token_spans(group, *answers[place][:1])
            is_lost = bool(answers[place]) and not any(spans)
            other = (IGNORED, IGNORED) if is_lost else (NO_ANSWER, NO_ANSWER)
            for window, span in zip(group, spans, strict=True):
                window["start_positions"], window["end_positions"] = span or other
            lost += is_lost
        if lost:
            logger.warning("%d answers are whole in no window: they are not trained", lost)

    def decode(self, logits: Sequence[Tensor], features: Sequence[Feature]) -> Answer:
        """Logits (length, 2) of every window -> "answer", its place in the context and "score".

        "start" and "end" count characters of the context; no answer is "" with -1 for both. The
        score is the probability among the `n_best` spans of all windows and, with `no_answer`,
        none at all; "null" then is how far the score of none exceeds that of the best span, whose
        text is "span".
        """
        spans = best_spans(logits, features, self.max_answer_length, self.n_best)
        candidates, scores = list(spans), list(spans.values())
        chosen, margin = 0, {}
        text = features[0]["context"]
        if self.no_answer:
            null = min(float(window[NO_ANSWER].float().sum()) for window in logits)
            margin = {"null": round(null - scores[0], 4), "span": text[slice(*candidates[0])]}
            chosen = 0 if null - scores[0] <= self.null_threshold else -1
            candidates.append((-1, -1))
            scores.append(null)
        start, end = candidates[chosen]
        probability = torch.tensor(scores).softmax(-1)[chosen]
        return {
            "answer": text[start:end],
            "score": round(float(probability), 4),
            "start": start,
            "end": end,
            **margin,
        }

    def references(self, data: Dataset) -> list[Any]:
        """The accepted answers of each example; none for a question without an answer."""
        return [[text for _, text in answers] for answers in self._answers(data)]

    def _answers(self, data: Dataset) -> list[list[tuple[int, str]]]:
        """(start, text) of all answers of each example, checked against the context."""
        check_columns(data, context_column=self.context_column, answers_column=self.answers_column)
        rows = zip(data[self.answers_column], data[self.context_column], strict=True)
        return [
            self._checked(answers, str(context), partial(example, data, place))
            for place, (answers, context) in enumerate(rows)
        ]

    def _checked(
        self, answers: Any, context: str, where: Callable[[], str]
    ) -> list[tuple[int, str]]:
        column = self.answers_column
        try:
            pairs = list(zip(answers["answer_start"], answers["text"], strict=True))
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f'{column}: expected {{"text": [...], "answer_start": [...]}}, '
                f"but {where()} has {answers!r}"
            ) from None
        for start, text in pairs:
            valid = isinstance(start, int) and start >= 0 and isinstance(text, str) and text
            if not valid or not context.startswith(text, start):
                raise ValueError(
                    f"{column}: expected a part of the context, but {where()} has not "
                    f"{text!r} at character {start}"
                )
        return pairs

    def score(self, answers: Sequence[Answer], references: Sequence[Any]) -> dict[str, float]:
        """SQuAD's exact match and F1, from 0 to 1; see `squad_scores` and `best_thresholds`."""
        scores = squad_scores([answer["answer"] for answer in answers], references)
        margins = [answer.get("null", math.nan) for answer in answers]
        if not all(references) and all(map(math.isfinite, margins)):
            scores |= best_thresholds([x["span"] for x in answers], margins, references)
        return scores

    def majority(self, references: Sequence[Any]) -> dict[str, float]:
        """The scores of one text for all: the commonest, where no answer counts as the text ""."""
        texts = Counter(text for row in references for text in dict.fromkeys(row or [""]))
        ((commonest, _),) = texts.most_common(1)
        return self.score([{"answer": commonest}] * len(references), references)


def token_spans(
    windows: Sequence[Feature], answer: tuple[int, str] | None = None
) -> list[tuple[int, int] | None]:
    """The first and the last token that an answer touches in each window, None if it lacks some.

    What the tokenizer drops at an answer's ends, as spaces and combining accents, touches none.

    Args:
        windows: all of a context.
        answer: its first character in the context, and its text.
    """
    if answer is None:
        return [None] * len(windows)
    start, end = answer[0], answer[0] + len(answer[1])
    touched = []
    for places, starts, ends in map(_candidates, windows):
        inside = (starts < end) & (ends > start)
        touched.append((places[inside], starts[inside], ends[inside]))
    first = min((starts[0] for _, starts, _ in touched if len(starts)), default=0)
    last = max((ends[-1] for _, _, ends in touched if len(ends)), default=0)
    return [
        (int(places[0]), int(places[-1]))
        if len(places) and starts[0] == first and ends[-1] == last
        else None
        for places, starts, ends in touched
    ]


def _candidates(window: Feature) -> tuple[Indices, Indices, Indices]:
    """The tokens of the context that have a text: their places, starts and ends."""
    starts, ends = np.array(window["token_starts"]), np.array(window["token_ends"])
    places = np.flatnonzero(starts < ends)
    return places, starts[places], ends[places]


def _pairs(places: Indices, longest: int) -> tuple[Indices, Indices]:
    """All pairs of ascending places, as indices, that are less than `longest` apart."""
    first = np.arange(len(places))[:, None]
    last = first + np.arange(min(longest, len(places)))
    near = places[np.minimum(last, len(places) - 1)] - places[:, None] < longest
    rows, columns = np.nonzero((last < len(places)) & near)
    return rows, last[rows, columns]


def best_spans(
    logits: Sequence[Tensor], windows: Sequence[Feature], max_answer_length: int, n_best: int
) -> dict[tuple[int, int], float]:
    """The spans of a context with the highest scores, the best first.

    A span has two tokens of the context as its ends, of one window and in order, and at most
    `max_answer_length` tokens. Its score is the sum of its start's and its end's logit; one that
    several windows show keeps its best.

    Args:
        logits: (length, 2) of each window.
        windows: of one example.

    Returns:
        Scores by the first character of the span and the one after its last.
    """
    scores, edges = [], []
    for window_logits, window in zip(logits, windows, strict=True):
        places, starts, ends = _candidates(window)
        if not len(places):
            continue
        start_logits, end_logits = window_logits.float().numpy()[places].T
        first, last = _pairs(places, max_answer_length)
        span_scores = start_logits[first] + end_logits[last]
        top = np.argpartition(-span_scores, min(n_best, len(first)) - 1)[:n_best]
        scores.append(span_scores[top])
        edges.append(np.stack((starts[first[top]], ends[last[top]]), axis=-1))
    values, spans = np.concatenate(scores), np.concatenate(edges)
    best: dict[tuple[int, int], float] = {}
    for place in np.argsort(-values, kind="stable"):
        start, end = spans[place].tolist()
        best.setdefault((start, end), float(values[place]))
    return dict(islice(best.items(), n_best))

"""Multiple choice: which of several continuations or answers is right."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from datasets import Dataset
from sklearn.metrics import accuracy_score
from torch import Tensor

from .data import as_text, check_columns, example, texts_of
from .task import Answer, Feature, Task, rows_of
from .tokens import encode


@dataclass(frozen=True)
class MultipleChoice(Task):
    """Questions with a list of choices each; every choice is read with its question.

    Args:
        question_column, choices_column: where the data keeps the question and the list.
        label_column: where it keeps the number of the right choice, counted from 0, also as text.
    """

    question_column: str = "question"
    choices_column: str = "choices"
    label_column: str = "label"

    kind: ClassVar[str] = "multiple-choice"
    metric: ClassVar[str] = "accuracy"

    def prepare(self, data: Dataset, labelled: bool = True) -> Dataset:
        """A feature a question, whose model inputs are lists with an entry a choice."""
        questions = texts_of(data, "question_column", self.question_column)
        check_columns(data, choices_column=self.choices_column)
        features = self._encode(questions, data[self.choices_column][:], partial(example, data))
        if labelled:
            features["labels"] = self.references(data)
        return Dataset.from_dict(features)

    def prepare_inputs(self, inputs: Sequence[tuple[str, Sequence[str]]]) -> list[Feature]:
        """Features of (question, choices) pairs."""
        for pair in inputs:
            is_pair = isinstance(pair, list | tuple) and len(pair) == 2
            if not is_pair or not isinstance(pair[0], str):
                raise ValueError(
                    f"inputs: expected pairs of a question and its choices, got {pair!r}"
                )
        questions, choices = [question for question, _ in inputs], [row for _, row in inputs]
        return rows_of(self._encode(questions, choices, "example {}".format))

    def _encode(
        self,
        questions: Sequence[str],
        choices: Sequence[Sequence[str]],
        where: Callable[[int], str],
    ) -> dict[str, list[Any]]:
        count: int | None = None
        for place, row in enumerate(choices):
            count = _count(row, where(place), count)
        count = count or 1
        first = [question for question in questions for _ in range(count)]
        texts = [[as_text(choice) for choice in row] for row in choices]
        second = [text for row in texts for text in row]
        flat, _ = encode(self.tokenizer, self.max_length, first, second)
        starts = range(0, len(first), count)
        nested = {name: [x[i : i + count] for i in starts] for name, x in flat.items()}
        return nested | {
            "choices": texts,
            "example": list(range(len(questions))),
        }

    def sequences(self, feature: Feature) -> list[Feature]:
        """The model inputs of each choice."""
        names = [name for name in self.tokenizer.model_input_names if name in feature]
        rows = zip(*(feature[name] for name in names), strict=True)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def decode(self, logits: Sequence[Tensor], features: Sequence[Feature]) -> Answer:
        """Logits (1,) of each choice -> "choice", its "text" and its probability, "score"."""
        score, choice = torch.cat(list(logits)).float().softmax(0).max(0)
        text = features[0]["choices"][int(choice)]
        return {"choice": int(choice), "text": text, "score": round(float(score), 4)}

    def references(self, data: Dataset) -> list[Any]:
        check_columns(data, label_column=self.label_column, choices_column=self.choices_column)
        labels = []
        for place, (label, row) in enumerate(
            zip(data[self.label_column], data[self.choices_column], strict=True)
        ):
            count = _count(row, example(data, place), None)
            is_number = type(label) is int or (isinstance(label, str) and label.isdecimal())
            if not is_number or not 0 <= int(label) < count:
                raise ValueError(
                    f"label_column: expected the number of one of the {count} choices of "
                    f"{example(data, place)}, counted from 0, got {label!r}"
                )
            labels.append(int(label))
        return labels

    def score(self, answers: Sequence[Answer], references: Sequence[Any]) -> dict[str, float]:
        given = [answer["choice"] for answer in answers]
        return {"accuracy": float(accuracy_score(references, given))}

    def majority(self, references: Sequence[Any]) -> dict[str, float]:
        ((commonest, _),) = Counter(references).most_common(1)
        return self.score([{"choice": commonest}] * len(references), references)


def _count(choices: Any, where: str, expected: int | None) -> int:
    """How many choices a question has, checked."""
    texts = choices if isinstance(choices, list | tuple) else []
    are_texts = all(isinstance(choice, str | int | float) for choice in texts)
    if not are_texts or len(texts) < 2 or len(texts) != (expected or len(texts)):
        wanted = f"{expected} texts as before" if expected else "a list of at least 2 texts"
        raise ValueError(f"choices_column: expected {wanted}, got {choices!r} in {where}")
    return len(texts)

"""What a kind of task is: data -> features -> logits -> answers -> scores."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from datasets import Dataset
from torch import Tensor

Feature = dict[str, Any]
"""What a batch takes at once: a text, a window of a long one, or all choices of a question."""
Answer = dict[str, Any]


@dataclass(frozen=True)
class Task(ABC):
    """One kind of task; a subclass adds the columns it reads.

    Args:
        tokenizer: the backbone's tokenizer; for images its image processor.
        labels: names, in the order of the logits; empty until `fit_labels`.
        max_length: longest input in tokens; what is longer is split or cut, and a cut is said.
            None: what the tokenizer allows.
    """

    tokenizer: Any
    labels: tuple[str, ...] = ()
    max_length: int | None = None

    kind: ClassVar[str]
    """The name in `PromptConfig.task`."""
    metric: ClassVar[str]
    """The score of this kind of task that says which epoch was best; more is better."""
    label_columns: ClassVar[tuple[str, ...]] = ("labels",)
    """The columns of labelled features that the loss takes."""
    token_labels: ClassVar[bool] = False
    """Whether a label column has an entry a token."""
    prompt_fields: ClassVar[tuple[str, ...]] = ()
    """The fields, set from the data, that a prompt's configuration keeps for later."""

    @property
    def best_metric(self) -> str:
        """The score that says which epoch was best."""
        return self.metric

    def settings(self) -> dict[str, Any]:
        """What the task does beside its tokenizer, as JSON holds it."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        del own["tokenizer"]
        return own | {"labels": list(self.labels)}

    def fit_labels(self, *parts: Dataset) -> Self:
        """This task with the labels that the parts of the data show."""
        return self

    @abstractmethod
    def prepare(self, data: Dataset, labelled: bool = True) -> Dataset:
        """Features, with "example", the place of the example that each belongs to.

        The features of an example lie together, in the order of the examples.

        Raises:
            ValueError: a column is missing or lacks a value, or a label is unknown.
        """

    @abstractmethod
    def prepare_inputs(self, inputs: Sequence[Any]) -> list[Feature]:
        """Features of inputs that come without a data set."""

    def sequences(self, feature: Feature) -> list[Feature]:
        """The model inputs of each sequence that a feature has: one, or one a choice."""
        names = self.tokenizer.model_input_names
        return [{name: feature[name] for name in names if name in feature}]

    def lengths(self, feature: Feature) -> list[int]:
        """The tokens of each of the sequences."""
        return [len(sequence["input_ids"]) for sequence in self.sequences(feature)]

    @abstractmethod
    def decode(self, logits: Sequence[Tensor], features: Sequence[Feature]) -> Answer:
        """The answer to one example.

        Args:
            logits: of every sequence of its features, without padding.
            features: all that the example has.
        """

    @abstractmethod
    def references(self, data: Dataset) -> list[Any]:
        """What `score` compares each example's answer with."""

    @abstractmethod
    def score(self, answers: Sequence[Answer], references: Sequence[Any]) -> dict[str, float]:
        """The scores of decoded answers."""

    @abstractmethod
    def majority(self, references: Sequence[Any]) -> dict[str, float]:
        """The scores of always giving the commonest answer."""


def rows_of(columns: Mapping[str, Sequence[Any]]) -> list[Feature]:
    """Features from a column for each of their fields."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def by_example(features: Iterable[Feature]) -> Iterator[list[Feature]]:
    """Group features that lie together by their example."""
    group: list[Feature] = []
    for feature in features:
        if group and feature["example"] != group[0]["example"]:
            yield group
            group = []
        group.append(feature)
    if group:
        yield group


def decode_all(task: Task, features: Iterable[Feature], logits: Sequence[Tensor]) -> list[Answer]:
    """The answers to all examples.

    Args:
        features: of all examples, those of an example together.
        logits: of every sequence of the features, in their order, without padding.
    """
    answers, start = [], 0
    for group in by_example(features):
        end = start + sum(len(task.sequences(feature)) for feature in group)
        answers.append(task.decode(logits[start:end], group))
        start = end
    return answers

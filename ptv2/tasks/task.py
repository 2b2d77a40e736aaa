"""What a kind of task is: data -> features, logits -> answers, answers -> a score."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

Ids = NDArray[Any] | Sequence[NDArray[Any]]
Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


@dataclass(frozen=True)
class Task(ABC):
    """One kind of task; a subclass adds the columns it reads.

    Args:
        tokenizer: the backbone's tokenizer.
        labels: names, in the order of the logits; empty until `fit_labels`.
        max_length: longest input in tokens; what is longer is cut, and that is said. None: what
            the tokenizer allows.
    """

    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...] = ()
    max_length: int | None = None

    kind: ClassVar[str]
    """The name in `PromptConfig.task`."""
    best_metric: ClassVar[str]
    """The score that says which epoch was best; more is better."""

    def settings(self) -> dict[str, Any]:
        """What the task does beside its tokenizer, as JSON holds it."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        del own["tokenizer"]
        return own | {"labels": list(self.labels)}

    @abstractmethod
    def fit_labels(self, *parts: Dataset) -> Self:
        """This task with the labels that the parts of the data show."""

    @abstractmethod
    def prepare(self, data: Dataset, labelled: bool = True) -> Dataset:
        """Features, one row an example, with "labels" if labelled.

        Raises:
            ValueError: a column is missing or lacks a value, or a label is unknown.
        """

    @abstractmethod
    def prepare_inputs(self, inputs: Sequence[Any]) -> Dataset:
        """Features of inputs that come without a data set."""

    @abstractmethod
    def collator(self) -> Collator:
        """Makes a padded batch of a list of features."""

    @abstractmethod
    def predictions(self, logits: Tensor) -> Tensor:
        """The label ids that logits stand for."""

    @abstractmethod
    def decode(self, logits: Tensor, feature: dict[str, Any]) -> dict[str, Any]:
        """The answer to one example, from its logits without padding and its features."""

    @abstractmethod
    def score(self, predictions: Ids, references: Ids) -> dict[str, float]:
        """The scores of predicted label ids."""

    @abstractmethod
    def majority(self, references: Ids) -> dict[str, float]:
        """The scores of always giving the commonest label."""

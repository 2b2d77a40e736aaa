"""Feature extraction: the encoder's state of a text, pooled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from datasets import Dataset
from torch import Tensor

from .sequence_classification import encode_texts, text_columns
from .task import Answer, Feature, Task, rows_of


@dataclass(frozen=True)
class FeatureExtraction(Task):
    """Texts, or pairs of texts, that become vectors. There is nothing to train or to score.

    Args:
        text_column, text_pair_column: where the data keeps its fields.
    """

    text_column: str = "text"
    text_pair_column: str | None = None

    kind: ClassVar[str] = "feature-extraction"
    metric: ClassVar[str] = ""

    def prepare(self, data: Dataset, labelled: bool = True) -> Dataset:
        if labelled:
            _refuse()
        columns = text_columns(data, self.text_column, self.text_pair_column)
        return Dataset.from_dict(encode_texts(self, columns))

    def prepare_inputs(self, inputs: Sequence[str | tuple[str, str]]) -> list[Feature]:
        """Features of texts, or of (text, text_pair)s."""
        return rows_of(encode_texts(self, inputs))

    def decode(self, logits: Sequence[Tensor], features: Sequence[Feature]) -> Answer:
        """The pooled state (hidden_size,) -> "embedding"."""
        return {"embedding": logits[0].tolist()}

    def references(self, data: Dataset) -> NoReturn:
        _refuse()

    def score(self, answers: Sequence[Answer], references: Sequence[Any]) -> NoReturn:
        _refuse()

    def majority(self, references: Sequence[Any]) -> NoReturn:
        _refuse()


def _refuse() -> NoReturn:
    raise ValueError(
        "task: feature-extraction has no loss and no score; expected a task with labels"
    )

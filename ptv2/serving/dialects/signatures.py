"""The named tensors that every kind of task takes and gives in the Open Inference Protocol."""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ...tasks import Task
from ..scores import entities, label_scores
from ..served import Served
from ..service import Outcome, Service
from .tensors import InputTensor, RequestedOutput


class TensorSpec(NamedTuple):
    """A tensor that is taken or given; -1 in its shape is what a request decides."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False

    def metadata(self) -> dict[str, Any]:
        """As a model's metadata has it."""
        found = {"name": self.name, "datatype": self.datatype, "shape": self.shape}
        return found | ({"parameters": {"optional": True}} if self.optional else {})

    def config(self) -> dict[str, Any]:
        """As Triton's model configuration has it."""
        data_type = "TYPE_STRING" if self.datatype == "BYTES" else f"TYPE_{self.datatype}"
        found = {"name": self.name, "data_type": data_type, "dims": self.shape}
        return found | ({"optional": True} if self.optional else {})


class Signature(NamedTuple):
    """The tensors of a kind of task.

    Args:
        inputs: of texts; their first dimension counts the rows, as the outputs' does.
        outputs: the last dimension may be known of a task, see `sized_outputs`.
        arrays: the outputs by their names, from outcomes and the rows that they are of.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    arrays: Callable[[Task, list[Outcome], list[Any]], dict[str, NDArray[Any]]]

    def sized_outputs(self, service: Service, task: Served) -> list[TensorSpec]:
        """The outputs, with the number of labels or the size of vectors."""
        vectors = task.config.task == "feature-extraction"
        size = service.model.geometry.hidden_size if vectors else len(task.config.labels) or -1
        return [x._replace(shape=(-1, size)) if len(x.shape) == 2 else x for x in self.outputs]

    def wanted(self, asked: Sequence[RequestedOutput], binary: bool) -> dict[str, bool]:
        """Which outputs, all if none are asked for, and whether as binary data.

        Args:
            binary: what holds for those that do not say it.

        Raises:
            ValueError: there is no such output, or one is asked for twice.
        """
        names, given = [x.name for x in self.outputs], [x.name for x in asked]
        if len(set(given)) < len(given) or not set(given) <= set(names):
            raise ValueError(f"outputs: expected of {', '.join(names)}, got {', '.join(given)}")
        own = {x.name: x.parameters.binary_data for x in asked} or dict.fromkeys(names)
        return {name: binary if wish is None else wish for name, wish in own.items()}

    def rows(self, tensors: Sequence[InputTensor], texts: Sequence[list[str]]) -> list[Any]:
        """What the kind of task takes: texts, pairs of them, or of a text and choices.

        Args:
            texts: the elements of every tensor.

        Raises:
            ValueError: the inputs or their shapes are others.
        """
        names = [x.name for x in self.inputs]
        given = [tensor.name for tensor in tensors]
        needed = {x.name for x in self.inputs if not x.optional}
        if len(set(given)) < len(given) or not needed <= set(given) <= set(names):
            raise ValueError(f"inputs: expected {', '.join(names)}, got {', '.join(given)}")
        ranks = {x.name: len(x.shape) for x in self.inputs}
        found = {
            tensor.name: _column(tensor, own, ranks[tensor.name])
            for tensor, own in zip(tensors, texts, strict=True)
        }
        columns = [found[name] for name in names if name in found]
        counts = [len(column) for column in columns]
        if len(set(counts)) > 1:
            raise ValueError(f"inputs: expected as many rows in all, got {counts}")
        return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))


def _column(tensor: InputTensor, texts: list[str], rank: int) -> list[Any]:
    """The rows of an input: texts, or lists of choices."""
    shape = tensor.shape
    if rank == 1:
        if shape[1:] not in ([], [1]):
            raise ValueError(f"{tensor.name}: expected a shape [n] or [n, 1], got {shape}")
        return texts
    if len(shape) < 2 or shape[1] < 2:
        raise ValueError(f"{tensor.name}: expected a shape [n, 2 or more], got {shape}")
    return [texts[i : i + shape[1]] for i in range(0, len(texts), shape[1])]


def _classes(reader: Task, outcomes: list[Outcome], rows: list[Any]) -> dict[str, NDArray[Any]]:
    ranked = [label_scores(reader, outcome) for outcome in outcomes]
    scores = [{x["label"]: x["score"] for x in row} for row in ranked]
    return {
        "scores": _floats([[row[label] for label in reader.labels] for row in scores]),
        "label": _texts([row[0]["label"] for row in ranked]),
    }


def _tags(reader: Task, outcomes: list[Outcome], rows: list[Any]) -> dict[str, NDArray[Any]]:
    found = [entities(reader, outcome, text) for outcome, text in zip(outcomes, rows, strict=True)]
    return {"entities": _texts([json.dumps(row, ensure_ascii=False) for row in found])}


def _answers(reader: Task, outcomes: list[Outcome], rows: list[Any]) -> dict[str, NDArray[Any]]:
    found = [outcome.answer for outcome in outcomes]
    return {
        "answer": _texts([x["answer"] for x in found]),
        "score": _floats([x["score"] for x in found]),
        "start": np.array([x["start"] for x in found], dtype=np.int64),
        "end": np.array([x["end"] for x in found], dtype=np.int64),
    }


def _choices(reader: Task, outcomes: list[Outcome], rows: list[Any]) -> dict[str, NDArray[Any]]:
    scores = [torch.cat(outcome.logits).float().softmax(0).tolist() for outcome in outcomes]
    choices = [outcome.answer["choice"] for outcome in outcomes]
    return {"scores": _floats(scores), "choice": np.array(choices, dtype=np.int64)}


def _vectors(reader: Task, outcomes: list[Outcome], rows: list[Any]) -> dict[str, NDArray[Any]]:
    return {"embedding": torch.stack([x.logits[0] for x in outcomes]).float().numpy()}


def _floats(values: list[Any]) -> NDArray[Any]:
    return np.array(values, dtype=np.float32)


def _texts(values: list[str]) -> NDArray[Any]:
    return np.array(values, dtype=object)


_TEXT = TensorSpec("text", "BYTES", (-1,))
_PAIR = (_TEXT, TensorSpec("text_pair", "BYTES", (-1,), optional=True))
_QUESTION = TensorSpec("question", "BYTES", (-1,))
SIGNATURES = {
    "sequence-classification": Signature(
        _PAIR,
        (TensorSpec("scores", "FP32", (-1, -1)), TensorSpec("label", "BYTES", (-1,))),
        _classes,
    ),
    "token-classification": Signature((_TEXT,), (TensorSpec("entities", "BYTES", (-1,)),), _tags),
    "question-answering": Signature(
        (_QUESTION, TensorSpec("context", "BYTES", (-1,))),
        (
            TensorSpec("answer", "BYTES", (-1,)),
            TensorSpec("score", "FP32", (-1,)),
            TensorSpec("start", "INT64", (-1,)),
            TensorSpec("end", "INT64", (-1,)),
        ),
        _answers,
    ),
    "multiple-choice": Signature(
        (_QUESTION, TensorSpec("choices", "BYTES", (-1, -1))),
        (TensorSpec("scores", "FP32", (-1, -1)), TensorSpec("choice", "INT64", (-1,))),
        _choices,
    ),
    "feature-extraction": Signature(_PAIR, (TensorSpec("embedding", "FP32", (-1, -1)),), _vectors),
}

"""A version of a task, as requests are answered with it."""

import hashlib
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import PromptConfig
from ..heads import Head
from ..model import PromptModel
from ..pools import FoldedPrompt

TILE = 16
"""Outputs of a head that are computed at once, so that heads of every size are alike."""


class LayerTiles(NamedTuple):
    """A linear layer's outputs in groups of `TILE`, the last one filled up with zeros."""

    weight: Tensor  # (tiles, TILE, hidden_size), float32
    bias: Tensor  # (tiles, TILE)

    @classmethod
    def of(cls, layer: torch.nn.Linear) -> Self:
        """Cut a layer."""
        extra = -layer.out_features % TILE
        weight = F.pad(_copy(layer.weight), (0, 0, 0, extra))
        bias = F.pad(_copy(layer.bias), (0, extra))
        return cls(weight.unflatten(0, (-1, TILE)), bias.unflatten(0, (-1, TILE)))


@dataclass(frozen=True, eq=False)
class Served:
    """A task's prompt and head in host memory; a task that changes becomes another one of these.

    Args:
        name: of the task.
        version: counts the versions of a name, from 1; 0 before it has one.
        sha256: of the prompt and the head.
        config: of the task.
        prompt: its keys, values and gates, of depth "layers".
        layers: the head's, first the hidden one if it has one; none for feature extraction.
        outputs: of the head.
    """

    name: str
    version: int
    sha256: str
    config: PromptConfig
    prompt: FoldedPrompt
    layers: tuple[LayerTiles, ...]
    outputs: int

    @classmethod
    def of(
        cls,
        name: str,
        config: PromptConfig,
        prompt: FoldedPrompt,
        head: Head | None,
    ) -> Self:
        """Copy a task.

        Raises:
            ValueError: its prompt is before the text, not in the layers.
        """
        if prompt.embeddings is not None:
            raise ValueError(f"task: expected depth 'layers' for {name!r}, got 'input'")
        gate = None if prompt.gate is None else _copy(prompt.gate)
        own = FoldedPrompt(prompt.layers, _copy(prompt.key_value), gate)
        linears = [] if head is None else [head.linear]
        if head is not None and config.head_activation is not None:
            linears.insert(0, head.dense)
        layers = tuple(map(LayerTiles.of, linears))
        outputs = 0 if head is None else head.linear.out_features
        return cls(name, 0, _digest(own, layers), config, own, layers, outputs)

    @classmethod
    def of_task(cls, model: PromptModel, name: str) -> Self:
        """Copy a task of a model, as it is now.

        Raises:
            UnknownTaskError: there is no such task.
            ValueError: its prompt is before the text, not in the layers.
        """
        prompt = model.folded(name)
        head = model.head(name)
        return cls.of(name, model.tasks[name], prompt, head)

    def numbered(self, version: int) -> Self:
        """The same with another number."""
        return replace(self, version=version)

    @property
    def prompt_length(self) -> int:
        """Rows that the prompt has in each of its layers."""
        return self.prompt.key_value.shape[3]


def _copy(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float32, copy=True)


def _digest(prompt: FoldedPrompt, layers: tuple[LayerTiles, ...]) -> str:
    digest = hashlib.sha256()
    tensors = [prompt.key_value, *(() if prompt.gate is None else (prompt.gate,))]
    for tensor in [*tensors, *(part for layer in layers for part in layer)]:
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()

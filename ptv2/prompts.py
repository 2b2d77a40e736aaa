"""The trained prompt of one task: its parametrisation, its start, and folding it."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import PromptConfig
from .families import Geometry
from .pools import FoldedPrompt

_PROMPT_FIELDS = (
    *("prompt_length", "layers", "parametrization", "injection", "network_size", "gate", "depth"),
    *("init_std", "prompt_dropout"),
)
"""The fields that make the prompt; not those of the head and of the backbone's inputs."""

Projection = Callable[[int, Tensor], Tensor]
"""(layer, (prompt_length, hidden_size)) -> (2, heads, prompt_length, head_dim)."""


class Prompt(nn.Module):
    """A prompt of P positions in L layers (Liu et al. 2022, arXiv:2110.07602).

    Args:
        config: length, layers, parametrisation, injection, gate.
        geometry: the backbone's sizes.

    Raises:
        ValueError: `config.layers` names a layer that the backbone does not have.
    """

    def __init__(self, config: PromptConfig, geometry: Geometry) -> None:
        super().__init__()
        self.config = config
        self.origin: dict[str, Any] = {}  # what the first values are from; empty: random
        self.layers = tuple(range(geometry.layers)) if config.layers is None else config.layers
        if config.depth == "input":
            self.layers = ()
        if max(self.layers, default=0) >= geometry.layers:
            raise ValueError(
                f"layers: expected numbers below {geometry.layers}, got {self.layers}"
            )
        layers, length = len(self.layers), config.prompt_length
        self.key_value_shape = (layers, 2, geometry.heads, length, geometry.head_dim)
        self.gate_shape = (layers, geometry.heads, length)
        self.shape = self._own_shape(geometry)
        self.gate = nn.Parameter(torch.zeros(self.gate_shape)) if config.gate else None
        if config.parametrization == "direct":
            self.embedding = nn.Parameter(torch.randn(self.shape) * config.init_std)
        else:
            self.embedding = nn.Parameter(torch.randn(length, geometry.hidden_size))
            outputs = prod(self.shape[:-2]) * self.shape[-1]
            self.network = _network(config, geometry.hidden_size, outputs)
        self.requires_grad_(length > 0)  # else the backbone would keep its states for nothing

    def _own_shape(self, geometry: Geometry) -> tuple[int, ...]:
        """The prompt's shape before a projection, with the positions last but one."""
        length = self.config.prompt_length
        if self.config.depth == "input":
            if geometry.embedding_size is None:
                raise ValueError("depth: this backbone takes no embeddings, expected 'layers'")
            return length, geometry.embedding_size
        if self.config.injection == "hidden-state":
            return len(self.layers), length, geometry.hidden_size
        return self.key_value_shape

    def forward(self, project: Projection) -> FoldedPrompt:
        """The prompt's keys, values and gates.

        Args:
            project: the backbone's own projection of hidden states, for that injection.
        """
        prompt = F.dropout(self._parametrised(), self.config.prompt_dropout, self.training)
        if self.config.depth == "input":
            return FoldedPrompt((), prompt.new_empty(self.key_value_shape), None, prompt)
        if self.config.injection == "hidden-state":
            projected = [project(*pair) for pair in zip(self.layers, prompt, strict=True)]
            empty = prompt.new_empty(self.key_value_shape)
            prompt = torch.stack(projected) if projected else empty
        gate = None if self.gate is None else _non_negative(self.gate)
        return FoldedPrompt(self.layers, prompt, gate)

    def _parametrised(self) -> Tensor:
        """The prompt before a projection: `shape`."""
        if self.config.parametrization == "direct":
            return self.embedding
        *outer, length, width = self.shape
        flat: Tensor = self.network(self.embedding)  # (prompt_length, everything else)
        return flat.view(length, *outer, width).movedim(0, -2)

    @torch.no_grad()
    def start_from(self, other: "Prompt", folded: FoldedPrompt) -> None:
        """Take the values of another prompt, row by row.

        Rows that the other does not have keep their random start, behind closed gates if this
        prompt has gates; of a longer one the first rows are taken. Those of an "lstm" depend on
        each other, so that the other has to be as long.

        Args:
            other: a prompt in the same layers; of any form if this one is direct keys and values,
                else of the same form. One with gates needs gates here.
            folded: what the other folds to.

        Raises:
            ValueError: the other prompt does not fit.
        """
        self._require_like(other.config, "start_from", ("depth",))
        if self.layers != other.layers:
            raise ValueError(
                f"start_from: expected a prompt with layers {self.layers}, got {other.layers}"
            )
        if self.gate is None and other.gate is not None:
            raise ValueError("start_from: expected a prompt with gate False, got True")
        values = folded.key_value if folded.embeddings is None else folded.embeddings
        if self.config.folds:
            self._require_like(other.config, "start_from", ("parametrization", "injection"))
            values = other.embedding
        if self.config.parametrization != "direct":
            recurrent = self.config.parametrization == "lstm"  # a row depends on all others
            fields = ("network_size", "prompt_length") if recurrent else ("network_size",)
            self._require_like(other.config, "start_from", fields)
            self.network.load_state_dict(other.network.state_dict())
        rows = min(self.config.prompt_length, other.config.prompt_length)
        self.embedding[..., :rows, :] = values[..., :rows, :]
        if self.gate is not None:
            self.gate[..., :rows] = 1 if folded.gate is None else folded.gate[..., :rows]

    @torch.no_grad()
    def start_from_states(self, states: Sequence[Tensor], project: Projection) -> None:
        """Take the values of a text that the backbone has read.

        Args:
            states: what each layer of the backbone got, (prompt_length, hidden_size); for depth
                "input" the tokens' embeddings alone.
            project: as in `forward`.

        Raises:
            ValueError: the prompt is not trained directly.
        """
        if self.config.parametrization != "direct":
            raise ValueError(
                "start_from_text: expected parametrization 'direct', got "
                f"{self.config.parametrization!r}"
            )
        if self.config.depth == "input":
            self.embedding.copy_(states[0])
        for place, layer in enumerate(self.layers):
            own = states[layer]
            hidden = self.config.injection == "hidden-state"
            self.embedding[place] = own if hidden else project(layer, own)

    def require_same(self, config: PromptConfig) -> None:
        """Raise a ValueError unless a configuration asks for this very prompt."""
        self._require_like(config, "share_prompt_with", _PROMPT_FIELDS)

    def _require_like(self, config: PromptConfig, argument: str, fields: Sequence[str]) -> None:
        for name in fields:
            own, its = getattr(self.config, name), getattr(config, name)
            if own != its:
                raise ValueError(f"{argument}: expected a prompt with {name} {own}, got {its}")


class _NonNegative(torch.autograd.Function):
    """max(x, 0), whose gradient still reaches an x <= 0 that it would raise.

    So gates start closed and can open; the step that would close one further is left out, as in
    projected gradient descent.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad.masked_fill((x <= 0) & (grad > 0), 0)


def _non_negative(x: Tensor) -> Tensor:
    result: Tensor = _NonNegative.apply(x)  # type: ignore[no-untyped-call]
    return result


class _Recurrent(nn.Module):
    """The prompt encoder of P-tuning (Liu et al. 2021, arXiv:2103.10385): an LSTM over positions.

    Args:
        hidden_size: of the embedding.
        width: of the LSTM's two directions together.
    """

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(hidden_size, width // 2, num_layers=2, bidirectional=True)
        self.linear = nn.Linear(width, width)

    def forward(self, embedding: Tensor) -> Tensor:
        """(prompt_length, hidden_size) -> (prompt_length, width)."""
        if not len(embedding):  # an LSTM takes no empty sequence
            return embedding.new_empty(0, self.linear.out_features)
        return F.relu(self.linear(self.lstm(embedding)[0]))


def _network(config: PromptConfig, hidden_size: int, outputs: int) -> nn.Sequential:
    """What computes a prompt from its embedding."""
    width = config.network_size
    last = nn.Linear(width, outputs)
    nn.init.normal_(last.weight, std=config.init_std / width**0.5)
    nn.init.zeros_(last.bias)
    if config.parametrization == "lstm":
        return nn.Sequential(_Recurrent(hidden_size, width), last)
    return nn.Sequential(nn.Linear(hidden_size, width), nn.Tanh(), last)

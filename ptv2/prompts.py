"""The trained prompt of one task: its parametrisation, and folding it to keys and values."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import LayerPrompts, PromptBatch
from .config import PromptConfig
from .families import Geometry
from .layout import Packed

_PROMPT_FIELDS = (
    "prompt_length",
    "layers",
    "parametrization",
    "injection",
    "mlp_hidden_size",
    "init_std",
    "prompt_dropout",
)
"""The fields of a configuration that are not the head's."""

Projection = Callable[[int, Tensor], Tensor]
"""(layer, (prompt_length, hidden_size)) -> (2, heads, prompt_length, head_dim)."""


class Prompt(nn.Module):
    """A prompt of P positions in L layers (Liu et al. 2022, arXiv:2110.07602).

    Args:
        config: length, layers, parametrisation, injection.
        geometry: the backbone's sizes.

    Raises:
        ValueError: `config.layers` names a layer that the backbone does not have.
    """

    def __init__(self, config: PromptConfig, geometry: Geometry) -> None:
        super().__init__()
        self.config = config
        self.layers = tuple(range(geometry.layers)) if config.layers is None else config.layers
        if max(self.layers, default=0) >= geometry.layers:
            raise ValueError(
                f"layers: expected numbers below {geometry.layers}, got {self.layers}"
            )
        per_layer = (2, geometry.heads, config.prompt_length, geometry.head_dim)
        self.key_value_shape = (len(self.layers), *per_layer)
        hidden_shape = (len(self.layers), config.prompt_length, geometry.hidden_size)
        shape = hidden_shape if config.injection == "hidden-state" else self.key_value_shape
        if config.parametrization == "direct":
            self.embedding = nn.Parameter(torch.randn(shape) * config.init_std)
            return
        width = config.mlp_hidden_size
        outputs = len(self.layers) * 2 * geometry.heads * geometry.head_dim
        if config.injection == "hidden-state":
            outputs = len(self.layers) * geometry.hidden_size
        last = nn.Linear(width, outputs)
        nn.init.normal_(last.weight, std=config.init_std / width**0.5)
        nn.init.zeros_(last.bias)
        self.embedding = nn.Parameter(torch.randn(config.prompt_length, geometry.hidden_size))
        self.mlp = nn.Sequential(nn.Linear(geometry.hidden_size, width), nn.Tanh(), last)

    def forward(self, project: Projection) -> Tensor:
        """Keys and values, (layers, 2, heads, prompt_length, head_dim), keys first.

        Args:
            project: the backbone's own projection of hidden states, for that injection.
        """
        prompt = F.dropout(self._parametrised(), self.config.prompt_dropout, self.training)
        if self.config.injection == "key-value":
            return prompt
        projected = [project(*pair) for pair in zip(self.layers, prompt, strict=True)]
        return torch.stack(projected) if projected else prompt.new_empty(self.key_value_shape)

    def start_from(self, other: "Prompt", key_value: Tensor) -> None:
        """Take the values of another prompt.

        Args:
            other: a prompt of as many positions in the same layers; of any form if this one is
                direct keys and values, else of the same form.
            key_value: what the other folds to.

        Raises:
            ValueError: the other prompt does not fit.
        """
        for name, own, its in (
            ("prompt_length", self.config.prompt_length, other.config.prompt_length),
            ("layers", self.layers, other.layers),
        ):
            if own != its:
                raise ValueError(f"start_from: expected a prompt with {name} {own}, got {its}")
        if not self.config.folds:
            self.load_state_dict({"embedding": key_value})
            return
        self._require_like(other.config, "start_from", ("parametrization", "injection"))
        if self.config.parametrization == "mlp":
            self._require_like(other.config, "start_from", ("mlp_hidden_size",))
        self.load_state_dict(other.state_dict())

    def require_same(self, config: PromptConfig) -> None:
        """Raise a ValueError unless a configuration asks for this very prompt."""
        self._require_like(config, "share_prompt_with", _PROMPT_FIELDS)

    def _require_like(self, config: PromptConfig, argument: str, fields: Sequence[str]) -> None:
        for name in fields:
            own, its = getattr(self.config, name), getattr(config, name)
            if own != its:
                raise ValueError(f"{argument}: expected a prompt with {name} {own}, got {its}")

    def _parametrised(self) -> Tensor:
        """The prompt in its injection's shape: key_value_shape or (layers, length, hidden)."""
        if self.config.parametrization == "direct":
            return self.embedding
        flat = self.mlp(self.embedding)  # (prompt_length, everything else)
        layers, two, heads, _, head_dim = self.key_value_shape
        prompt: Tensor
        if self.config.injection == "hidden-state":
            prompt = flat.view(len(flat), layers, heads * head_dim).transpose(0, 1)
        else:
            prompt = flat.view(-1, layers, two, heads, head_dim).permute(1, 2, 3, 0, 4)
        return prompt


def pool_prompts(
    key_values: Mapping[str, Tensor],
    layers: Mapping[str, Sequence[int]],
    geometry: Geometry,
    rows: Sequence[str | None] | None,
    device: torch.device,
    packed: Packed | None,
    by_call_order: bool,
) -> PromptBatch:
    """Put the prompts of a batch into one pool a layer.

    Args:
        key_values: each prompt's (layers, 2, heads, prompt_length, head_dim).
        layers: the layers that each prompt has.
        rows: the prompt of each row of the batch, None for none; None as a whole: every row uses
            the only prompt there is.
        packed: how the sequences of a packed batch lie.
        by_call_order: layers are told apart by the order of calls.
    """
    by_layer = [
        dict(zip(layers[name], key_value.unbind(), strict=True))
        for name, key_value in key_values.items()
    ]
    pools = [
        _layer_pool([parts.get(layer) for parts in by_layer]) for layer in range(geometry.layers)
    ]
    if rows is None:
        return PromptBatch(pools, None, packed, by_call_order)
    pools = _with_bounds(pools, by_layer, device)
    places = {name: place for place, name in enumerate(key_values)}
    ids = [-1 if name is None else places[name] for name in rows]
    return PromptBatch(pools, torch.tensor(ids, device=device), packed, by_call_order)


def _layer_pool(parts: Sequence[Tensor | None]) -> LayerPrompts | None:
    """One layer's pool of the parts (2, heads, prompt_length, head_dim)."""
    present = [part for part in parts if part is not None]
    if not present:
        return None
    # one prompt is used where it lies
    pool = present[0] if len(present) == 1 else torch.cat(present, 2)
    key, value = pool.transpose(1, 2).unbind()  # (prefix_tokens, heads, head_dim)
    return LayerPrompts(key, value, None)


def _with_bounds(
    pools: Sequence[LayerPrompts | None],
    by_layer: Sequence[Mapping[int, Tensor]],
    device: torch.device,
) -> list[LayerPrompts | None]:
    """The pools with the rows of each prompt; layers with the same rows share a tensor."""
    tensors: dict[tuple[int, ...], Tensor] = {}
    bounded: list[LayerPrompts | None] = []
    for layer, pool in enumerate(pools):
        lengths = [parts[layer].shape[2] if layer in parts else 0 for parts in by_layer]
        ends = (0, *accumulate(lengths))
        if pool is not None and ends not in tensors:
            bounds = list(pairwise(ends))
            tensors[ends] = torch.tensor(bounds, dtype=torch.int32, device=device)
        bounded.append(None if pool is None else pool._replace(prompt_bounds=tensors[ends]))
    return bounded

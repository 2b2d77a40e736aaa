"""The trained prompt of one task: its parametrisation, and folding it to keys and values."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import LayerPrompts, PromptBatch
from .config import PromptConfig
from .families import Geometry
from .layout import Packed

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
    names = list(key_values)
    pools = []
    for layer in range(geometry.layers):
        parts = [
            key_values[name][layers[name].index(layer)] if layer in layers[name] else None
            for name in names
        ]
        pools.append(_layer_pool(parts, single=rows is None, device=device))
    if rows is None:
        return PromptBatch(pools, None, packed, by_call_order)
    places = {name: place for place, name in enumerate(names)}
    ids = [-1 if name is None else places[name] for name in rows]
    return PromptBatch(pools, torch.tensor(ids, device=device), packed, by_call_order)


def _layer_pool(
    parts: Sequence[Tensor | None], single: bool, device: torch.device
) -> LayerPrompts | None:
    """One layer's pool of the parts (2, heads, prompt_length, head_dim)."""
    present = [part for part in parts if part is not None]
    if not present:
        return None
    # (2, prefix_tokens, heads, head_dim); one prompt is used where it lies
    pool = (present[0] if len(present) == 1 else torch.cat(present, 2)).transpose(1, 2)
    if single:
        return LayerPrompts(pool[0], pool[1], None)
    bounds, end = [], 0
    for part in parts:
        start, end = end, end + (0 if part is None else part.shape[2])
        bounds.append((start, end))
    return LayerPrompts(pool[0], pool[1], torch.tensor(bounds, dtype=torch.int32, device=device))

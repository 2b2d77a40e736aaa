"""The pools of a batch: every layer's rows of all the prompts that the batch uses."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .attention import LayerPrompts, PromptBatch
from .layout import Packed


class FoldedPrompt(NamedTuple):
    """A prompt as attention takes it, in the layers that carry it."""

    layers: tuple[int, ...]
    key_value: Tensor  # (layers, 2, heads, prompt_length, head_dim), keys first
    gate: Tensor | None  # (layers, heads, prompt_length), at least 0; None: 1 everywhere
    embeddings: Tensor | None = None  # (prompt_length, embedding_size), of depth "input"


def pool_prompts(
    prompts: Mapping[str, FoldedPrompt],
    layers: int,
    rows: Sequence[str | None] | None,
    device: torch.device,
    packed: Packed | None,
    by_call_order: bool,
) -> PromptBatch:
    """Put the prompts of a batch into one pool a layer.

    Args:
        layers: of the backbone.
        rows: the prompt of each row of the batch, None for none; None as a whole: every row uses
            the only prompt there is.
        packed: how the sequences of a packed batch lie.
        by_call_order: layers are told apart by the order of calls.
    """
    by_layer = [_layer_parts(prompt) for prompt in prompts.values()]
    pools = [_layer_pool([parts.get(layer) for parts in by_layer]) for layer in range(layers)]
    if rows is None:
        return PromptBatch(pools, None, packed, by_call_order)
    pools = _with_bounds(pools, by_layer, device)
    places = {name: place for place, name in enumerate(prompts)}
    ids = [-1 if name is None else places[name] for name in rows]
    return PromptBatch(pools, torch.tensor(ids, device=device), packed, by_call_order)


class _LayerPart(NamedTuple):
    key_value: Tensor  # (2, heads, prompt_length, head_dim)
    gate: Tensor | None  # (heads, prompt_length)

    @property
    def open_gate(self) -> Tensor:
        return torch.ones_like(self.key_value[0, ..., 0]) if self.gate is None else self.gate


def _layer_parts(prompt: FoldedPrompt) -> dict[int, _LayerPart]:
    """The prompt's part of each of its layers."""
    gates = [None] * len(prompt.layers) if prompt.gate is None else prompt.gate.unbind()
    parts = map(_LayerPart, prompt.key_value.unbind(), gates)
    return dict(zip(prompt.layers, parts, strict=True))


def _layer_pool(parts: Sequence[_LayerPart | None]) -> LayerPrompts | None:
    """One layer's pool."""
    present = [part for part in parts if part is not None]
    if not present:
        return None
    gate = None
    if len(present) == 1:  # one prompt is used where it lies
        pool, gate = present[0]
    else:
        pool = torch.cat([part.key_value for part in present], 2)
        if any(part.gate is not None for part in present):
            gate = torch.cat([part.open_gate for part in present], 1)
    key, value = pool.transpose(1, 2).unbind()  # (prefix_tokens, heads, head_dim)
    return LayerPrompts(key, value, None if gate is None else gate.transpose(0, 1), None)


def _with_bounds(
    pools: Sequence[LayerPrompts | None],
    by_layer: Sequence[Mapping[int, _LayerPart]],
    device: torch.device,
) -> list[LayerPrompts | None]:
    """The pools with the rows of each prompt; layers with the same rows share a tensor."""
    tensors: dict[tuple[int, ...], Tensor] = {}
    bounded: list[LayerPrompts | None] = []
    for layer, pool in enumerate(pools):
        lengths = [parts[layer].key_value.shape[2] if layer in parts else 0 for parts in by_layer]
        ends = (0, *accumulate(lengths))
        if pool is not None and ends not in tensors:
            bounds = list(pairwise(ends))
            tensors[ends] = torch.tensor(bounds, dtype=torch.int32, device=device)
        bounded.append(None if pool is None else pool._replace(prompt_bounds=tensors[ends]))
    return bounded

"""Inputs, the textbook form and the error measure that tests and benchmarks share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import RelativePositions

LIMITS = {
    # On a GPU float32 products are three TF32 products.
    torch.float32: 1e-5 if torch.cuda.is_available() else 1e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}
"""The kernels' error budget: `relative_l2` from float64, of the output and every gradient."""
GRADIENTS = ("query", "key", "value", "prefix_key", "prefix_value")


def make_inputs(
    batch: int = 3,
    heads: int = 2,
    length: int = 7,
    head_dim: int = 16,
    prompts: tuple[int, ...] = (5,),
    *,
    mixed: bool = False,
    masked: bool = False,
    poisoned: bool = False,
    gated: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Random arguments of ``prefix_attention``.

    Args:
        prompts: length of each prompt in the pool; 0 is allowed.
        mixed: give sequences prompts -1, 0, 1, ... in turn, instead of prompt 0 for all.
        masked: a random key mask; the last sequence sees none of its own keys.
        poisoned: NaN in query, key and value at the masked positions.
        gated: gates of the prompts' rows, every third of them closed.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)

    # (batch, length, heads, head_dim) in memory, as transformers' models lay it out
    query, key, value = (normal(batch, length, heads, head_dim).transpose(1, 2) for _ in range(3))
    prefix_key, prefix_value = (normal(sum(prompts), heads, head_dim) for _ in range(2))
    inputs: dict[str, Any] = dict(
        query=query, key=key, value=value, prefix_key=prefix_key, prefix_value=prefix_value
    )
    if mixed:
        ends = torch.tensor(prompts).cumsum(0)
        bounds = torch.stack((ends - torch.tensor(prompts), ends), 1).to(torch.int32)
        inputs["prompt_bounds"] = bounds.to(device)
        inputs["prompt_ids"] = (torch.arange(batch) % (len(prompts) + 1) - 1).to(device)
    if masked:
        mask = torch.rand(batch, length, generator=generator) < 0.7
        mask[-1:] = False
        inputs["key_mask"] = mask.to(device)
        if poisoned:
            for x in (query, key, value):
                x.masked_fill_(~inputs["key_mask"][:, None, :, None], float("nan"))
    if gated:
        gate = torch.rand(sum(prompts), heads, generator=generator) * 2
        gate.flatten()[::3] = 0
        inputs["prefix_gate"] = gate.to(prefix_key)
    return inputs


def make_positions(
    inputs: dict[str, Any], reach: int, buckets: int = 11, seed: int = 2
) -> RelativePositions:
    """Random scores of relative positions for `make_inputs`, of its dtype and device.

    Args:
        reach: the longest distance. Those of more than half the buckets share the outermost.
    """
    query = inputs["query"]
    generator = torch.Generator().manual_seed(seed)
    shape = (buckets, *inputs["prefix_key"].shape[1:])
    key, of_query = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(query) for _ in range(2)
    )
    distance = torch.arange(-reach, reach + 1, device=query.device)
    bucket = (distance + buckets // 2).clamp(0, buckets - 1).int()
    return RelativePositions(key, of_query, bucket)


def pack(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """(batch, heads, length, ...) -> (tokens, heads, ...): the first rows of each sequence."""
    rows = [entry[:, :length].transpose(0, 1) for entry, length in zip(x, lengths, strict=True)]
    return torch.cat(rows)


def textbook_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    *,
    prefix_gate: Tensor | None = None,
    prompt_ids: Tensor | None = None,
    prompt_bounds: Tensor | None = None,
    key_mask: Tensor | None = None,
    positions: RelativePositions | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
) -> Tensor:
    """The form every paper writes: concatenate the prompt to K and V, mask, softmax, multiply.

    Differentiable by autograd; one sequence at a time; inputs must be finite.
    """
    heads, length, head_dim = query.shape[-3:]
    scale = head_dim**-0.5 if scale is None else scale
    place = torch.arange(length, device=query.device)
    distance = place[:, None] - place
    near = distance.abs() <= (length if window is None else window)
    near = near & (distance >= 0) if causal else near
    outputs = []
    for row in range(len(query)):
        prompt = 0 if prompt_ids is None else int(prompt_ids[row])
        start, end = (0, len(prefix_key)) if prompt_bounds is None else prompt_bounds[prompt]
        start, end = (0, 0) if prompt < 0 else (int(start), int(end))
        keys = torch.cat((prefix_key[start:end].transpose(0, 1), key[row]), 1)
        values = torch.cat((prefix_value[start:end].transpose(0, 1), value[row]), 1)
        visible = near if key_mask is None else near & key_mask[row]
        visible = torch.cat((visible.new_ones(length, end - start), visible), 1)
        scores = query[row] @ keys.transpose(1, 2)
        if positions is not None:
            scores[..., end - start :] += _position_scores(query[row], key[row], positions)
        scores = (scores * scale).masked_fill(~visible, float("-inf"))
        weights = scores.softmax(-1)
        if prefix_gate is not None:
            gate = prefix_gate[start:end].T[:, None]  # (heads, 1, prompt_length)
            weights = weights * torch.cat((gate, gate.new_ones(heads, 1, length)), -1)
            weights = weights / weights.sum(-1, keepdim=True)
        weights = weights.masked_fill(~visible.any(-1, keepdim=True), 0)
        outputs.append(weights @ values)
    return torch.stack(outputs) if outputs else torch.zeros_like(query)


def _position_scores(query: Tensor, key: Tensor, positions: RelativePositions) -> Tensor:
    """(heads, length, length), every row of a table looked up for every pair of places."""
    place = torch.arange(query.shape[1], device=query.device)
    reach = len(positions.bucket) // 2
    bucket = positions.bucket.long()[place[:, None] - place + reach]
    scores = query.new_zeros(len(query), len(place), len(place))
    if positions.key is not None:
        scores = scores + torch.einsum("hid,ijhd->hij", query, positions.key[bucket])
    if positions.query is not None:
        scores = scores + torch.einsum("hjd,ijhd->hij", key, positions.query[bucket])
    return scores


def relative_l2(actual: Tensor, exact: Tensor) -> float:
    """|actual - exact| / |exact| in float64; the absolute error where exact is zero."""
    actual, exact = actual.detach().double(), exact.detach().double()
    error, norm = (actual - exact).norm(), exact.norm()
    return float(error / norm if norm > 0 else error)

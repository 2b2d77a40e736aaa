"""Every way to attend over a prompt and a sequence, under one signature: `rival(inputs) -> out`.

`inputs` is what `Problem.make` returns. A rival gives (batch, heads, length, head_dim), whose
padded rows mean nothing. What it cannot do raises `Unsupported` with the reason.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ptv2_kernels import prefix_attention, prefix_attention_varlen

Rival = Callable[["AttentionInputs"], Tensor]


class Unsupported(Exception):
    """A rival cannot do this problem; says why."""


@dataclass
class AttentionInputs:
    """The tensors of one problem; the packed ones are the same sequences without padding."""

    query: Tensor  # (batch, heads, length, head_dim)
    key: Tensor
    value: Tensor
    prefix_key: Tensor  # (prompts * prompt_length, heads, head_dim)
    prefix_value: Tensor
    prompt_ids: Tensor | None  # (batch,)
    prompt_bounds: Tensor | None
    key_mask: Tensor | None  # (batch, length)
    lengths: list[int]
    dropout_p: float

    def prompts(self) -> tuple[Tensor, Tensor]:
        """Each sequence's prompt, (batch, heads, prompt_length, head_dim), a view if shared."""
        batch, heads, _, head_dim = self.query.shape
        if self.prompt_ids is None:
            return tuple(
                x.transpose(0, 1).expand(batch, -1, -1, -1)
                for x in (self.prefix_key, self.prefix_value)
            )
        count = len(self.prompt_bounds)
        return tuple(
            x.view(count, -1, heads, head_dim)[self.prompt_ids].transpose(1, 2)
            for x in (self.prefix_key, self.prefix_value)
        )

    def concatenated(self, copied: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and a mask with the prompt in front: what every other package makes."""
        prefix_key, prefix_value = self.prompts()
        if copied:  # as a cache of past keys and values is made
            prefix_key, prefix_value = prefix_key.contiguous(), prefix_value.contiguous()
        keys = torch.cat((prefix_key, self.key), 2)
        values = torch.cat((prefix_value, self.value), 2)
        if self.key_mask is None:
            return keys, values, None
        seen = self.key_mask.new_ones(len(self.query), prefix_key.shape[2])
        return keys, values, torch.cat((seen, self.key_mask), 1)[:, None, None, :]


def ptv2(impl: str, inputs: AttentionInputs) -> Tensor:
    """This package, padded."""
    return prefix_attention(
        *(inputs.query, inputs.key, inputs.value, inputs.prefix_key, inputs.prefix_value),
        prompt_ids=inputs.prompt_ids,
        prompt_bounds=inputs.prompt_bounds,
        key_mask=inputs.key_mask,
        dropout_p=inputs.dropout_p,
        impl=impl,
    )


def ptv2_packed(impl: str, inputs: AttentionInputs) -> Tensor:
    """This package, packed; packing and unpacking is part of the call."""
    packed, unpack = _packed(inputs, with_prompt=False)
    out = prefix_attention_varlen(
        *packed[:3],
        *(inputs.prefix_key, inputs.prefix_value),
        *packed[3:],
        prompt_ids=inputs.prompt_ids,
        prompt_bounds=inputs.prompt_bounds,
        dropout_p=inputs.dropout_p,
        impl=impl,
    )
    return unpack(out)


def sdpa(backend: SDPBackend, copied: bool, inputs: AttentionInputs) -> Tensor:
    """Concatenate and call torch's fused attention, with one of its backends."""
    keys, values, mask = inputs.concatenated(copied)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(
            inputs.query, keys, values, attn_mask=mask, dropout_p=inputs.dropout_p
        )


def eager(inputs: AttentionInputs) -> Tensor:
    """Concatenate, and write the textbook's formula in plain torch."""
    keys, values, mask = inputs.concatenated()
    scores = inputs.query @ keys.transpose(-1, -2) * inputs.query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
    return F.dropout(weights, inputs.dropout_p) @ values


def flex(inputs: AttentionInputs) -> Tensor:
    """Concatenate and call FlexAttention with the mask as a function."""
    if inputs.dropout_p:
        raise Unsupported("no dropout")
    keys, values, mask = inputs.concatenated()
    block_mask = None
    if mask is not None:
        block_mask = _block_mask(mask[:, 0, 0], inputs.query.shape[2])
    return _flex_attention(inputs.query.is_cuda)(inputs.query, keys, values, block_mask=block_mask)


@cache
def _flex_attention(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention


def _block_mask(seen: Tensor, length: int) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(
        lambda b, h, row, column: seen[b, column],
        *(len(seen), None, length, seen.shape[1]),
        device=seen.device,
    )


def torch_varlen(inputs: AttentionInputs) -> Tensor:
    """Pack, each sequence behind its prompt, and call torch's attention over packed sequences."""
    if inputs.dropout_p:
        raise Unsupported("no dropout")
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise Unsupported(str(error)) from None
    (query, key, value, ends, longest), unpack = _packed(inputs, with_prompt=True)
    key_ends = ends + inputs.prompts()[0].shape[2] * torch.arange(len(ends)).to(ends)
    return unpack(
        varlen_attn(query, key, value, ends, key_ends, longest, longest + _prompt_length(inputs))
    )


def flash_attn(inputs: AttentionInputs) -> Tensor:
    """Pack, each sequence behind its prompt, and call the flash-attn package."""
    try:
        function = importlib.import_module("flash_attn").flash_attn_varlen_func
    except ImportError as error:
        raise Unsupported(str(error)) from None
    (query, key, value, ends, longest), unpack = _packed(inputs, with_prompt=True)
    key_ends = ends + _prompt_length(inputs) * torch.arange(len(ends)).to(ends)
    longest_key = longest + _prompt_length(inputs)
    return unpack(
        function(
            *(query, key, value, ends, key_ends.int(), longest, longest_key),
            dropout_p=inputs.dropout_p,
        )
    )


def _prompt_length(inputs: AttentionInputs) -> int:
    count = 1 if inputs.prompt_bounds is None else len(inputs.prompt_bounds)
    return len(inputs.prefix_key) // count


def _packed(inputs: AttentionInputs, with_prompt: bool) -> tuple[tuple[Any, ...], Any]:
    """(query, key, value, cu_seqlens, longest) of the packed sequences, and the way back.

    Which tokens are real is known on the host, as it is to whoever tokenises.
    """
    batch, _, length, _ = inputs.query.shape
    device = inputs.query.device
    places = _token_places(tuple(inputs.lengths), length, str(device))
    own = [
        x.transpose(1, 2).flatten(0, 1)[places] for x in (inputs.query, inputs.key, inputs.value)
    ]
    if with_prompt:
        key_places = _key_places(
            tuple(inputs.lengths), length, _prompt_length(inputs), str(device)
        )
        keys, values, _ = inputs.concatenated()
        own[1:] = [x.transpose(1, 2).flatten(0, 1)[key_places] for x in (keys, values)]
    ends = _ends(tuple(inputs.lengths), str(device))

    def unpack(out: Tensor) -> Tensor:
        rows = out.new_zeros(batch * length, *out.shape[1:])
        return rows.index_copy(0, places, out).unflatten(0, (batch, length)).transpose(1, 2)

    return (*own, ends, max(inputs.lengths)), unpack


@cache
def _token_places(lengths: tuple[int, ...], length: int, device: str) -> Tensor:
    rows = [torch.arange(n) + i * length for i, n in enumerate(lengths)]
    return torch.cat(rows).to(device)


@cache
def _key_places(lengths: tuple[int, ...], length: int, prompt: int, device: str) -> Tensor:
    rows = [torch.arange(prompt + n) + i * (prompt + length) for i, n in enumerate(lengths)]
    return torch.cat(rows).to(device)


@cache
def _ends(lengths: tuple[int, ...], device: str) -> Tensor:
    return torch.tensor((0, *lengths)).cumsum(0).to(torch.int32).to(device)


RIVALS: dict[str, Rival] = {
    "ptv2 triton": partial(ptv2, "triton"),
    "ptv2 triton packed": partial(ptv2_packed, "triton"),
    "ptv2 reference": partial(ptv2, "reference"),
    "concat, sdpa flash": partial(sdpa, SDPBackend.FLASH_ATTENTION, False),
    "concat, sdpa cudnn": partial(sdpa, SDPBackend.CUDNN_ATTENTION, False),
    "concat, sdpa efficient": partial(sdpa, SDPBackend.EFFICIENT_ATTENTION, False),
    "concat, sdpa math": partial(sdpa, SDPBackend.MATH, False),
    "expanded copy, sdpa efficient": partial(sdpa, SDPBackend.EFFICIENT_ATTENTION, True),
    "concat, eager": eager,
    "concat, flex": flex,
    "concat, torch varlen": torch_varlen,
    "concat, flash-attn": flash_attn,
}


@contextmanager
def refusals(name: str) -> Iterator[None]:
    """Turn what a library says when it refuses inputs into `Unsupported`."""
    try:
        yield
    except Unsupported:
        raise
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AssertionError) as error:
        if name.startswith("ptv2"):
            raise
        raise Unsupported(str(error).strip().splitlines()[-1][:200]) from None

"""Every way to attend over a prompt and a sequence, under one signature: `rival(inputs) -> out`.

`inputs` is what `Problem.make` returns. A rival gives (batch, heads, length, head_dim), whose
padded rows mean nothing. What it cannot do raises `Unsupported` with the reason.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from ptv2_kernels import prefix_attention, prefix_attention_varlen

Rival = Callable[["AttentionInputs"], Tensor]


class Unsupported(Exception):
    """A rival cannot do this problem; says why."""


@dataclass
class AttentionInputs:
    """The tensors of one problem."""

    query: Tensor  # (batch, heads, length, head_dim)
    key: Tensor
    value: Tensor
    prefix_key: Tensor  # (prompts * prompt_length, heads, head_dim)
    prefix_value: Tensor
    prompt_ids: Tensor | None  # (batch,)
    prompt_bounds: Tensor | None
    key_mask: Tensor | None  # (batch, length)
    plan: "Plan"
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

    def concatenated(self, copied: bool = False) -> tuple[Tensor, Tensor]:
        """Keys and values with the prompt in front: what every other package makes."""
        prefix_key, prefix_value = self.prompts()
        if copied:  # as a cache of past keys and values is made
            prefix_key, prefix_value = prefix_key.contiguous(), prefix_value.contiguous()
        return torch.cat((prefix_key, self.key), 2), torch.cat((prefix_value, self.value), 2)


class Plan:
    """What a model prepares once for all its layers; nothing here is timed.

    Args:
        key_mask: (batch, length), or None.
        lengths: of the sequences; known on the host, as they are to whoever tokenises.
        prompt_ids: which prompt each sequence uses, on the host.
    """

    def __init__(
        self, key_mask: Tensor | None, lengths: list[int], prompt_ids: list[int],
        length: int, prompt_length: int, pool_rows: int, device: torch.device,
    ) -> None:  # fmt: skip
        self.lengths, self.length, self.prompt_length = lengths, length, prompt_length
        self.wide_mask: Tensor | None = None  # with the prompt in front: (batch, 1, 1, keys)
        if key_mask is not None:
            seen = key_mask.new_ones(len(lengths), prompt_length)
            self.wide_mask = torch.cat((seen, key_mask), 1)[:, None, None, :]
        # Packed: rows of the padded tokens; and of the pool with the padded tokens behind it.
        own = [torch.arange(n) + i * length for i, n in enumerate(lengths)]
        prompts = [torch.arange(prompt_length) + i * prompt_length for i in prompt_ids]
        pairs = zip(prompts, own, strict=True)
        keys = [torch.cat((prompt, pool_rows + rows)) for prompt, rows in pairs]
        ends = torch.tensor((0, *lengths)).cumsum(0)
        key_ends = ends + prompt_length * torch.arange(len(ends))
        self.tokens, self.keys = torch.cat(own).to(device), torch.cat(keys).to(device)
        self.ends, self.key_ends = ends.int().to(device), key_ends.int().to(device)
        self.longest = max(lengths)

    @cached_property
    def block_mask(self) -> Any:
        """The mask as FlexAttention wants it."""
        if self.wide_mask is None:
            return None
        seen = self.wide_mask[:, 0, 0]
        return create_block_mask(
            lambda b, h, row, column: seen[b, column],
            *(len(seen), None, self.length, seen.shape[1]),
            device=seen.device,
        )


def require_here(impl: str, inputs: AttentionInputs) -> None:
    """Triton kernels are a GPU's, or the interpreter's; the native implementation is a CPU's."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if impl == "native" and inputs.query.is_cuda:
        raise Unsupported("not on a GPU")
    if impl == "triton" and not (inputs.query.is_cuda or interpreted):
        raise Unsupported("not on a CPU")


def ptv2(impl: str, inputs: AttentionInputs) -> Tensor:
    """This package, padded."""
    require_here(impl, inputs)
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
    require_here(impl, inputs)
    plan = inputs.plan
    matrices = (inputs.query, inputs.key, inputs.value)
    out = prefix_attention_varlen(
        *(token_rows(x)[plan.tokens] for x in matrices),
        *(inputs.prefix_key, inputs.prefix_value),
        *(plan.ends, plan.longest),
        prompt_ids=inputs.prompt_ids,
        prompt_bounds=inputs.prompt_bounds,
        dropout_p=inputs.dropout_p,
        impl=impl,
    )
    return unpacked(out, inputs)


def token_rows(x: Tensor) -> Tensor:
    """(batch, heads, length, head_dim) -> (batch * length, heads, head_dim)."""
    return x.transpose(1, 2).flatten(0, 1)


def packed(inputs: AttentionInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the tokens, and keys and values of each sequence behind its prompt."""
    keys, values = (
        torch.cat((pool, token_rows(own)))[inputs.plan.keys]
        for pool, own in ((inputs.prefix_key, inputs.key), (inputs.prefix_value, inputs.value))
    )
    return token_rows(inputs.query)[inputs.plan.tokens], keys, values


def unpacked(out: Tensor, inputs: AttentionInputs) -> Tensor:
    """(tokens, heads, head_dim) -> (batch, heads, length, head_dim), 0 where padded."""
    batch, _, length, _ = inputs.query.shape
    rows = out.new_zeros(batch * length, *out.shape[1:])
    rows = rows.index_copy(0, inputs.plan.tokens, out)
    return rows.unflatten(0, (batch, length)).transpose(1, 2)


def sdpa(backend: SDPBackend, copied: bool, inputs: AttentionInputs) -> Tensor:
    """Concatenate and call torch's fused attention, with one of its backends."""
    keys, values = inputs.concatenated(copied)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(
            inputs.query, keys, values, attn_mask=inputs.plan.wide_mask, dropout_p=inputs.dropout_p
        )


def eager(inputs: AttentionInputs) -> Tensor:
    """Concatenate, and write the textbook's formula in plain torch."""
    keys, values = inputs.concatenated()
    scores = inputs.query @ keys.transpose(-1, -2) * inputs.query.shape[-1] ** -0.5
    if inputs.plan.wide_mask is not None:
        scores = scores.masked_fill(~inputs.plan.wide_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
    return F.dropout(weights, inputs.dropout_p) @ values


def flex(inputs: AttentionInputs) -> Tensor:
    """Concatenate and call FlexAttention, compiled for the shape, with the mask as a function."""
    if inputs.dropout_p:
        raise Unsupported("no dropout")
    keys, values = inputs.concatenated()
    function = compiled_flex() if inputs.query.is_cuda else flex_attention
    return function(inputs.query, keys, values, block_mask=inputs.plan.block_mask)


@cache
def compiled_flex() -> Any:
    """FlexAttention as it is meant to be used; `forget_shapes` before a new shape."""
    return torch.compile(flex_attention, dynamic=False)


def forget_shapes() -> None:
    """Start compiling afresh: past its limit of shapes torch would go on without compiling."""
    torch._dynamo.reset()
    compiled_flex.cache_clear()


def torch_varlen(inputs: AttentionInputs) -> Tensor:
    """Pack, each sequence behind its prompt, and call torch's attention over packed sequences."""
    if inputs.dropout_p:
        raise Unsupported("no dropout")
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise Unsupported(str(error)) from None
    plan = inputs.plan
    longest = (plan.longest, plan.longest + plan.prompt_length)
    return unpacked(varlen_attn(*packed(inputs), plan.ends, plan.key_ends, *longest), inputs)


def flash_attn(inputs: AttentionInputs) -> Tensor:
    """Pack, each sequence behind its prompt, and call the flash-attn package."""
    try:
        function = importlib.import_module("flash_attn").flash_attn_varlen_func
    except ImportError as error:
        raise Unsupported(str(error)) from None
    plan = inputs.plan
    longest = (plan.longest, plan.longest + plan.prompt_length)
    arguments = (*packed(inputs), plan.ends, plan.key_ends, *longest)
    return unpacked(function(*arguments, dropout_p=inputs.dropout_p), inputs)


RIVALS: dict[str, Rival] = {
    "ptv2 triton": partial(ptv2, "triton"),
    "ptv2 triton packed": partial(ptv2_packed, "triton"),
    "ptv2 native": partial(ptv2, "native"),
    "ptv2 native packed": partial(ptv2_packed, "native"),
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
        lines = (str(error).strip() or type(error).__name__).splitlines()
        where = 0 if lines[0].startswith("Could not run") else -1  # the rest lists all kernels
        raise Unsupported(lines[where][:200]) from None

"""The public functions: autocast, the dropout seed, and one operator for both layouts."""

from typing import Literal

import torch
from torch import Tensor

from . import ops as ops
from .arguments import Inputs, RelativePositions
from .implementations import choose_implementation
from .validation import (
    validate_options,
    validate_packed,
    validate_padded,
)

Impl = Literal["auto", "triton", "native", "reference"]


def prefix_attention(
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
    dropout_p: float = 0.0,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
    return_lse: bool = False,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend over a prompt and the sequence itself in one softmax.

    Sequence ``b`` with prompt ``t`` gets
    ``softmax(scale * Q_b [Kp_t; K_b]^T + mask) [Vp_t; V_b]``. The prompt is a separate block of
    keys and values: it is not concatenated, not expanded over the batch, and every row sees it.

    Args:
        query, key, value: ``(batch, heads, length, head_dim)``, any strides with a last one of 1.
        prefix_key, prefix_value: the pool, ``(prefix_tokens, heads, head_dim)``: the rows of all
            prompts; in the query's dtype or float32, in which their gradients come back.
        prefix_gate: ``(prefix_tokens, heads)``, values >= 0 in the pool's dtype or float32: each
            multiplies the exponential of its prompt row's scores, so that 0 hides the row and 1
            changes nothing. The gradient at 0 is that of opening the gate; there a score counts as
            at most 69 above its row's log-sum-exp, so that float32 holds it. None: 1 everywhere.
            Values are checked on the CPU only.
        prompt_ids: ``(batch,)`` int32 or int64, the prompt of each sequence, -1 for none. None:
            prompt 0 for all. Values are checked on the CPU only (a check would stall a GPU).
        prompt_bounds: ``(prompts, 2)`` int32, the rows ``[start, end)`` of each prompt in the
            pool. None: one prompt, the whole pool.
        key_mask: ``(batch, length)`` bool, True = attend; any pattern. Keys and values at masked
            positions, NaN included, reach nothing. A query there is a row like any other, but what
            is not finite of it, and of the gradients that arrive there, counts as 0.
        positions: scores of the distance between a row and an own column, as DeBERTa has them;
            they get no gradient, and ``reach`` is at least ``length - 1``. None: none.
        dropout_p: probability of dropping an attention weight, in ``[0, 1)``; the mask is a
            function of (seed, sequence, head, row, column) with a seed from torch's generator.
        scale: factor of the scores. None: ``head_dim ** -0.5``.
        causal: row ``i`` sees the prompt and its own columns ``j <= i``.
        window: row ``i`` sees the prompt and its own columns with ``|i - j| <= window``.
        return_lse: also return the log-sum-exp of the scores, natural log, ``(batch, heads,
            length)`` float32; -inf for a row that sees nothing. It is differentiable.
        impl: "triton" (CUDA; on the CPU only with TRITON_INTERPRET=1), "native" (CPU),
            "reference", or "auto": triton for CUDA tensors in up to 32 bits and a head_dim up to
            128, native for those of a CPU in up to 32 bits if it was built, else reference. An
            explicit choice never falls back.

    Returns:
        ``(batch, heads, length, head_dim)``, laid out so that ``.transpose(1, 2)`` is contiguous.
        A row that sees nothing is 0, with zero gradients.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or value.
        NotImplementedError: the implementation does not exist here or cannot take the inputs; or
            a second derivative is asked for.
    """
    query, key, value = _autocast(query, key, value)
    inputs = Inputs(
        *(query, key, value, prefix_key, prefix_value, prefix_gate),
        *(prompt_ids, prompt_bounds, key_mask, None, None),
        *(positions or ()),
    )
    validate_padded(inputs)
    chosen = choose_implementation(impl, inputs)
    out, lse = _attend(inputs, dropout_p, scale, causal, window, query.shape[2], chosen)
    return (out, lse) if return_lse else out


def prefix_attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int | None = None,
    *,
    prefix_gate: Tensor | None = None,
    prompt_ids: Tensor | None = None,
    prompt_bounds: Tensor | None = None,
    key_mask: Tensor | None = None,
    positions: RelativePositions | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
    return_lse: bool = False,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """`prefix_attention` for sequences of different lengths, packed one after another.

    Args:
        query, key, value: ``(tokens, heads, head_dim)``, any strides with a last one of 1.
        prefix_key, prefix_value: the pool, ``(prefix_tokens, heads, head_dim)``.
        cu_seqlens: ``(sequences + 1,)`` int32; sequence ``s`` has the tokens ``[cu_seqlens[s],
            cu_seqlens[s + 1])``, which may be none. It rises from 0 to the number of tokens;
            values are checked on the CPU only.
        max_seqlen: no sequence is longer. It only helps to choose kernels; a GPU never waits to
            find it out. One that is too small is an error on the CPU; on a GPU gradients are then
            NaN or right, and never wrong.
        prompt_ids: ``(sequences,)``.
        key_mask: ``(tokens,)`` bool.
        prefix_gate, prompt_bounds, positions, dropout_p, scale, causal, window, impl: as in
            `prefix_attention`; the rows, columns and dropout masks of a sequence do not depend on
            where it lies.
        return_lse: also return the log-sum-exp, ``(heads, tokens)``.

    Returns:
        ``(tokens, heads, head_dim)``, contiguous.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or value.
        NotImplementedError: the implementation does not exist here or cannot take the inputs; or
            a second derivative is asked for.
    """
    query, key, value = _autocast(query, key, value)
    inputs = Inputs(
        *(query, key, value, prefix_key, prefix_value, prefix_gate),
        *(prompt_ids, prompt_bounds, key_mask, cu_seqlens, None),
        *(positions or ()),
    )
    validate_packed(inputs, max_seqlen)
    chosen = choose_implementation(impl, inputs)
    entry = inputs._replace(
        query=query.transpose(0, 1)[None],
        key=key.transpose(0, 1)[None],
        value=value.transpose(0, 1)[None],
        key_mask=None if key_mask is None else key_mask[None],
    )
    max_length = query.shape[0] if max_seqlen is None else max_seqlen
    out, lse = _attend(entry, dropout_p, scale, causal, window, max_length, chosen)
    out = out[0].transpose(0, 1)
    return (out, lse[0]) if return_lse else out


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _attend(
    inputs: Inputs,
    dropout_p: float,
    scale: float | None,
    causal: bool,
    window: int | None,
    max_length: int,
    impl: str,
) -> tuple[Tensor, Tensor]:
    validate_options(dropout_p, scale, window)
    query = inputs.query
    if dropout_p > 0:
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=query.device)
        inputs = inputs._replace(seed=seed)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out, lse = torch.ops.ptv2.prefix_attention(
        *inputs, dropout_p, scale, causal, window, max_length, impl
    )
    return out, lse

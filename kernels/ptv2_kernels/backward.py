"""Backward kernels of prefix attention; P is recomputed from the saved log-sum-exp.

With P = exp(S - lse), dropout's keep mask M (0 or 1 / keep rate), delta = rowsum(dO * O) - dlse:

    dV = (P * M)^T dO    dS = P * (M * (dO V^T) - delta)    dQ = scale dS K    dK = scale dS^T Q

Every gradient element is summed by one program in a fixed order: no atomics, the same bits in
every run. The prompt's gradient is summed over the batch inside its kernel, in a few splits of the
batch whose fp32 partial sums are added at the end.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .primitives import (
    LN_2,
    LOG2_E,
    OWN_COLUMN_OFFSET,
    attended,
    column_range,
    dot_precision,
    drop,
    dropout_argument,
    dropout_keep,
    dropout_keep_unaligned,
    load_row_state,
    load_rows,
    load_tile,
    locate_program,
    mask_argument,
    matrix_argument,
    own_bias,
    prompt_arguments,
    prompt_rows,
    recompute_weights,
    row_range,
    score_gradient,
    sequence_rows,
    store_tile,
    zero_non_finite,
)
from .tiling import padded_head_dim, select_tiles

MAX_SPLITS = 8  # of the batch, in the sum of the prompt's gradient
SEQUENCES_PER_SPLIT = 4


@triton.jit(do_not_specialize=["heads", "length"])
def _delta_kernel(
    grad_out, out, grad_lse_ptr, key_mask_ptr, delta_ptr, heads, length,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One program: delta of BLOCK_M rows of one (batch, head)."""
    block, batch, head = locate_program(tl.cdiv(length, BLOCK_M), heads)
    start, rows_end = sequence_rows(batch, length)
    place = (batch, head, start)
    mask_row = batch * length + start
    state_row = (batch * heads + head) * length + start

    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    do = load_rows(grad_out, place, rows, rows_end, key_mask_ptr, mask_row, HEAD_DIM, BLOCK_D)
    o = load_tile(out, place, rows, rows < rows_end, HEAD_DIM, BLOCK_D)
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    if grad_lse_ptr is not None:
        delta -= tl.load(grad_lse_ptr + state_row + rows, mask=rows < rows_end, other=0.0)
    tl.store(delta_ptr + state_row + rows, delta, mask=rows < rows_end)


@triton.jit
def _add_query_grad(
    dq, q, k, v, do, bias, keep, lse, delta, dropout, score_scale, PRECISION: tl.constexpr
):
    """dQ plus the share dS K of one tile of keys and values, without the scale."""
    weights = recompute_weights(q, k, bias, lse[:, None], score_scale, PRECISION)
    weight_grad = tl.dot(do, tl.trans(v), input_precision=PRECISION)
    score_grad = score_gradient(weights, weight_grad, keep, delta[:, None], dropout)
    return tl.dot(score_grad.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit(do_not_specialize=["heads", "length", "pool_rows", "window"])
def _query_grad_kernel(
    grad_out, query, key, value, prefix_key, prefix_value, prompt_ids_ptr, prompt_bounds_ptr,
    key_mask_ptr, dropout, lse_ptr, delta_ptr, grad_query,
    heads, length, pool_rows, score_scale, window,
    HAS_PREFIX: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: dQ of BLOCK_M rows of one (batch, head)."""
    block, batch, head = locate_program(tl.cdiv(length, BLOCK_M), heads)
    start, rows_end = sequence_rows(batch, length)
    place = (batch, head, start)
    mask_row = batch * length + start
    state_row = (batch * heads + head) * length + start

    first_row = block * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    q = load_rows(query, place, rows, rows_end, key_mask_ptr, mask_row, HEAD_DIM, BLOCK_D)
    do = load_rows(grad_out, place, rows, rows_end, key_mask_ptr, mask_row, HEAD_DIM, BLOCK_D)
    lse, delta = load_row_state(lse_ptr, delta_ptr, state_row, rows, rows_end)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    if HAS_PREFIX:
        pool_start, pool_end = prompt_rows(prompt_ids_ptr, prompt_bounds_ptr, batch, pool_rows)
        prompt_length = pool_end - pool_start
        prompt_place = (batch, head, pool_start)
        for first in tl.range(0, prompt_length, BLOCK_P, num_stages=1):
            columns = first + tl.arange(0, BLOCK_P)
            seen = columns < prompt_length
            k = load_tile(prefix_key, prompt_place, columns, seen, HEAD_DIM, BLOCK_D).to(q.dtype)
            v = load_tile(prefix_value, prompt_place, columns, seen, HEAD_DIM, BLOCK_D).to(q.dtype)
            bias = tl.where(seen, 0.0, -float("inf"))[None, :]
            keep = dropout_keep(dropout, place, rows, first, BLOCK_P)
            dq = _add_query_grad(
                dq, q, k, v, do, bias, keep, lse, delta, dropout, score_scale, PRECISION
            )

    begin, end = column_range(first_row, rows_end, window, CAUSAL, BLOCK_M, BLOCK_N)
    for first in range(begin, end, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        seen = attended(key_mask_ptr, mask_row, columns, rows_end)
        k = load_tile(key, place, columns, seen, HEAD_DIM, BLOCK_D)
        v = load_tile(value, place, columns, seen, HEAD_DIM, BLOCK_D)
        bias = own_bias(seen[None, :], rows[:, None], columns[None, :], window, CAUSAL)
        keep = dropout_keep(dropout, place, rows, OWN_COLUMN_OFFSET + first, BLOCK_N)
        dq = _add_query_grad(
            dq, q, k, v, do, bias, keep, lse, delta, dropout, score_scale, PRECISION
        )

    dq *= score_scale * LN_2
    if key_mask_ptr is not None:
        source = load_tile(query, place, rows, rows < rows_end, HEAD_DIM, BLOCK_D)
        dq = zero_non_finite(dq, source, key_mask_ptr, mask_row, rows, rows_end)
    store_tile(grad_query, place, dq, rows, rows < rows_end, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=["heads", "length", "window"])
def _key_value_grad_kernel(
    grad_out, query, key, value, key_mask_ptr, dropout, lse_ptr, delta_ptr, grad_key, grad_value,
    heads, length, score_scale, window,
    NEEDS_KEY: tl.constexpr, NEEDS_VALUE: tl.constexpr,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: dK and dV of BLOCK_N own columns of one (batch, head), on transposed tiles."""
    block, batch, head = locate_program(tl.cdiv(length, BLOCK_N), heads)
    start, rows_end = sequence_rows(batch, length)
    place = (batch, head, start)
    mask_row = batch * length + start
    state_row = (batch * heads + head) * length + start

    first = block * BLOCK_N
    columns = first + tl.arange(0, BLOCK_N)
    seen = attended(key_mask_ptr, mask_row, columns, rows_end)
    k = load_tile(key, place, columns, seen, HEAD_DIM, BLOCK_D)
    v = load_tile(value, place, columns, seen, HEAD_DIM, BLOCK_D)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)

    begin, end = row_range(first, rows_end, window, CAUSAL, BLOCK_M, BLOCK_N)
    for first_row in range(begin, end, BLOCK_M):
        rows = first_row + tl.arange(0, BLOCK_M)
        q = load_rows(query, place, rows, rows_end, key_mask_ptr, mask_row, HEAD_DIM, BLOCK_D)
        do = load_rows(grad_out, place, rows, rows_end, key_mask_ptr, mask_row, HEAD_DIM, BLOCK_D)
        lse, delta = load_row_state(lse_ptr, delta_ptr, state_row, rows, rows_end)
        bias = own_bias(seen[:, None], rows[None, :], columns[:, None], window, CAUSAL)
        keep = tl.trans(dropout_keep(dropout, place, rows, OWN_COLUMN_OFFSET + first, BLOCK_N))
        weights = recompute_weights(k, q, bias, lse[None, :], score_scale, PRECISION)
        if NEEDS_VALUE:
            kept = drop(weights, keep, dropout).to(do.dtype)
            dv = tl.dot(kept, do, dv, input_precision=PRECISION)
        if NEEDS_KEY:
            weight_grad = tl.dot(v, tl.trans(do), input_precision=PRECISION)
            score_grad = score_gradient(weights, weight_grad, keep, delta[None, :], dropout)
            dk = tl.dot(score_grad.to(q.dtype), q, dk, input_precision=PRECISION)

    inside = columns < rows_end
    if NEEDS_KEY:
        dk *= score_scale * LN_2
        store_tile(grad_key, place, dk, columns, inside, HEAD_DIM, BLOCK_D)
    if NEEDS_VALUE:
        dv *= dropout[2]
        store_tile(grad_value, place, dv, columns, inside, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=["batch_size", "heads", "length", "pool_rows", "splits"])
def _prefix_grad_kernel(
    grad_out, query, prefix_key, prefix_value, prompt_ids_ptr, prompt_bounds_ptr,
    key_mask_ptr, dropout, lse_ptr, delta_ptr, partial_key, partial_value,
    batch_size, heads, length, pool_rows, splits, score_scale,
    NEEDS_KEY: tl.constexpr, NEEDS_VALUE: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of BLOCK_P pool rows, one head, over every splits-th sequence.

    A sequence whose prompt lies elsewhere takes no time; prompts may overlap and leave gaps.
    """
    block, split, head = locate_program(tl.cdiv(pool_rows, BLOCK_P), heads)
    first = block * BLOCK_P
    positions = first + tl.arange(0, BLOCK_P)
    inside = positions < pool_rows
    pool_place = (split, head, 0)
    dtype = query[0].dtype.element_ty
    k = load_tile(prefix_key, pool_place, positions, inside, HEAD_DIM, BLOCK_D).to(dtype)
    v = load_tile(prefix_value, pool_place, positions, inside, HEAD_DIM, BLOCK_D).to(dtype)
    # Transposed, so that the wide dimension is the one the matrix instructions want wide.
    dk = tl.zeros([BLOCK_D, BLOCK_P], tl.float32)
    dv = tl.zeros([BLOCK_D, BLOCK_P], tl.float32)

    for index in range(split, batch_size, splits):
        batch = tl.cast(index, tl.int64)
        start, rows_end = sequence_rows(batch, length)
        place = (batch, head, start)
        mask_row = batch * length + start
        state_row = (batch * heads + head) * length + start
        pool_start, pool_end = prompt_rows(prompt_ids_ptr, prompt_bounds_ptr, batch, pool_rows)
        visible = ((positions >= pool_start) & (positions < pool_end))[None, :]
        bias = tl.where(visible, 0.0, -float("inf"))
        touched = (pool_start < first + BLOCK_P) & (pool_end > first)
        for first_row in range(0, tl.where(touched, rows_end, 0), BLOCK_M):
            rows = first_row + tl.arange(0, BLOCK_M)
            q = load_rows(query, place, rows, rows_end, key_mask_ptr, mask_row, HEAD_DIM, BLOCK_D)
            do = load_rows(
                grad_out, place, rows, rows_end, key_mask_ptr, mask_row, HEAD_DIM, BLOCK_D
            )
            lse, delta = load_row_state(lse_ptr, delta_ptr, state_row, rows, rows_end)
            keep = dropout_keep_unaligned(dropout, place, rows, first - pool_start, BLOCK_P)
            weights = recompute_weights(q, k, bias, lse[:, None], score_scale, PRECISION)
            weights = tl.where(visible, weights, 0.0)  # another prompt's row may hold NaN
            if NEEDS_VALUE:
                kept = drop(weights, keep, dropout).to(do.dtype)
                dv = tl.dot(tl.trans(do), kept, dv, input_precision=PRECISION)
            if NEEDS_KEY:
                weight_grad = tl.dot(do, tl.trans(v), input_precision=PRECISION)
                weight_grad = tl.where(visible, weight_grad, 0.0)
                score_grad = score_gradient(weights, weight_grad, keep, delta[:, None], dropout)
                dk = tl.dot(tl.trans(q), score_grad.to(q.dtype), dk, input_precision=PRECISION)

    if NEEDS_KEY:
        dk *= score_scale * LN_2
        store_tile(partial_key, pool_place, tl.trans(dk), positions, inside, HEAD_DIM, BLOCK_D)
    if NEEDS_VALUE:
        dv *= dropout[2]
        store_tile(partial_value, pool_place, tl.trans(dv), positions, inside, HEAD_DIM, BLOCK_D)


def launch_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    prompt_ids: Tensor | None,
    prompt_bounds: Tensor | None,
    key_mask: Tensor | None,
    seed: Tensor | None,
    out: Tensor,
    lse: Tensor,
    needs: list[bool],
    dropout_p: float,
    scale: float,
    causal: bool,
    window: int | None,
) -> tuple[Tensor, ...]:
    """Return the gradients of query, key, value, prefix_key, prefix_value; empty if not needed."""
    batch, heads, length, head_dim = query.shape
    pool_rows = prefix_key.shape[0]
    inputs = (query, key, value, prefix_key, prefix_value)
    grads = [
        torch.empty_like(x) if need else x.new_empty(0)
        for x, need in zip(inputs, needs, strict=True)
    ]
    if query.numel() == 0:
        return tuple(grad.zero_() for grad in grads)
    if grad_out.stride(-1) != 1:
        grad_out = grad_out.contiguous()
    if grad_lse is not None:
        grad_lse = grad_lse.contiguous()
    delta = torch.empty_like(lse)
    needs_query, needs_key, needs_value, needs_prefix_key, needs_prefix_value = needs

    tiles = select_tiles(head_dim, query.dtype, seed is not None)
    rows, own, pool = (
        [matrix_argument(x) for x in group]
        for group in ((grad_out, query), (key, value), (prefix_key, prefix_value))
    )
    prompts = prompt_arguments(prompt_ids, prompt_bounds)
    mask = mask_argument(key_mask)
    state = (mask, dropout_argument(dropout_p, seed), lse, delta)
    score_scale = scale * LOG2_E.value
    window = None if window is None else min(window, length)
    constants = {
        "PRECISION": dot_precision(query.dtype),
        "HEAD_DIM": head_dim,
        "BLOCK_D": padded_head_dim(head_dim),
    }
    with torch.cuda.device_of(query):
        tile = tiles.query_grad
        grid = (triton.cdiv(length, tile.block_m) * batch * heads,)
        _delta_kernel[grid](
            rows[0], matrix_argument(out), grad_lse, mask, delta, heads, length,
            HEAD_DIM=head_dim, BLOCK_D=constants["BLOCK_D"], BLOCK_M=tile.block_m,
            **tile.launch_options,
        )  # fmt: skip
        if needs_query:
            _query_grad_kernel[grid](
                *rows, *own, *pool, *prompts, *state, matrix_argument(grads[0]),
                heads, length, pool_rows, score_scale, window,
                HAS_PREFIX=pool_rows > 0, CAUSAL=causal, **constants,
                BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_P=tile.block_p,
                **tile.launch_options,
            )  # fmt: skip
        if needs_key or needs_value:
            tile = tiles.key_value_grad
            grid = (triton.cdiv(length, tile.block_n) * batch * heads,)
            _key_value_grad_kernel[grid](
                *rows, *own, *state,
                matrix_argument(grads[1]) if needs_key else None,
                matrix_argument(grads[2]) if needs_value else None,
                heads, length, score_scale, window,
                NEEDS_KEY=needs_key, NEEDS_VALUE=needs_value, CAUSAL=causal, **constants,
                BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, **tile.launch_options,
            )  # fmt: skip
        if (needs_prefix_key or needs_prefix_value) and pool_rows > 0:
            tile = tiles.prefix_grad
            splits = max(1, min(MAX_SPLITS, batch // SEQUENCES_PER_SPLIT))
            shape = (2, splits, heads, pool_rows, head_dim)
            partials = query.new_empty(shape, dtype=torch.float32)
            grid = (triton.cdiv(pool_rows, tile.block_p) * splits * heads,)
            _prefix_grad_kernel[grid](
                *rows, *pool, *prompts, *state,
                *(matrix_argument(partial) for partial in partials),
                batch, heads, length, pool_rows, splits, score_scale,
                NEEDS_KEY=needs_prefix_key, NEEDS_VALUE=needs_prefix_value, **constants,
                BLOCK_M=tile.block_m, BLOCK_P=tile.block_p, **tile.launch_options,
            )  # fmt: skip
            for grad, need, partial in zip(grads[3:], needs[3:], partials, strict=True):
                if need:
                    grad.copy_(partial.sum(0).transpose(0, 1))
    return tuple(grads)

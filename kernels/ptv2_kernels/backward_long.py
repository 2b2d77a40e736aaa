"""The backward of sequences of any length: dQ by blocks of rows, dK, dV by blocks of columns."""

import triton
import triton.language as tl
from torch import Tensor

from .arguments import Needs, RowState
from .dropout import OWN_COLUMN_OFFSET, drop, dropout_keep
from .launch import Launch
from .positions import add_to_key_grad, add_to_query_grad, position_scores
from .primitives import (
    LN_2,
    attended,
    column_range,
    gated,
    load_delta,
    load_gate,
    load_lse,
    load_rows,
    load_tile,
    locate_block,
    locate_prompt,
    locate_sequence,
    own_visible,
    recompute_ungated,
    recompute_weights,
    row_delta,
    row_range,
    score_gradient,
    store_tile,
    zero_non_finite,
)
from .tiling import Tile


@triton.jit(do_not_specialize=["sequences", "heads", "length"])
def _delta_kernel(
    grad_out, grad_lse_ptr, cu_seqlens_ptr, sequences, heads, length, key_mask_ptr, out, lse_ptr,
    delta_ptr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One program: delta of BLOCK_M rows of one (sequence, head)."""
    layout = (cu_seqlens_ptr, sequences, heads, length)
    block, sequence, head = locate_block(layout, BLOCK_M)
    own = locate_sequence(layout, sequence, head)
    _, _, _, rows_end, _, state_start = own
    if block * BLOCK_M >= rows_end:
        return
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    do = load_rows(grad_out, own, rows, key_mask_ptr, HEAD_DIM, BLOCK_D)
    delta = row_delta(do, out, lse_ptr, grad_lse_ptr, own, rows, key_mask_ptr, HEAD_DIM, BLOCK_D)
    tl.store(delta_ptr + state_start + rows, delta, mask=rows < rows_end)


@triton.jit
def _add_query_grad(dq, k, v, do, weights, keep, delta, dropout, PRECISION: tl.constexpr):
    """dQ plus the share dS K of one tile of keys and values, without the scale; and dS."""
    weight_grad = tl.dot(do, tl.trans(v), input_precision=PRECISION)
    score_grad = score_gradient(weights, weight_grad, keep, delta[:, None], dropout)
    score_grad = score_grad.to(k.dtype)
    return tl.dot(score_grad, k, dq, input_precision=PRECISION), score_grad


@triton.jit(
    do_not_specialize=["sequences", "heads", "length", "pool_rows", "score_scale", "window"]
)
def _query_grad_kernel(
    grad_out, query, key, value, prefix_key, prefix_value, prefix_gate_ptr,
    cu_seqlens_ptr, sequences, heads, length, prompt_ids_ptr, prompt_bounds_ptr, pool_rows,
    key_mask_ptr, positions, dropout, lse_ptr, delta_ptr, grad_query, score_scale, window,
    HAS_PREFIX: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: dQ of BLOCK_M rows of one (sequence, head)."""
    layout = (cu_seqlens_ptr, sequences, heads, length)
    block, sequence, head = locate_block(layout, BLOCK_M)
    own = locate_sequence(layout, sequence, head)
    sequence, head, start, rows_end, _, _ = own
    place = (sequence, head, start)
    first_row = block * BLOCK_M
    if first_row >= rows_end:
        return

    rows = first_row + tl.arange(0, BLOCK_M)
    q = load_rows(query, own, rows, key_mask_ptr, HEAD_DIM, BLOCK_D)
    do = load_rows(grad_out, own, rows, key_mask_ptr, HEAD_DIM, BLOCK_D)
    lse = load_lse(lse_ptr, own, rows)
    delta = load_delta(delta_ptr, own, rows)
    dq = tl.zeros([BLOCK_M, BLOCK_D], lse_ptr.dtype.element_ty)

    if HAS_PREFIX:
        prompts = (prompt_ids_ptr, prompt_bounds_ptr, pool_rows)
        gates = (prefix_gate_ptr, heads)
        prompt_place, prompt_length = locate_prompt(prompts, own)
        for first in tl.range(0, prompt_length, BLOCK_P, num_stages=1):
            columns = first + tl.arange(0, BLOCK_P)
            seen = columns < prompt_length
            k = load_tile(prefix_key, prompt_place, columns, seen, HEAD_DIM, BLOCK_D).to(q.dtype)
            v = load_tile(prefix_value, prompt_place, columns, seen, HEAD_DIM, BLOCK_D).to(q.dtype)
            gate = load_gate(gates, prompt_place, columns, seen, lse.dtype)
            keep = dropout_keep(dropout, place, rows, first, BLOCK_P)
            ungated = recompute_ungated(
                q, k, gate, seen[None, :], lse[:, None], score_scale, PRECISION
            )
            weights = gated(ungated, gate)
            dq, score_grad = _add_query_grad(
                dq, k, v, do, weights, keep, delta, dropout, PRECISION
            )

    begin, end = column_range(first_row, rows_end, window, CAUSAL, BLOCK_M, BLOCK_N)
    for first in range(begin, end, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        seen = attended(key_mask_ptr, own, columns)
        k = load_tile(key, place, columns, seen, HEAD_DIM, BLOCK_D)
        v = load_tile(value, place, columns, seen, HEAD_DIM, BLOCK_D)
        visible = own_visible(seen[None, :], rows[:, None], columns[None, :], window, CAUSAL)
        keep = dropout_keep(dropout, place, rows, OWN_COLUMN_OFFSET + first, BLOCK_N)
        added = position_scores(
            q, k, positions, head, first_row, first, BLOCK_M, BLOCK_N, HEAD_DIM, BLOCK_D, PRECISION
        )
        weights = recompute_weights(q, k, added, visible, lse[:, None], score_scale, PRECISION)
        dq, score_grad = _add_query_grad(dq, k, v, do, weights, keep, delta, dropout, PRECISION)
        dq = add_to_query_grad(
            dq, score_grad, positions, head, first_row, first, BLOCK_M, BLOCK_N, HEAD_DIM, BLOCK_D,
            PRECISION,
        )  # fmt: skip

    dq *= score_scale * LN_2
    if key_mask_ptr is not None:
        source = load_tile(query, place, rows, rows < rows_end, HEAD_DIM, BLOCK_D)
        dq = zero_non_finite(dq, source, key_mask_ptr, own, rows)
    store_tile(grad_query, place, dq, rows, rows < rows_end, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=["sequences", "heads", "length", "score_scale", "window"])
def _key_value_grad_kernel(
    grad_out, query, key, value, cu_seqlens_ptr, sequences, heads, length,
    key_mask_ptr, positions, dropout, lse_ptr, delta_ptr, grad_key, grad_value,
    score_scale, window,
    NEEDS_KEY: tl.constexpr, NEEDS_VALUE: tl.constexpr,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: dK, dV of BLOCK_N own columns of one (sequence, head), on transposed tiles."""
    layout = (cu_seqlens_ptr, sequences, heads, length)
    block, sequence, head = locate_block(layout, BLOCK_N)
    own = locate_sequence(layout, sequence, head)
    sequence, head, start, rows_end, _, _ = own
    place = (sequence, head, start)
    first = block * BLOCK_N
    if first >= rows_end:
        return

    columns = first + tl.arange(0, BLOCK_N)
    seen = attended(key_mask_ptr, own, columns)
    k = load_tile(key, place, columns, seen, HEAD_DIM, BLOCK_D)
    dk = tl.zeros([BLOCK_N, BLOCK_D], lse_ptr.dtype.element_ty)
    dv = tl.zeros([BLOCK_N, BLOCK_D], lse_ptr.dtype.element_ty)
    if NEEDS_KEY:
        v = load_tile(value, place, columns, seen, HEAD_DIM, BLOCK_D)

    begin, end = row_range(first, rows_end, window, CAUSAL, BLOCK_M, BLOCK_N)
    for first_row in range(begin, end, BLOCK_M):
        rows = first_row + tl.arange(0, BLOCK_M)
        q = load_rows(query, own, rows, key_mask_ptr, HEAD_DIM, BLOCK_D)
        do = load_rows(grad_out, own, rows, key_mask_ptr, HEAD_DIM, BLOCK_D)
        lse = load_lse(lse_ptr, own, rows)
        visible = own_visible(seen[:, None], rows[None, :], columns[:, None], window, CAUSAL)
        keep = tl.trans(dropout_keep(dropout, place, rows, OWN_COLUMN_OFFSET + first, BLOCK_N))
        added = position_scores(
            q, k, positions, head, first_row, first, BLOCK_M, BLOCK_N, HEAD_DIM, BLOCK_D, PRECISION
        )
        if added is not None:
            added = tl.trans(added)
        weights = recompute_weights(k, q, added, visible, lse[None, :], score_scale, PRECISION)
        if NEEDS_VALUE:
            kept = drop(weights, keep, dropout).to(do.dtype)
            dv = tl.dot(kept, do, dv, input_precision=PRECISION)
        if NEEDS_KEY:
            delta = load_delta(delta_ptr, own, rows)[None, :]
            weight_grad = tl.dot(v, tl.trans(do), input_precision=PRECISION)
            score_grad = score_gradient(weights, weight_grad, keep, delta, dropout)
            score_grad = score_grad.to(q.dtype)
            dk = tl.dot(score_grad, q, dk, input_precision=PRECISION)
            dk = add_to_key_grad(
                dk, score_grad, positions, head, first_row, first, BLOCK_M, BLOCK_N, HEAD_DIM,
                BLOCK_D, PRECISION,
            )  # fmt: skip

    inside = columns < rows_end
    if NEEDS_KEY:
        dk *= score_scale * LN_2
        store_tile(grad_key, place, dk, columns, inside, HEAD_DIM, BLOCK_D)
    if NEEDS_VALUE:
        dv *= dropout[2]
        store_tile(grad_value, place, dv, columns, inside, HEAD_DIM, BLOCK_D)


def launch_delta(launch: Launch, rows: RowState, tile: Tile) -> None:
    """Fill delta, (batch, heads, length)."""
    _delta_kernel[(launch.blocks(tile.block_m),)](
        launch.matrix(rows.grad_out), rows.grad_lse, launch.cu_seqlens, *launch.counts,
        launch.mask, launch.matrix(rows.out), rows.lse, rows.delta,
        HEAD_DIM=launch.head_dim, BLOCK_D=launch.constants["BLOCK_D"], BLOCK_M=tile.block_m,
        **tile.launch_options,
    )  # fmt: skip


def launch_query_grad(launch: Launch, rows: RowState, grad: Tensor | None, tile: Tile) -> None:
    """Fill the gradient of the queries."""
    _query_grad_kernel[(launch.blocks(tile.block_m),)](
        launch.matrix(rows.grad_out), *launch.matrices, launch.gate,
        launch.cu_seqlens, *launch.counts, *launch.prompts, launch.pool_rows,
        launch.mask, launch.positions, launch.dropout, rows.lse, rows.delta, launch.matrix(grad),
        launch.score_scale, launch.window,
        HAS_PREFIX=launch.pool_rows > 0, CAUSAL=launch.options.causal, **launch.constants,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_P=tile.block_p, **tile.launch_options,
    )  # fmt: skip


def launch_key_value_grad(
    launch: Launch, rows: RowState, needs: Needs, grads: list[Tensor | None], tile: Tile
) -> None:
    """Fill the gradients of the sequence's keys and values, each if needed."""
    _key_value_grad_kernel[(launch.blocks(tile.block_n),)](
        launch.matrix(rows.grad_out), *launch.matrices[:3],
        launch.cu_seqlens, *launch.counts, launch.mask, launch.positions, launch.dropout,
        rows.lse, rows.delta, *map(launch.matrix, grads), launch.score_scale, launch.window,
        NEEDS_KEY=needs.key, NEEDS_VALUE=needs.value, CAUSAL=launch.options.causal,
        **launch.constants, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, **tile.launch_options,
    )  # fmt: skip

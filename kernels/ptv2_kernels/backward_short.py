"""The backward of sequences that fit one tile of rows: all gradients in one kernel.

The rows of a sequence stay in registers while the program walks the prompt and the sequence's own
keys, so P is recomputed once and five products give everything. No other program adds to what it
writes. Where one prompt serves the whole batch and fits one tile, its gradient is summed in
registers over the program's share of the sequences; other prompts' gradients have a kernel of
their own.
"""

import triton
import triton.language as tl
from torch import Tensor

from .arguments import Needs, RowState
from .backward_prefix import partial_matrix, partial_sums, totals
from .dropout import OWN_COLUMN_OFFSET, drop, dropout_keep
from .launch import Launch
from .primitives import (
    LN_2,
    attended,
    gated,
    load_gate,
    load_lse,
    load_rows,
    load_tile,
    locate_prompt,
    locate_sequence,
    own_visible,
    recompute_ungated,
    recompute_weights,
    row_delta,
    score_gradient,
    store_tile,
    zero_non_finite,
)
from .tiling import Tile


@triton.jit(
    do_not_specialize=[
        "sequences", "heads", "length", "pool_rows", "splits", "score_scale", "window",
    ]
)  # fmt: skip
def _short_grad_kernel(
    grad_out, grad_lse_ptr, query, key, value, prefix_key, prefix_value, prefix_gate_ptr,
    cu_seqlens_ptr, sequences, heads, length, prompt_ids_ptr, prompt_bounds_ptr, pool_rows,
    key_mask_ptr, dropout, out, lse_ptr, delta_ptr,
    grad_query, grad_key, grad_value, partial_key, partial_value, splits, score_scale, window,
    NEEDS_QUERY: tl.constexpr, NEEDS_KEY: tl.constexpr, NEEDS_VALUE: tl.constexpr,
    NEEDS_PREFIX_KEY: tl.constexpr, NEEDS_PREFIX_VALUE: tl.constexpr,
    HAS_PREFIX: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: every splits-th sequence of at most BLOCK_M rows, one head.

    A longer sequence gets gradients of NaN, and so do the keys of its prompt: its `max_seqlen` was
    wrong.
    """
    layout = (cu_seqlens_ptr, sequences, heads, length)
    split = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    # Transposed, so that the wide dimension is the one the matrix instructions want wide.
    prefix_dk = tl.zeros([BLOCK_D, BLOCK_P], lse_ptr.dtype.element_ty)
    prefix_dv = tl.zeros([BLOCK_D, BLOCK_P], lse_ptr.dtype.element_ty)

    for index in range(split, sequences, splits):
        own = locate_sequence(layout, index, head)
        sequence, head_index, start, rows_end, _, state_start = own
        place = (sequence, head_index, start)
        rows = tl.arange(0, BLOCK_M)
        inside = rows < rows_end
        q = load_rows(query, own, rows, key_mask_ptr, HEAD_DIM, BLOCK_D)
        do = load_rows(grad_out, own, rows, key_mask_ptr, HEAD_DIM, BLOCK_D)
        lse = load_lse(lse_ptr, own, rows)
        lse = tl.where(rows_end > BLOCK_M, float("nan"), lse)[:, None]
        if delta_ptr is not None:
            delta = row_delta(
                do, out, lse_ptr, grad_lse_ptr, own, rows, key_mask_ptr, HEAD_DIM, BLOCK_D
            )
            tl.store(delta_ptr + state_start + rows, delta, mask=inside)
            delta = delta[:, None]
        dq = tl.zeros([BLOCK_M, BLOCK_D], lse_ptr.dtype.element_ty)

        if HAS_PREFIX:
            prompts = (prompt_ids_ptr, prompt_bounds_ptr, pool_rows)
            gates = (prefix_gate_ptr, heads)
            prompt_place, prompt_length = locate_prompt(prompts, own)
            for first in tl.range(0, prompt_length, BLOCK_P, num_stages=1):
                columns = first + tl.arange(0, BLOCK_P)
                seen = columns < prompt_length
                k = load_tile(prefix_key, prompt_place, columns, seen, HEAD_DIM, BLOCK_D)
                k = k.to(q.dtype)
                gate = load_gate(gates, prompt_place, columns, seen, lse.dtype)
                keep = dropout_keep(dropout, place, rows, first, BLOCK_P)
                ungated = recompute_ungated(q, k, gate, seen[None, :], lse, score_scale, PRECISION)
                weights = gated(ungated, gate)
                if NEEDS_PREFIX_VALUE:
                    kept = drop(weights, keep, dropout).to(do.dtype)
                    prefix_dv = tl.dot(tl.trans(do), kept, prefix_dv, input_precision=PRECISION)
                if NEEDS_QUERY or NEEDS_PREFIX_KEY:
                    v = load_tile(prefix_value, prompt_place, columns, seen, HEAD_DIM, BLOCK_D)
                    v = v.to(q.dtype)
                    weight_grad = tl.dot(do, tl.trans(v), input_precision=PRECISION)
                    score_grad = score_gradient(weights, weight_grad, keep, delta, dropout)
                    score_grad = score_grad.to(q.dtype)
                    if NEEDS_PREFIX_KEY:
                        prefix_dk = tl.dot(
                            tl.trans(q), score_grad, prefix_dk, input_precision=PRECISION
                        )
                    if NEEDS_QUERY:
                        dq = tl.dot(score_grad, k, dq, input_precision=PRECISION)

        if NEEDS_QUERY or NEEDS_KEY or NEEDS_VALUE:
            for first in range(0, rows_end, BLOCK_N):
                columns = first + tl.arange(0, BLOCK_N)
                seen = attended(key_mask_ptr, own, columns)
                visible = own_visible(
                    seen[None, :], rows[:, None], columns[None, :], window, CAUSAL
                )
                if CAUSAL or window is not None:  # NaN also for columns that only rows beyond see
                    visible = visible | (rows_end > BLOCK_M)
                k = load_tile(key, place, columns, seen, HEAD_DIM, BLOCK_D)
                keep = dropout_keep(dropout, place, rows, OWN_COLUMN_OFFSET + first, BLOCK_N)
                weights = recompute_weights(q, k, None, visible, lse, score_scale, PRECISION)
                if NEEDS_VALUE:
                    kept = drop(weights, keep, dropout).to(do.dtype)
                    dv = tl.dot(tl.trans(do), kept, input_precision=PRECISION) * dropout[2]
                    store_tile(
                        grad_value, place, tl.trans(dv), columns, columns < rows_end, HEAD_DIM,
                        BLOCK_D,
                    )  # fmt: skip
                if NEEDS_QUERY or NEEDS_KEY:
                    v = load_tile(value, place, columns, seen, HEAD_DIM, BLOCK_D)
                    weight_grad = tl.dot(do, tl.trans(v), input_precision=PRECISION)
                    score_grad = score_gradient(weights, weight_grad, keep, delta, dropout)
                    score_grad = score_grad.to(q.dtype)
                    if NEEDS_KEY:
                        dk = tl.dot(tl.trans(q), score_grad, input_precision=PRECISION)
                        dk *= score_scale * LN_2
                        store_tile(
                            grad_key, place, tl.trans(dk), columns, columns < rows_end, HEAD_DIM,
                            BLOCK_D,
                        )  # fmt: skip
                    if NEEDS_QUERY:
                        dq = tl.dot(score_grad, k, dq, input_precision=PRECISION)

        if NEEDS_QUERY:
            dq *= score_scale * LN_2
            if key_mask_ptr is not None:
                source = load_tile(query, place, rows, inside, HEAD_DIM, BLOCK_D)
                dq = zero_non_finite(dq, source, key_mask_ptr, own, rows)
            store_tile(grad_query, place, dq, rows, inside, HEAD_DIM, BLOCK_D)

        for beyond in range(BLOCK_M, rows_end, BLOCK_M):  # rows that were said not to be there
            more = beyond + rows
            if delta_ptr is not None:
                tl.store(delta_ptr + state_start + more, float("nan"), mask=more < rows_end)
            if NEEDS_QUERY:
                store_tile(
                    grad_query, place, dq * float("nan"), more, more < rows_end, HEAD_DIM, BLOCK_D
                )

    positions = tl.arange(0, BLOCK_P)
    share = (split.to(tl.int64), head.to(tl.int64), 0)
    if NEEDS_PREFIX_KEY:
        prefix_dk *= score_scale * LN_2
        store_tile(
            partial_key, share, tl.trans(prefix_dk), positions, positions < pool_rows, HEAD_DIM,
            BLOCK_D,
        )  # fmt: skip
    if NEEDS_PREFIX_VALUE:
        prefix_dv *= dropout[2]
        store_tile(
            partial_value, share, tl.trans(prefix_dv), positions, positions < pool_rows, HEAD_DIM,
            BLOCK_D,
        )  # fmt: skip


def sums_prompt(launch: Launch, needs: Needs, tile: Tile) -> bool:
    """Whether the kernel is to sum the prompt's gradient itself; gates leave it no registers."""
    one_prompt = launch.inputs.prompt_ids is None and launch.inputs.prompt_bounds is None
    fits = launch.pool_rows <= tile.block_p and not needs.prefix_gate
    return needs.prefix and one_prompt and fits


def launch_short_grad(
    launch: Launch, rows: RowState, needs: Needs, grads: list[Tensor | None], tile: Tile
) -> list[Tensor | None]:
    """Fill delta and the sequence's gradients, and return the pool's, each if needed."""
    splits = launch.splits(launch.heads) if needs.prefix else launch.sequences
    sums = partial_sums(launch, needs, splits, rows.lse.dtype)
    _short_grad_kernel[(splits * launch.heads,)](
        launch.matrix(rows.grad_out), rows.grad_lse, *launch.matrices, launch.gate,
        launch.cu_seqlens, *launch.counts, *launch.prompts, launch.pool_rows,
        launch.mask, launch.dropout, launch.matrix(rows.out), rows.lse, rows.delta,
        *map(launch.matrix, grads), *map(partial_matrix, sums[:2]),
        splits, launch.score_scale, launch.window,
        NEEDS_QUERY=needs.query, NEEDS_KEY=needs.key, NEEDS_VALUE=needs.value,
        NEEDS_PREFIX_KEY=needs.prefix_key, NEEDS_PREFIX_VALUE=needs.prefix_value,
        HAS_PREFIX=launch.pool_rows > 0 and (needs.prefix or needs.query),
        CAUSAL=launch.options.causal, **launch.constants,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_P=tile.block_p, **tile.launch_options,
    )  # fmt: skip
    return totals(launch, sums)

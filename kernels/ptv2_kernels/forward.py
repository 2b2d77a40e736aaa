"""Forward kernel of prefix attention: one softmax over the prompt's rows, then the sequence's own.

A program owns a block of query rows of one (sequence, head). This is FlashAttention-2 (Dao 2023,
arXiv:2307.08691) with a first loop over a range of the prompt pool; all loops call `attend_tile`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import Inputs, Options, empty_output
from .dropout import OWN_COLUMN_OFFSET, dropout_keep
from .launch import Launch
from .positions import position_scores
from .primitives import (
    LN_2,
    attend_tile,
    attended,
    column_range,
    load_gate,
    load_rows,
    load_tile,
    locate_block,
    locate_prompt,
    locate_sequence,
    own_visible,
    store_tile,
)
from .tiling import select_tiles


@triton.jit
def _attend_own(
    state, q, key, value, positions, own, key_mask_ptr, first_row, first, window, dropout,
    score_scale, MASKED: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One step over BLOCK_N own columns; if not MASKED, every row sees all of them."""
    sequence, head, start, _, _, _ = own
    place = (sequence, head, start)
    rows = first_row + tl.arange(0, BLOCK_M)
    columns = first + tl.arange(0, BLOCK_N)
    seen = None
    visible = None
    if MASKED:
        seen = attended(key_mask_ptr, own, columns)
        visible = own_visible(seen[None, :], rows[:, None], columns[None, :], window, CAUSAL)
    k = load_tile(key, place, columns, seen, HEAD_DIM, BLOCK_D)
    v = load_tile(value, place, columns, seen, HEAD_DIM, BLOCK_D)
    keep = dropout_keep(dropout, place, rows, OWN_COLUMN_OFFSET + first, BLOCK_N)
    added = position_scores(
        q, k, positions, head, first_row, first, BLOCK_M, BLOCK_N, HEAD_DIM, BLOCK_D, PRECISION
    )
    return attend_tile(state, q, k, v, added, None, visible, keep, dropout, score_scale, PRECISION)


@triton.jit(
    do_not_specialize=["sequences", "heads", "length", "pool_rows", "score_scale", "window"]
)
def _forward_kernel(
    query, key, value, prefix_key, prefix_value, prefix_gate_ptr,
    cu_seqlens_ptr, sequences, heads, length,
    prompt_ids_ptr, prompt_bounds_ptr, pool_rows, key_mask_ptr, positions, dropout, out, lse_ptr,
    score_scale, window,
    HAS_PREFIX: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M query rows of one (sequence, head)."""
    layout = (cu_seqlens_ptr, sequences, heads, length)
    block, sequence, head = locate_block(layout, BLOCK_M)
    own = locate_sequence(layout, sequence, head)
    sequence, head, start, rows_end, _, state_start = own
    place = (sequence, head, start)
    first_row = block * BLOCK_M
    if first_row >= rows_end:
        return

    rows = first_row + tl.arange(0, BLOCK_M)
    q = load_rows(query, own, rows, key_mask_ptr, HEAD_DIM, BLOCK_D)
    row_max = tl.full([BLOCK_M], -float("inf"), lse_ptr.dtype.element_ty)
    row_sum = tl.zeros([BLOCK_M], lse_ptr.dtype.element_ty)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], lse_ptr.dtype.element_ty)

    if HAS_PREFIX:
        prompts = (prompt_ids_ptr, prompt_bounds_ptr, pool_rows)
        gates = (prefix_gate_ptr, heads)
        prompt_place, prompt_length = locate_prompt(prompts, own)
        for first in tl.range(0, prompt_length, BLOCK_P, num_stages=1):
            columns = first + tl.arange(0, BLOCK_P)
            seen = columns < prompt_length
            k = load_tile(prefix_key, prompt_place, columns, seen, HEAD_DIM, BLOCK_D).to(q.dtype)
            v = load_tile(prefix_value, prompt_place, columns, seen, HEAD_DIM, BLOCK_D).to(q.dtype)
            gate = load_gate(gates, prompt_place, columns, seen, row_max.dtype)
            keep = dropout_keep(dropout, place, rows, first, BLOCK_P)
            state = (row_max, row_sum, accumulator)
            row_max, row_sum, accumulator = attend_tile(
                state, q, k, v, None, gate, seen[None, :], keep, dropout, score_scale, PRECISION
            )

    begin, end = column_range(first_row, rows_end, window, CAUSAL, BLOCK_M, BLOCK_N)
    if key_mask_ptr is None and window is None:
        # Whole tiles that every row sees; they are loaded and scored without a mask.
        whole = end // BLOCK_N * BLOCK_N
        if CAUSAL:
            whole = tl.minimum(end, first_row + 1) // BLOCK_N * BLOCK_N
        for first in range(begin, whole, BLOCK_N):
            state = (row_max, row_sum, accumulator)
            row_max, row_sum, accumulator = _attend_own(
                state, q, key, value, positions, own, key_mask_ptr, first_row, first, window,
                dropout, score_scale, False, CAUSAL, PRECISION,
                HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
            )  # fmt: skip
        begin = whole
    for first in range(begin, end, BLOCK_N):
        state = (row_max, row_sum, accumulator)
        row_max, row_sum, accumulator = _attend_own(
            state, q, key, value, positions, own, key_mask_ptr, first_row, first, window, dropout,
            score_scale, True, CAUSAL, PRECISION, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
        )  # fmt: skip

    if positions is not None:  # a distance that the table lacks: its reach was wrong
        accumulator = tl.where(rows_end - 1 > positions[3], float("nan"), accumulator)
    saw_nothing = row_sum == 0.0
    row_sum = tl.where(saw_nothing, 1.0, row_sum)
    result = accumulator * (dropout[2] / row_sum)[:, None]
    lse = tl.where(saw_nothing, -float("inf"), (row_max + tl.math.log2(row_sum)) * LN_2)
    store_tile(out, place, result, rows, rows < rows_end, HEAD_DIM, BLOCK_D)
    tl.store(lse_ptr + state_start + rows, lse, mask=rows < rows_end)


def launch_forward(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor]:
    """Return out (batch, heads, length, head_dim), transposed in memory, and lse."""
    query = inputs.query
    batch, heads, length, head_dim = query.shape
    precision = torch.promote_types(query.dtype, torch.float32)
    out = empty_output(query)
    lse = query.new_empty(batch, heads, length, dtype=precision)
    if out.numel() == 0:
        return out, lse
    launch = Launch(inputs, options)
    tiles = select_tiles(head_dim, query.dtype, inputs.seed is not None, query.device)
    if launch.positions is not None:
        tiles = tiles.with_positions(head_dim, query.dtype)
    tile = tiles.forward
    with torch.cuda.device_of(query):
        _forward_kernel[(launch.blocks(tile.block_m),)](
            *launch.matrices, launch.gate, launch.cu_seqlens, *launch.counts, *launch.prompts,
            launch.pool_rows, launch.mask, launch.positions, launch.dropout, launch.matrix(out),
            lse, launch.score_scale, launch.window, HAS_PREFIX=launch.pool_rows > 0,
            CAUSAL=options.causal, **launch.constants, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
            BLOCK_P=tile.block_p, **tile.launch_options,
        )  # fmt: skip
    return out, lse

"""Forward kernel of prefix attention: one softmax over the prompt's rows, then the sequence's own.

A program owns a block of query rows of one (batch, head). This is FlashAttention-2 (Dao 2023,
arXiv:2307.08691) with a first loop over a range of the prompt pool; both loops call `attend_tile`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .primitives import (
    LN_2,
    LOG2_E,
    OWN_COLUMN_OFFSET,
    attend_tile,
    attended,
    column_range,
    dot_precision,
    dropout_argument,
    dropout_keep,
    load_rows,
    load_tile,
    locate_program,
    mask_argument,
    matrix_argument,
    own_bias,
    prompt_arguments,
    prompt_rows,
    sequence_rows,
    store_tile,
)
from .tiling import padded_head_dim, select_tiles


@triton.jit(do_not_specialize=["heads", "length", "pool_rows", "window"])
def _forward_kernel(
    query, key, value, prefix_key, prefix_value, prompt_ids_ptr, prompt_bounds_ptr,
    key_mask_ptr, dropout, out, lse_ptr,
    heads, length, pool_rows, score_scale, window,
    HAS_PREFIX: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M query rows of one (batch, head)."""
    block, batch, head = locate_program(tl.cdiv(length, BLOCK_M), heads)
    start, rows_end = sequence_rows(batch, length)
    place = (batch, head, start)
    mask_row = batch * length + start
    state_row = (batch * heads + head) * length + start

    first_row = block * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    q = load_rows(query, place, rows, rows_end, key_mask_ptr, mask_row, HEAD_DIM, BLOCK_D)
    row_max = tl.full([BLOCK_M], -float("inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

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
            state = (row_max, row_sum, accumulator)
            row_max, row_sum, accumulator = attend_tile(
                state, q, k, v, bias, keep, dropout, score_scale, PRECISION
            )

    begin, end = column_range(first_row, rows_end, window, CAUSAL, BLOCK_M, BLOCK_N)
    for first in range(begin, end, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        seen = attended(key_mask_ptr, mask_row, columns, rows_end)
        k = load_tile(key, place, columns, seen, HEAD_DIM, BLOCK_D)
        v = load_tile(value, place, columns, seen, HEAD_DIM, BLOCK_D)
        bias = own_bias(seen[None, :], rows[:, None], columns[None, :], window, CAUSAL)
        keep = dropout_keep(dropout, place, rows, OWN_COLUMN_OFFSET + first, BLOCK_N)
        state = (row_max, row_sum, accumulator)
        row_max, row_sum, accumulator = attend_tile(
            state, q, k, v, bias, keep, dropout, score_scale, PRECISION
        )

    saw_nothing = row_sum == 0.0
    row_sum = tl.where(saw_nothing, 1.0, row_sum)
    result = accumulator * (dropout[2] / row_sum)[:, None]
    lse = tl.where(saw_nothing, -float("inf"), (row_max + tl.math.log2(row_sum)) * LN_2)
    store_tile(out, place, result, rows, rows < rows_end, HEAD_DIM, BLOCK_D)
    tl.store(lse_ptr + state_row + rows, lse, mask=rows < rows_end)


def launch_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    prompt_ids: Tensor | None,
    prompt_bounds: Tensor | None,
    key_mask: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    scale: float,
    causal: bool,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """Return out (batch, heads, length, head_dim), transposed in memory, and lse, fp32."""
    batch, heads, length, head_dim = query.shape
    pool_rows = prefix_key.shape[0]
    out = query.new_empty(batch, length, heads, head_dim).transpose(1, 2)
    lse = query.new_empty(batch, heads, length, dtype=torch.float32)
    if out.numel() == 0:
        return out, lse
    tile = select_tiles(head_dim, query.dtype, seed is not None).forward
    with torch.cuda.device_of(query):
        _forward_kernel[(triton.cdiv(length, tile.block_m) * batch * heads,)](
            *(matrix_argument(x) for x in (query, key, value, prefix_key, prefix_value)),
            *prompt_arguments(prompt_ids, prompt_bounds), mask_argument(key_mask),
            dropout_argument(dropout_p, seed), matrix_argument(out), lse,
            heads, length, pool_rows, scale * LOG2_E.value,
            None if window is None else min(window, length),
            HAS_PREFIX=pool_rows > 0, CAUSAL=causal, PRECISION=dot_precision(query.dtype),
            HEAD_DIM=head_dim, BLOCK_D=padded_head_dim(head_dim), BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n, BLOCK_P=tile.block_p, **tile.launch_options,
        )  # fmt: skip
    return out, lse

"""The pieces the forward and the backward kernels share: addressing, visibility, dropout, softmax.

Names inside the kernels: `rows` are query positions, `columns` key positions, `own` columns the
sequence's keys, `positions` either. A matrix argument is (pointer, batch stride, head stride, row
stride); `place` is (batch, head, first row) and picks one sequence, or one prompt, out of it.
Scores are in units of log2: `score_scale` is scale * log2(e), applied in fp32 after the product.

What a row must not see is never loaded: it is read as 0 and its score gets a bias of -inf. So its
score is exactly -inf, its weight exactly 0, and neither 0 * NaN nor inf * 0 can arise.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

OWN_COLUMN_OFFSET = tl.constexpr(2**20)  # dropout's number of a sequence's first own column
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def locate_program(blocks, heads):
    """Which (block, batch, head) this program owns; blocks of one head run next to each other."""
    program = tl.program_id(0)
    sequence = program // blocks
    return program % blocks, (sequence // heads).to(tl.int64), (sequence % heads).to(tl.int64)


@triton.jit
def sequence_rows(batch, length):
    """(first row, length) of a sequence along the length axis of its own batch entry."""
    return batch * 0, length


@triton.jit
def prompt_rows(prompt_ids_ptr, prompt_bounds_ptr, batch, pool_rows):
    """Rows [start, end) of the pool that a sequence attends to; empty for prompt id -1."""
    prompt = batch * 0
    if prompt_ids_ptr is not None:
        prompt = tl.load(prompt_ids_ptr + batch).to(tl.int64)
    start = 0
    end = pool_rows
    if prompt_bounds_ptr is not None:
        start = tl.load(prompt_bounds_ptr + 2 * prompt, mask=prompt >= 0, other=0)
        end = tl.load(prompt_bounds_ptr + 2 * prompt + 1, mask=prompt >= 0, other=0)
    return start, tl.where(prompt >= 0, tl.minimum(end, pool_rows), start)


@triton.jit
def column_range(row, length, window, CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Own columns [begin, end) that rows row .. row + M can see; begin is a multiple of N."""
    begin = 0
    end = length
    if CAUSAL:
        end = tl.minimum(end, row + M)
    if window is not None:
        begin = tl.maximum(row - window, 0) // N * N
        end = tl.minimum(end, row + M + window)
    return begin, end


@triton.jit
def row_range(column, length, window, CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Rows [begin, end) that can see columns column .. column + N; begin is a multiple of M."""
    begin = 0
    end = length
    if window is not None:
        begin = tl.maximum(column - window, 0) // M * M
        end = tl.minimum(end, column + N + window)
    if CAUSAL:
        begin = column // M * M
    return begin, end


@triton.jit
def attended(key_mask_ptr, mask_row, positions, length):
    """True for positions inside the sequence whose key may be seen: [BLOCK]."""
    keep = positions < length
    if key_mask_ptr is not None:
        keep = keep & (tl.load(key_mask_ptr + mask_row + positions, mask=keep, other=0) != 0)
    return keep


@triton.jit
def own_bias(keep, rows, columns, window, CAUSAL: tl.constexpr):
    """0 where a row sees an own column, else -inf; all arguments broadcast to a tile."""
    if CAUSAL:
        keep = keep & (columns <= rows)
    if window is not None:
        keep = keep & (columns - rows <= window) & (rows - columns <= window)
    return tl.where(keep, 0.0, -float("inf"))


@triton.jit
def tile_pointers(matrix, place, positions, keep, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Pointers and mask of some rows; the mask also cuts what pads head_dim: [BLOCK, BLOCK_D]."""
    pointer, batch_stride, head_stride, row_stride = matrix
    batch, head, start = place
    pointer += batch * batch_stride + head * head_stride
    dims = tl.arange(0, BLOCK_D)[None, :]
    mask = keep[:, None]
    if HEAD_DIM < BLOCK_D:
        mask = mask & (dims < HEAD_DIM)
    return pointer + (start + positions).to(tl.int64)[:, None] * row_stride + dims, mask


@triton.jit
def load_tile(matrix, place, positions, keep, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of a matrix, 0 where `keep` is False: [BLOCK, BLOCK_D]."""
    pointers, mask = tile_pointers(matrix, place, positions, keep, HEAD_DIM, BLOCK_D)
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def store_tile(
    matrix, place, tile, positions, keep, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Write the rows where `keep` is True, in the element type of the matrix."""
    pointers, mask = tile_pointers(matrix, place, positions, keep, HEAD_DIM, BLOCK_D)
    tl.store(pointers, tile.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def zero_non_finite(tile, source, key_mask_ptr, mask_row, rows, length):
    """`tile`, with 0 for the elements of masked rows that are not finite in `source`."""
    if key_mask_ptr is not None:
        keep = attended(key_mask_ptr, mask_row, rows, length)
        tile = tl.where(keep[:, None] | (tl.abs(source) < float("inf")), tile, 0.0)
    return tile


@triton.jit
def load_rows(
    matrix, place, rows, length, key_mask_ptr, mask_row,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of queries or output gradients; non-finite elements of masked rows count as 0."""
    tile = load_tile(matrix, place, rows, rows < length, HEAD_DIM, BLOCK_D)
    return zero_non_finite(tile, tile, key_mask_ptr, mask_row, rows, length)


@triton.jit
def load_row_state(lse_ptr, delta_ptr, state_row, rows, length):
    """lse in units of log2, and delta; a row that saw nothing gets +inf, hence weights of 0."""
    inside = rows < length
    lse = tl.load(lse_ptr + state_row + rows, mask=inside, other=float("inf"))
    delta = tl.load(delta_ptr + state_row + rows, mask=inside, other=0.0)
    return tl.where(lse == -float("inf"), float("inf"), lse * LOG2_E), delta


@triton.jit
def dropout_keep(dropout, place, rows, column, BLOCK: tl.constexpr):
    """True where dropout keeps the weight of (row, column + n): [BLOCK_M, BLOCK].

    `dropout` is (seed pointer or None, threshold, keep scale); without a seed the result has no
    meaning. Philox4x32-7 under the key `seed` and the counter (column // 8, row, head, batch)
    gives eight 16-bit numbers, one for each column of a group of 8; those below the threshold drop
    theirs. `column` is a multiple of 8.
    """
    if dropout[0] is None:
        keep = rows[:, None] >= 0
    else:
        groups = column // 8 + tl.arange(0, BLOCK // 8)
        word0, word1, word2, word3 = random_words(dropout, place, rows[:, None], groups[None, :])
        # Each join adds the next lower bit of a column's number within its group.
        words = tl.join(tl.join(word0, word2), tl.join(word1, word3))
        keep = tl.join(half_kept(dropout, words), half_kept(dropout, words >> 16))
        keep = tl.reshape(keep, (rows.shape[0], BLOCK))
    return keep


@triton.jit
def dropout_keep_unaligned(dropout, place, rows, column, BLOCK: tl.constexpr):
    """`dropout_keep` for any `column`; unless it is aligned, at one Philox call per element."""
    if dropout[0] is None:
        keep = rows[:, None] >= 0
    elif column % 8 == 0:
        keep = dropout_keep(dropout, place, rows, column, BLOCK)
    else:
        columns = (column + tl.arange(0, BLOCK))[None, :]
        word0, word1, word2, word3 = random_words(dropout, place, rows[:, None], columns >> 3)
        low = tl.where((columns & 2) == 0, word0, word1)
        high = tl.where((columns & 2) == 0, word2, word3)
        word = tl.where((columns & 4) == 0, low, high)
        keep = half_kept(dropout, word >> ((columns & 1) * 16))
    return keep


@triton.jit
def random_words(dropout, place, rows, groups):
    """Four 32-bit random numbers for each (row, group)."""
    batch, head, _ = place
    seed = tl.load(dropout[0])
    return tl.philox(seed, groups, rows, head.to(tl.int32), batch.to(tl.int32), n_rounds=7)


@triton.jit
def half_kept(dropout, word):
    """Whether the low 16 bits of a random number reach the threshold, which may be 2**16."""
    return (word & 0xFFFF).to(tl.int32) >= dropout[1]


@triton.jit
def drop(tile, keep, dropout):
    """0 where dropout drops; the others still lack the factor keep scale."""
    if dropout[0] is not None:
        tile = tl.where(keep, tile, 0.0)
    return tile


@triton.jit
def attend_tile(
    state, query, key, value, bias, keep, dropout, score_scale, PRECISION: tl.constexpr
):
    """One step of the online softmax over a tile of keys and values: [BLOCK_N, BLOCK_D].

    `state` is (row maximum, row sum, accumulator [BLOCK_M, BLOCK_D]). Dropout acts on the weights
    after they are summed.
    """
    row_max, row_sum, accumulator = state
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * score_scale + bias
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    shift = tl.where(new_max == -float("inf"), 0.0, new_max)  # a row that saw nothing so far
    weights = tl.math.exp2(scores - shift[:, None])
    rescale = tl.math.exp2(row_max - shift)
    row_sum = row_sum * rescale + tl.sum(weights, 1)
    weights = drop(weights, keep, dropout).to(value.dtype)
    accumulator = tl.dot(weights, value, accumulator * rescale[:, None], input_precision=PRECISION)
    return new_max, row_sum, accumulator


@triton.jit
def recompute_weights(left, right, bias, lse, score_scale, PRECISION: tl.constexpr):
    """A tile of P, or of its transpose if `left` holds the keys; bias and lse broadcast to it."""
    scores = tl.dot(left, tl.trans(right), input_precision=PRECISION) * score_scale + bias
    return tl.math.exp2(scores - lse)


@triton.jit
def score_gradient(weights, weight_grad, keep, delta, dropout):
    """dS = P * (dP - delta), the gradient of the scaled scores; all broadcast to a tile."""
    if dropout[0] is not None:
        weight_grad = tl.where(keep, weight_grad * dropout[2], 0.0)
    return weights * (weight_grad - delta)


def matrix_argument(x: Tensor) -> tuple[Any, ...]:
    """(batch, heads, length, head_dim), or a pool (rows, heads, head_dim), as kernels take it."""
    if x.dim() == 3:
        return x, 0, x.stride(1), x.stride(0)
    return x, *x.stride()[:3]


def dropout_argument(dropout_p: float, seed: Tensor | None) -> tuple[Any, ...]:
    """(seed, threshold, keep scale): a 16-bit random number below the threshold drops."""
    threshold = round(dropout_p * 65536)
    return seed, threshold, 65536 / max(65536 - threshold, 1)


def prompt_arguments(*prompts: Tensor | None) -> list[Tensor | None]:
    """prompt_ids and prompt_bounds, contiguous."""
    return [None if x is None else x.contiguous() for x in prompts]


def mask_argument(key_mask: Tensor | None) -> Tensor | None:
    """The mask as kernels read it: contiguous, one byte per position."""
    return None if key_mask is None else key_mask.contiguous().view(torch.uint8)


def dot_precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies fp32: in TF32 only if torch may, else as three TF32 products."""
    # allow_tf32 would say the same, but raises for who sets the newer fp32_precision.
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "tf32x3"
    return "tf32"

"""The pieces the forward and the backward kernels share: addressing, visibility, softmax.

Names inside the kernels: `rows` are query positions, `columns` key positions, `own` columns the
sequence's keys, `positions` either. A matrix argument is (pointer, batch stride, head stride, row
stride); `place` is (sequence, head, first row) and picks one sequence, or one prompt, out of it.
In the packed layout the batch stride is 0, and the first row tells sequences apart. `own` is a
place with (..., number of rows, where its mask starts, where its row state starts). Scores are in
units of log2: `score_scale` is scale * log2(e), applied in fp32 after the product. Sums run in
fp32, or in fp64 for fp64 inputs, which only the interpreter gets: the type of `lse`.

What a row must not see is never loaded: it is read as 0, and its weight is set to exactly 0 after
the exponential. So neither 0 * NaN nor inf * 0 can arise.
"""

import triton
import triton.language as tl

from .dropout import drop

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def locate_block(layout, BLOCK: tl.constexpr):
    """Which (block of rows, sequence, head) this program owns; a head's blocks are neighbours.

    Packed, block number `cu_seqlens[s] // BLOCK + s` is the first of sequence s: so each has
    enough, and which one owns a block is found by binary search. A block past the end has nothing
    to do.
    """
    cu_seqlens_ptr, sequences, heads, length = layout
    program = tl.program_id(0)
    if cu_seqlens_ptr is None:
        blocks = tl.cdiv(length, BLOCK)
        block = program % blocks
        sequence = program // blocks // heads
        head = program // blocks % heads
    else:
        blocks = length // BLOCK + sequences
        block = program % blocks
        head = program // blocks
        sequence = 0 * program
        high = sequence + sequences
        while high - sequence > 1:
            middle = (sequence + high) // 2
            starts_before = tl.load(cu_seqlens_ptr + middle) // BLOCK + middle <= block
            sequence = tl.where(starts_before, middle, sequence)
            high = tl.where(starts_before, high, middle)
        block -= tl.load(cu_seqlens_ptr + sequence) // BLOCK + sequence
    return block, sequence, head


@triton.jit
def locate_sequence(layout, sequence, head):
    """The `own` of a sequence: (sequence, head, first row, rows, mask start, row state start)."""
    cu_seqlens_ptr, _, heads, length = layout
    sequence = tl.cast(sequence, tl.int64)
    head = tl.cast(head, tl.int64)
    if cu_seqlens_ptr is None:
        start = sequence * 0
        rows = length
        mask_start = sequence * length
        state_start = (sequence * heads + head) * length
    else:
        start = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
        rows = (tl.load(cu_seqlens_ptr + sequence + 1) - start).to(tl.int32)
        mask_start = start
        state_start = head * length + start
    return sequence, head, start, rows, mask_start, state_start


@triton.jit
def prompt_rows(prompts, prompt):
    """Rows [start, end) of the pool that a prompt has; none for prompt -1."""
    _, prompt_bounds_ptr, pool_rows = prompts
    start = 0
    end = pool_rows
    if prompt_bounds_ptr is not None:
        start = tl.load(prompt_bounds_ptr + 2 * prompt, mask=prompt >= 0, other=0)
        end = tl.load(prompt_bounds_ptr + 2 * prompt + 1, mask=prompt >= 0, other=0)
    return start, tl.where(prompt >= 0, tl.minimum(end, pool_rows), start)


@triton.jit
def locate_prompt(prompts, own):
    """The place and the length of the prompt that a sequence attends to."""
    prompt_ids_ptr = prompts[0]
    sequence, head, _, _, _, _ = own
    prompt = sequence * 0
    if prompt_ids_ptr is not None:
        prompt = tl.load(prompt_ids_ptr + sequence).to(tl.int64)
    start, end = prompt_rows(prompts, prompt)
    return (sequence, head, start), end - start


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
def attended(key_mask_ptr, own, positions):
    """True for positions inside the sequence whose key may be seen: [BLOCK]."""
    _, _, _, length, mask_start, _ = own
    keep = positions < length
    if key_mask_ptr is not None:
        keep = keep & (tl.load(key_mask_ptr + mask_start + positions, mask=keep, other=0) != 0)
    return keep


@triton.jit
def own_visible(keep, rows, columns, window, CAUSAL: tl.constexpr):
    """True where a row sees an own column; all arguments broadcast to a tile."""
    if CAUSAL:
        keep = keep & (columns <= rows)
    if window is not None:
        keep = keep & (columns - rows <= window) & (rows - columns <= window)
    return keep


@triton.jit
def tile_pointers(matrix, place, positions, BLOCK_D: tl.constexpr):
    """Pointers of some rows: [BLOCK, BLOCK_D]."""
    pointer, batch_stride, head_stride, row_stride = matrix
    sequence, head, start = place
    pointer += sequence * batch_stride + head * head_stride
    rows = (start + positions).to(tl.int64)[:, None]
    return pointer + rows * row_stride + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def tile_mask(keep, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """True in the rows to keep, but not in what pads head_dim; broadcasts to a tile."""
    mask = keep[:, None]
    if HEAD_DIM < BLOCK_D:
        mask = mask & (tl.arange(0, BLOCK_D)[None, :] < HEAD_DIM)
    return mask


@triton.jit
def load_tile(matrix, place, positions, keep, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of a matrix, 0 where `keep` is False; None keeps all of them: [BLOCK, BLOCK_D]."""
    pointers = tile_pointers(matrix, place, positions, BLOCK_D)
    if keep is not None:
        tile = tl.load(pointers, mask=tile_mask(keep, HEAD_DIM, BLOCK_D), other=0.0)
    elif HEAD_DIM < BLOCK_D:
        tile = tl.load(pointers, mask=tl.arange(0, BLOCK_D)[None, :] < HEAD_DIM, other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def store_tile(
    matrix, place, tile, positions, keep, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Write the rows where `keep` is True, in the element type of the matrix."""
    pointers = tile_pointers(matrix, place, positions, BLOCK_D)
    tile = tile.to(pointers.dtype.element_ty)
    tl.store(pointers, tile, mask=tile_mask(keep, HEAD_DIM, BLOCK_D))


@triton.jit
def zero_non_finite(tile, source, key_mask_ptr, own, rows):
    """`tile`, with 0 for the elements of masked rows that are not finite in `source`."""
    if key_mask_ptr is not None:
        keep = attended(key_mask_ptr, own, rows)
        tile = tl.where(keep[:, None] | (tl.abs(source) < float("inf")), tile, 0.0)
    return tile


@triton.jit
def finite_rows(tile):
    """`tile` with 0 for rows that are not finite, and NaN for each of these, else 0: [BLOCK]."""
    unusable = tl.sum((tile * 0.0).to(tl.float32), 1)
    return tl.where((unusable == 0.0)[:, None], tile, 0.0), unusable


@triton.jit
def load_rows(matrix, own, rows, key_mask_ptr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """A tile of queries or output gradients; non-finite elements of masked rows count as 0."""
    sequence, head, start, length, _, _ = own
    place = (sequence, head, start)
    tile = load_tile(matrix, place, rows, rows < length, HEAD_DIM, BLOCK_D)
    return zero_non_finite(tile, tile, key_mask_ptr, own, rows)


@triton.jit
def load_lse(lse_ptr, own, rows):
    """The rows' lse in units of log2; a row that saw nothing gets +inf, hence weights of 0."""
    _, _, _, length, _, state_start = own
    lse = tl.load(lse_ptr + state_start + rows, mask=rows < length, other=float("inf"))
    return tl.where(lse == -float("inf"), float("inf"), lse * LOG2_E)


@triton.jit
def row_delta(
    do, out, lse_ptr, grad_lse_ptr, own, rows, key_mask_ptr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """rowsum(dO * O) - dlse: [BLOCK]; where a row is masked or saw nothing, with a finite dlse."""
    sequence, head, start, length, _, state_start = own
    o = load_tile(out, (sequence, head, start), rows, rows < length, HEAD_DIM, BLOCK_D)
    precision: tl.constexpr = lse_ptr.dtype.element_ty
    delta = tl.sum(do.to(precision) * o.to(precision), 1)
    if grad_lse_ptr is not None:
        dlse = tl.load(grad_lse_ptr + state_start + rows, mask=rows < length, other=0.0)
        lse = tl.load(lse_ptr + state_start + rows, mask=rows < length, other=0.0)
        counts = attended(key_mask_ptr, own, rows) & (lse != -float("inf"))
        delta -= tl.where(counts | (tl.abs(dlse) < float("inf")), dlse, 0.0)
    return delta


@triton.jit
def load_delta(delta_ptr, own, rows):
    """The rows' delta."""
    _, _, _, length, _, state_start = own
    return tl.load(delta_ptr + state_start + rows, mask=rows < length, other=0.0)


@triton.jit
def load_gate(gates, place, columns, seen, precision: tl.constexpr):
    """The gates of some rows of a prompt: [1, BLOCK]; None if there are none."""
    pointer, heads = gates
    _, head, start = place
    if pointer is None:
        gate = None
    else:
        gate = tl.load(pointer + (start + columns) * heads + head, mask=seen, other=0.0)
        gate = gate.to(precision)[None, :]
    return gate


@triton.jit
def attend_tile(
    state, query, key, value, added, gate, visible, keep, dropout, score_scale,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax over a tile of keys and values: [BLOCK_N, BLOCK_D].

    `state` is (row maximum, row sum, accumulator [BLOCK_M, BLOCK_D]). Dropout acts on the weights
    after they are summed. `visible` None: every row sees every key, with the same bits as if it
    said so. `added` joins the products, and `gate` None is as if all were 1.
    """
    row_max, row_sum, accumulator = state
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    if added is not None:
        scores += added
    scores *= score_scale
    if gate is not None:
        log_gate = tl.math.log2(tl.where(gate > 0, gate, 1.0))
        scores += tl.where(gate > 0, log_gate, -float("inf"))
    seen_scores = scores
    if visible is not None:
        seen_scores = tl.where(visible, scores, -float("inf"))
    new_max = tl.maximum(row_max, tl.max(seen_scores, 1))
    shift = tl.where(new_max == -float("inf"), 0.0, new_max)  # a row that saw nothing so far
    weights = tl.math.exp2(scores - shift[:, None])
    if visible is not None:
        weights = tl.where(visible, weights, 0.0)
    rescale = tl.math.exp2(row_max - shift)
    row_sum = row_sum * rescale + tl.sum(weights, 1)
    weights = drop(weights, keep, dropout).to(value.dtype)
    accumulator = tl.dot(weights, value, accumulator * rescale[:, None], input_precision=PRECISION)
    return new_max, row_sum, accumulator


@triton.jit
def recompute_weights(left, right, added, visible, lse, score_scale, PRECISION: tl.constexpr):
    """A tile of P, or of its transpose if `left` holds the keys; visible, lse broadcast to it."""
    scores = tl.dot(left, tl.trans(right), input_precision=PRECISION)
    if added is not None:
        scores += added
    scores *= score_scale
    return tl.where(visible, tl.math.exp2(scores - lse), 0.0)


@triton.jit
def recompute_ungated(query, key, gate, visible, lse, score_scale, PRECISION: tl.constexpr):
    """A tile of P of a prompt as it would be if its gates were 1.

    Of a closed gate it is at most 2^100, so that gradients of its scores are finite and 0 closes
    it; an open one's is at most 1 / gate.
    """
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * score_scale - lse
    if gate is not None:
        most = tl.where(gate > 0, 126.0, 100.0)
        scores = tl.minimum(scores, most, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(visible, tl.math.exp2(scores), 0.0)


@triton.jit
def gated(tile, gate):
    """P, or the gradient of scores, from what it would be if the gates were 1."""
    if gate is not None:
        tile *= gate
    return tile


@triton.jit
def score_gradient(weights, weight_grad, keep, delta, dropout):
    """dS = P * (dP - delta), the gradient of the scaled scores; all broadcast to a tile."""
    if dropout[0] is not None:
        weight_grad = tl.where(keep, weight_grad * dropout[2], 0.0)
    return weights * (weight_grad - delta)

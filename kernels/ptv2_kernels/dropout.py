"""Dropout of attention weights: which of them a seed keeps, whatever the tile or the layout.

`dropout` is (seed pointer or None, threshold, keep scale). Philox4x32-7 under the key `seed` and
the counter (column // 8, row, head, sequence) gives eight 16-bit numbers, one for each column of a
group of 8; those below the threshold drop theirs. The prompt's columns count from 0, a sequence's
own from OWN_COLUMN_OFFSET.
"""

import triton
import triton.language as tl

OWN_COLUMN_OFFSET = tl.constexpr(2**20)


@triton.jit
def dropout_keep(dropout, place, rows, column, BLOCK: tl.constexpr):
    """True where dropout keeps the weight of (row, column + n): [BLOCK_M, BLOCK].

    `column` is a multiple of 8. Without a seed the result has no meaning.
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
    sequence, head, _ = place
    seed = tl.load(dropout[0])
    return tl.philox(seed, groups, rows, head.to(tl.int32), sequence.to(tl.int32), n_rounds=7)


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

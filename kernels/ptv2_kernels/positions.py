"""Scores of relative positions inside a tile, and what their gradient gives to queries and keys.

`positions` is (key table, query table, bucket pointer, reach); a table is a matrix with a row for
each bucket and head, or None. The rows and columns of a tile that starts at (row, column) have
M + N - 1 distances row - column, from `least` on; their rows of a table make one matrix product
with the tile's queries or keys, of which every score gathers its own entry. So no score of a
position leaves the tile.
"""

import triton
import triton.language as tl

from .primitives import load_tile


@triton.jit
def least_distance(row, column, N: tl.constexpr):
    """The distance of a tile's first row and last column, from which the others count."""
    return row - column - (N - 1)


@triton.jit
def distance_rows(
    table, positions, head, least, R: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The table's rows for the distances least .. least + R - 1: [R, BLOCK_D]."""
    bucket_ptr = positions[2]
    reach = positions[3]
    distance = least + tl.arange(0, R)
    inside = (distance >= -reach) & (distance <= reach)
    bucket = tl.load(bucket_ptr + distance + reach, mask=inside, other=0)
    return load_tile(table, (head * 0, head, 0), bucket, inside, HEAD_DIM, BLOCK_D)


@triton.jit
def position_scores(
    q, k, positions, head, row, column, M: tl.constexpr, N: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What positions add to the products of queries [M, BLOCK_D] and keys [N, BLOCK_D]: [M, N].

    None if there are no positions.
    """
    if positions is None:
        scores = None
    else:
        R: tl.constexpr = 2 * M if M > N else 2 * N
        least = least_distance(row, column, N)
        rows = tl.arange(0, M)
        columns = tl.arange(0, N)
        scores = tl.zeros([M, N], tl.float32)
        if positions[0] is not None:
            table = distance_rows(positions[0], positions, head, least, R, HEAD_DIM, BLOCK_D)
            every = tl.dot(q, tl.trans(table.to(q.dtype)), input_precision=PRECISION)
            index = rows[:, None] - columns[None, :] + (N - 1)
            scores += tl.gather(every, index, 1)
        if positions[1] is not None:
            table = distance_rows(positions[1], positions, head, least, R, HEAD_DIM, BLOCK_D)
            every = tl.dot(k, tl.trans(table.to(k.dtype)), input_precision=PRECISION)
            index = rows[None, :] - columns[:, None] + (N - 1)
            scores += tl.trans(tl.gather(every, index, 1))
    return scores


@triton.jit
def add_gathered(
    grad, score_grad, table, positions, head, least, entry, COUNT: tl.constexpr, R: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A gradient plus the scores' [A, COUNT], gathered by distance, times the table's rows.

    `entry` [A, R] is which score of a row has the distance, if that is in the tile: in a row at
    most one has it.
    """
    there = (entry >= 0) & (entry < COUNT)
    by_distance = tl.where(there, tl.gather(score_grad, tl.where(there, entry, 0), 1), 0.0)
    rows = distance_rows(table, positions, head, least, R, HEAD_DIM, BLOCK_D)
    by_distance = by_distance.to(score_grad.dtype)
    return tl.dot(by_distance, rows.to(score_grad.dtype), grad, input_precision=PRECISION)


@triton.jit
def add_to_query_grad(
    dq, score_grad, positions, head, row, column, M: tl.constexpr, N: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ [M, BLOCK_D] plus what the scores' gradient [M, N] gives it through the positions."""
    if positions is not None:  # noqa: SIM102 (of None there are no parts)
        if positions[0] is not None:
            R: tl.constexpr = 2 * M if M > N else 2 * N
            column_of = tl.arange(0, M)[:, None] + (N - 1) - tl.arange(0, R)[None, :]
            dq = add_gathered(
                dq, score_grad, positions[0], positions, head, least_distance(row, column, N),
                column_of, N, R, HEAD_DIM, BLOCK_D, PRECISION,
            )  # fmt: skip
    return dq


@triton.jit
def add_to_key_grad(
    dk, score_grad, positions, head, row, column, M: tl.constexpr, N: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK [N, BLOCK_D] plus what the transposed gradient [N, M] gives it through the positions."""
    if positions is not None:  # noqa: SIM102 (of None there are no parts)
        if positions[1] is not None:
            R: tl.constexpr = 2 * M if M > N else 2 * N
            row_of = tl.arange(0, R)[None, :] + tl.arange(0, N)[:, None] - (N - 1)
            dk = add_gathered(
                dk, score_grad, positions[1], positions, head, least_distance(row, column, N),
                row_of, M, R, HEAD_DIM, BLOCK_D, PRECISION,
            )  # fmt: skip
    return dk

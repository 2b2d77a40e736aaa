"""Ranges of rows: none is lent twice, all come back."""

import random

import torch

from ptv2.serving.rows import RowStore


def test_ranges_never_overlap_and_keep_their_values() -> None:
    draw = random.Random(0)
    kinds = [((3,), torch.float32), ((), torch.int64)]
    store = RowStore(kinds, torch.device("cpu"))
    assert store.row_bytes == 20
    lent: dict[range, int] = {}
    for step in range(2000):
        if lent and draw.random() < 0.5:
            rows = draw.choice(list(lent))
            values, numbers = store.tensors
            assert (values[rows.start : rows.stop] == lent[rows]).all()
            assert (numbers[rows.start : rows.stop] == lent.pop(rows)).all()
            store.give_back(rows)
        else:
            rows = store.take(draw.randint(1, 9))
            assert all(rows.stop <= own.start or own.stop <= rows.start for own in lent)
            number = torch.full((len(rows),), step)
            store.write(rows, [number[:, None].expand(-1, 3), number])
            lent[rows] = step
        assert store.free + sum(map(len, lent)) == len(store.tensors[0])
    assert len(store.tensors[0]) < 2000  # what came back is lent again
    for rows in lent:
        store.give_back(rows)
    assert len(store.take(len(store.tensors[0]))) == len(store.tensors[1])


def test_no_rows() -> None:
    store = RowStore([((2,), torch.float32)], torch.device("cpu"))
    assert len(store.take(0)) == 0
    store.give_back(range(0))
    assert store.free == 0

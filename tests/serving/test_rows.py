"""Ranges of rows: none is lent twice, all come back."""

import random

import pytest
import torch

from ptv2.serving.rows import NoRoomError, RowStore

PLENTY = 10**9


def test_ranges_never_overlap_and_keep_their_values() -> None:
    draw = random.Random(0)
    kinds = [((3,), torch.float32), ((), torch.int64)]
    store = RowStore(kinds, torch.device("cpu"))
    assert store.row_bytes == 20
    lent: dict[range, int] = {}
    for step in range(2000):
        if draw.random() < 0.02:
            moved = store.compact(list(lent))
            lent = dict(zip(moved, lent.values(), strict=True))
            assert store.free == 0
        elif lent and draw.random() < 0.5:
            rows = draw.choice(list(lent))
            values, numbers = store.tensors
            assert (values[rows.start : rows.stop] == lent[rows]).all()
            assert (numbers[rows.start : rows.stop] == lent.pop(rows)).all()
            store.give_back(rows)
        else:
            rows = store.take(draw.randint(1, 9), PLENTY)
            assert all(rows.stop <= own.start or own.stop <= rows.start for own in lent)
            number = torch.full((len(rows),), step)
            store.write(rows, [number[:, None].expand(-1, 3), number])
            lent[rows] = step
        assert store.free + sum(map(len, lent)) == len(store.tensors[0])
        assert store.nbytes == 20 * len(store.tensors[1])
    assert len(store.tensors[0]) < 2000  # what came back is lent again
    for rows in lent:
        store.give_back(rows)
    assert len(store.take(len(store.tensors[0]), 0)) == len(store.tensors[1])


def test_room_is_not_exceeded_and_free_pieces_are_put_together() -> None:
    store = RowStore([((2,), torch.float32)], torch.device("cpu"))
    one, two, three = (store.take(count, PLENTY) for count in (3, 2, 4))
    store.take(store.free, 0)  # no other row is free
    store.give_back(one)
    store.give_back(three)
    size = store.nbytes
    with pytest.raises(NoRoomError, match="5 rows: expected room for 5 more, got 4"):
        store.take(5, 4 * 8)
    assert (store.nbytes, store.free) == (size, 7)
    store = RowStore([((2,), torch.float32)], torch.device("cpu"))
    one, two = store.take(3, 3 * 8), store.take(4, 4 * 8)
    store.write(two, [torch.full((4, 2), 7.0)])
    store.give_back(one)
    (two,) = store.compact([two])
    assert (two, store.nbytes) == (range(4), 4 * 8)
    assert (store.tensors[0] == 7).all()
    assert store.take(3, 3 * 8) == range(4, 7)
    with pytest.raises(NoRoomError):
        store.take(1, 7)


def test_memory_that_ends_midway_leaves_the_store_as_it_was() -> None:
    store = RowStore([((2,), torch.float32), ((1,), torch.float32)], torch.device("cpu"))
    rows = store.take(2, PLENTY)
    store.write(rows, [torch.ones(2, 2), torch.ones(2, 1)])
    last = store.tensors[1]
    store.tensors[1] = NoMemory(last)
    with pytest.raises(torch.OutOfMemoryError):
        store.take(5, PLENTY)
    store.tensors[1] = last
    store.write(store.take(5, PLENTY), [torch.zeros(5, 2), torch.zeros(5, 1)])
    assert all(len(x) == 7 for x in store.tensors)
    assert all((x[:2] == 1).all() for x in store.tensors)


class NoMemory:
    """A tensor that cannot be had a second time."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.shape = tensor.shape

    def __len__(self) -> int:
        return self.shape[0]

    def new_zeros(self, *shape: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("injected")


def test_no_rows() -> None:
    store = RowStore([((2,), torch.float32)], torch.device("cpu"))
    assert len(store.take(0, 0)) == 0
    store.give_back(range(0))
    assert store.free == 0

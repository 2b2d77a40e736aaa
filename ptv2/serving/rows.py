"""Tensors whose rows are lent in ranges."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import prod

import torch
from torch import Tensor


class NoRoomError(RuntimeError):
    """No free range is long enough, and there may be no more rows."""


class RowStore:
    """Rows of several tensors; a range that is lent is the same in all of them.

    The tensors grow when no free range is long enough, so that their addresses may change
    whenever rows are taken. While they do, one of them is there twice.

    Args:
        kinds: the shape of one row of each tensor, and the tensor's dtype.
    """

    def __init__(
        self, kinds: Sequence[tuple[tuple[int, ...], torch.dtype]], device: torch.device
    ) -> None:
        self.tensors = [torch.zeros(0, *shape, dtype=kind, device=device) for shape, kind in kinds]
        self.row_bytes = sum(x.element_size() * prod(x.shape[1:]) for x in self.tensors)
        self._rows = 0
        self._free: list[range] = []  # in order, none beside another

    @property
    def nbytes(self) -> int:
        """What all rows take, lent or not."""
        return self.row_bytes * self._rows

    @property
    def free(self) -> int:
        """How many rows are not lent."""
        return sum(map(len, self._free))

    def take(self, count: int, room: int) -> range:
        """The first free rows that lie together, so many; they hold what was there before.

        Args:
            room: bytes that the store may grow by.

        Raises:
            NoRoomError: that is too little.
        """
        if not count:
            return range(0)
        for place, free in enumerate(self._free):
            if len(free) >= count:
                taken, rest = free[:count], free[count:]
                self._free[place : place + 1] = [rest] if rest else []
                return taken
        tail = len(self._free[-1]) if self._free and self._free[-1].stop == self._rows else 0
        least, most = count - tail, room // self.row_bytes
        if least > most:
            raise NoRoomError(f"{count} rows: expected room for {least} more, got {most}")
        self._resize(self._rows + max(least, min(self._rows, most // 2)))
        return self.take(count, 0)

    def give_back(self, rows: range) -> None:
        """Let others have rows that were taken."""
        ordered = sorted([*self._free, rows], key=lambda free: free.start) if rows else self._free
        self._free = []
        for free in ordered:
            if self._free and self._free[-1].stop == free.start:
                self._free[-1] = range(self._free[-1].start, free.stop)
            else:
                self._free.append(free)
        assert all(a.stop < b.start for a, b in pairwise(self._free)), "rows given back twice"

    def write(self, rows: range, values: Sequence[Tensor]) -> None:
        """Fill a range of every tensor, from any device and dtype."""
        for tensor, own in zip(self.tensors, values, strict=True):
            tensor[rows.start : rows.stop].copy_(own, non_blocking=True)

    def compact(self, lent: Sequence[range]) -> list[range]:
        """Move all rows that are lent to the beginning, and give up the others.

        Args:
            lent: all ranges that are.

        Returns:
            Where each of them is now.
        """
        device = self.tensors[0].device
        index = torch.tensor([row for rows in lent for row in rows], device=device).long()
        self.tensors = [x[index] for x in self.tensors]
        self._rows, self._free = len(index), []
        stops = list(accumulate(map(len, lent)))
        return [range(stop - len(rows), stop) for rows, stop in zip(lent, stops, strict=True)]

    def _resize(self, rows: int) -> None:
        """Grow; where the memory ends midway, some tensors are longer than they need to be."""
        for place, tensor in enumerate(self.tensors):
            if len(tensor) < rows:
                larger = tensor.new_zeros(rows, *tensor.shape[1:])
                larger[: self._rows] = tensor[: self._rows]
                self.tensors[place] = larger
        more, self._rows = range(self._rows, rows), rows
        self.give_back(more)

"""Tensors whose rows are lent in ranges."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor


class RowStore:
    """Rows of several tensors; a range that is lent is the same in all of them.

    The tensors grow when no free range is long enough, so that their addresses may change
    whenever rows are taken.

    Args:
        kinds: the shape of one row of each tensor, and the tensor's dtype.
    """

    def __init__(
        self, kinds: Sequence[tuple[tuple[int, ...], torch.dtype]], device: torch.device
    ) -> None:
        self.tensors = [torch.zeros(0, *shape, dtype=kind, device=device) for shape, kind in kinds]
        self.row_bytes = sum(x.element_size() * prod(x.shape[1:]) for x in self.tensors)
        self._free: list[range] = []  # in order, none beside another

    @property
    def free(self) -> int:
        """How many rows are not lent."""
        return sum(map(len, self._free))

    def take(self, count: int) -> range:
        """The first free rows that lie together, so many; they hold what was there before."""
        if not count:
            return range(0)
        for place, free in enumerate(self._free):
            if len(free) >= count:
                taken, rest = free[:count], free[count:]
                self._free[place : place + 1] = [rest] if rest else []
                return taken
        self._grow(count)
        return self.take(count)

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

    def _grow(self, count: int) -> None:
        """At least double the rows, with so many free ones at the end."""
        rows = len(self.tensors[0])
        more = max(rows, count)
        grown = [x.new_zeros(rows + more, *x.shape[1:]) for x in self.tensors]
        for larger, tensor in zip(grown, self.tensors, strict=True):
            larger[:rows] = tensor
        self.tensors = grown  # all of them or, without the memory, none
        self.give_back(range(rows, rows + more))

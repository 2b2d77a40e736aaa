"""How the sequences of a batch lie in its tensors: padded to one length, or packed in a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Padded:
    """(rows, length, ...), with what is no token masked.

    Args:
        attention_mask: (rows, length), 1 = a token, 0 = padding. None: tokens alone.
    """

    attention_mask: Tensor | None

    def first(self, states: Tensor) -> Tensor:
        """The first token of every sequence, (rows, ...)."""
        if self.attention_mask is None:
            return states[:, 0]
        first = self.attention_mask.bool().int().argmax(1)
        return states[torch.arange(len(states), device=states.device), first]

    def last(self, states: Tensor) -> Tensor:
        """The last token of every sequence, (rows, ...)."""
        if self.attention_mask is None:
            return states[:, -1]
        place = torch.arange(states.shape[1], device=states.device)
        last = (self.attention_mask.bool() * place).amax(1)
        return states[torch.arange(len(states), device=states.device), last]

    def pool(self, states: Tensor, how: str) -> Tensor:
        """The "mean", "first" or "last" token of every sequence, (rows, ...)."""
        pooled: Tensor = getattr(self, how)(states)
        return pooled

    def mean(self, states: Tensor) -> Tensor:
        """The mean token of every sequence, (rows, ...); 0 for one without tokens."""
        if self.attention_mask is None:
            return states.mean(1)
        weight = self.attention_mask.bool().unsqueeze(-1)
        return states.masked_fill(~weight, 0).sum(1) / weight.sum(1).clamp(min=1)

    def rows(self, x: Tensor, fill: float) -> Tensor:
        """A row for every sequence, (rows, length, ...), with `fill` where there is no token."""
        if self.attention_mask is None:
            return x
        return x.masked_fill(~self.attention_mask.bool().unsqueeze(-1), fill)

    def select(self, x: Tensor, sequences: Sequence[int]) -> tuple[Tensor, Self]:
        """Some of the sequences, and how they lie."""
        return self.groups(x, [sequences])[0]

    def groups(self, x: Tensor, groups: Sequence[Sequence[int]]) -> list[tuple[Tensor, Self]]:
        """The sequences of each group, and how they lie."""
        order = [sequence for group in groups for sequence in group]
        counts = [len(group) for group in groups]
        mask = self.attention_mask
        if order != list(range(len(x))):
            index = torch.tensor(order, dtype=torch.long, device=x.device)
            x = x.index_select(0, index)
            mask = None if mask is None else mask.index_select(0, index)
        masks = [None] * len(groups) if mask is None else mask.split(counts)
        return [(part, type(self)(m)) for part, m in zip(x.split(counts), masks, strict=True)]

    def split(self, x: Tensor) -> list[Tensor]:
        """Each sequence's own, (length, ...), padding included."""
        return list(x)


@dataclass(frozen=True)
class Packed:
    """(1, tokens, ...), sequence after sequence, without padding.

    Args:
        cu_seqlens: (sequences + 1,) int32; sequence s has the tokens from cu_seqlens[s] to
            cu_seqlens[s + 1].
        max_seqlen: tokens of the longest sequence.
        tokens: of all sequences.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    tokens: int

    @property
    def lengths(self) -> Tensor:
        """(sequences,)."""
        return self.cu_seqlens.diff()

    @property
    def sequence(self) -> Tensor:
        """The sequence of each token, (tokens,)."""
        return torch.searchsorted(self.cu_seqlens[1:], self._places, right=True)

    @property
    def position(self) -> Tensor:
        """The place of each token in its sequence, (tokens,)."""
        return self._places - self.cu_seqlens[self.sequence]

    @property
    def _places(self) -> Tensor:
        return torch.arange(self.tokens, dtype=torch.int32, device=self.cu_seqlens.device)

    def first(self, states: Tensor) -> Tensor:
        """The first token of every sequence, (sequences, ...)."""
        return states[0, self.cu_seqlens[:-1]]

    def last(self, states: Tensor) -> Tensor:
        """The last token of every sequence, (sequences, ...)."""
        return states[0, (self.cu_seqlens[1:] - 1).clamp(min=0)]

    def pool(self, states: Tensor, how: str) -> Tensor:
        """The "mean", "first" or "last" token of every sequence, (sequences, ...)."""
        pooled: Tensor = getattr(self, how)(states)
        return pooled

    def mean(self, states: Tensor) -> Tensor:
        """The mean token of every sequence, (sequences, ...); 0 for one without tokens."""
        offsets = self.cu_seqlens.long()
        sums = torch.segment_reduce(states[0], "sum", offsets=offsets, axis=0)
        return sums / self.lengths.clamp(min=1).unsqueeze(-1)

    def rows(self, x: Tensor, fill: float) -> Tensor:
        """A row for every sequence, (sequences, max_seqlen, ...), filled up with `fill`."""
        shape = (len(self.lengths), self.max_seqlen, *x.shape[2:])
        return x.new_full(shape, fill).index_put((self.sequence, self.position), x[0])

    def select(self, x: Tensor, sequences: Sequence[int]) -> tuple[Tensor, Self]:
        """Some of the sequences, and how they lie."""
        return self.groups(x, [sequences])[0]

    def groups(self, x: Tensor, groups: Sequence[Sequence[int]]) -> list[tuple[Tensor, Self]]:
        """The sequences of each group, and how they lie."""
        if not groups:
            return []
        order = [sequence for group in groups for sequence in group]
        lengths = self.lengths.tolist()
        if order != list(range(len(lengths))):
            parts = x[0].split(lengths)
            x = torch.cat([parts[sequence] for sequence in order])[None]
        ends = [list(accumulate((lengths[i] for i in group), initial=0)) for group in groups]
        found = []
        for part, end in zip(x.split([end[-1] for end in ends], 1), ends, strict=True):
            cu_seqlens = torch.tensor(end, dtype=torch.int32, device=x.device)
            found.append((part, type(self)(cu_seqlens, self.max_seqlen, end[-1])))
        return found

    def split(self, x: Tensor) -> list[Tensor]:
        """Each sequence's own, (length, ...)."""
        return list(x[0].split(self.lengths.tolist()))


Layout = Padded | Packed

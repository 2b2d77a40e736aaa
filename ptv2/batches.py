"""Which examples share a training step: of like length, by their number or by their tokens."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from .tasks import Task
from .tasks.task import Feature

_GROUPED_BATCHES = 50
"""Examples are sorted by length within this many batches, as transformers does it."""


class Batches(Sampler[list[int]]):
    """The batches of every epoch, each a list of the examples' places.

    Every epoch shuffles anew, as a function of seed and epoch alone, and has as many batches.

    Args:
        lengths: of each example, in tokens.
        batch_size: examples a batch, unless there is a token budget.
        token_budget: tokens a batch at most. None: batches of `batch_size`.
        packing: a batch's tokens are the sum of its lengths; else examples times the longest.
        seed: of the order.
        processes: the number of batches is rounded up to a multiple of this, by repeating some.

    Raises:
        ValueError: an example is longer than the token budget.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        token_budget: int | None = None,
        packing: bool = False,
        seed: int = 0,
        processes: int = 1,
    ) -> None:
        self.lengths = torch.tensor(list(lengths))
        if token_budget is not None and int(self.lengths.max()) > token_budget:
            raise ValueError(
                f"token_budget: expected at least the longest example's {int(self.lengths.max())} "
                f"tokens, got {token_budget}"
            )
        self.examples = batch_size  # named `batch_size`, accelerate would take it for every size
        self.token_budget = token_budget
        self.packing = packing
        self.seed = seed
        self.processes = processes
        self.epoch = 0
        self._count = len(self._batches())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is of."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches())

    def _batches(self) -> list[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = torch.from_numpy(random.permutation(len(self.lengths)))
        batches = self._by_number(order) if self.token_budget is None else self._by_tokens(order)
        shuffled = [batches[i] for i in random.permutation(len(batches))]
        missing = -len(shuffled) % self.processes
        return shuffled + [shuffled[i % len(shuffled)] for i in range(missing)]

    def _by_number(self, order: torch.Tensor) -> list[list[int]]:
        batches = []
        for group in order.split(_GROUPED_BATCHES * self.examples):
            longest_first = self.lengths[group].argsort(descending=True, stable=True)
            batches += [part.tolist() for part in group[longest_first].split(self.examples)]
        return batches

    def _by_tokens(self, order: torch.Tensor) -> list[list[int]]:
        """Cut all examples, the longest first, so that every epoch has the same cuts."""
        assert self.token_budget is not None
        batches: list[list[int]] = []
        tokens = longest = 0
        for place in order[self.lengths[order].argsort(descending=True, stable=True)].tolist():
            length = int(self.lengths[place])
            if batches:
                size = len(batches[-1]) + 1
                needed = tokens + length if self.packing else size * longest
                if needed <= self.token_budget:
                    batches[-1].append(place)
                    tokens += length
                    continue
            batches.append([place])
            tokens = longest = length
        return batches


def validation_batches(
    lengths: Sequence[int], batch_size: int, token_budget: int | None, packing: bool
) -> list[list[int]]:
    """The places of all examples, in batches four times as large as those of training."""
    if token_budget is not None:
        token_budget = max(4 * token_budget, max(lengths))
    return list(Batches(lengths, 4 * batch_size, token_budget, packing))


def token_counts(task: Task, features: Iterable[Feature], packing: bool) -> list[int]:
    """How many tokens each feature adds to a batch of its own kind; padded, a choice counts as
    much as the longest."""
    counts = []
    for feature in features:
        lengths = task.lengths(feature)
        counts.append(sum(lengths) if packing else len(lengths) * max(lengths))
    return counts

"""Batches of like length: every example once, as many batches an epoch, within the budget."""

import random
from itertools import chain

import pytest

from ptv2.batches import Batches, validation_batches

LENGTHS = [random.Random(0).randint(3, 60) for _ in range(503)]


def test_every_example_is_in_one_batch_and_epochs_differ() -> None:
    for options in ({}, {"token_budget": 200}, {"token_budget": 200, "packing": True}):
        batches = Batches(LENGTHS, 8, **options)
        epochs = []
        for epoch in (0, 1, 2):
            batches.set_epoch(epoch)
            epochs.append(list(batches))
            assert len(epochs[-1]) == len(batches)
            assert sorted(chain(*epochs[-1])) == list(range(len(LENGTHS)))
        assert epochs[0] != epochs[1]
        batches.set_epoch(1)
        assert list(batches) == epochs[1]
        assert list(Batches(LENGTHS, 8, seed=1, **options)) != epochs[0]


def test_batches_by_number_have_like_lengths() -> None:
    batches = [[LENGTHS[i] for i in batch] for batch in Batches(LENGTHS, 8)]
    assert sorted(map(len, batches)) == [7] + [8] * 62
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 3


@pytest.mark.parametrize("packing", [False, True])
def test_a_token_budget_is_kept_and_used(packing: bool) -> None:
    sizes = []
    for batch in Batches(LENGTHS, 8, token_budget=240, packing=packing):
        lengths = [LENGTHS[i] for i in batch]
        sizes.append(sum(lengths) if packing else len(lengths) * max(lengths))
    assert max(sizes) <= 240
    assert sum(sizes) / len(sizes) > 200


def test_processes_get_as_many_batches_each() -> None:
    batches = Batches(LENGTHS, 8, processes=4)
    assert len(batches) == len(list(batches)) == 64
    assert set(chain(*batches)) == set(range(len(LENGTHS)))


def test_a_budget_below_the_longest_example() -> None:
    with pytest.raises(ValueError, match="token_budget: expected at least the longest example's"):
        Batches(LENGTHS, 8, token_budget=10)


@pytest.mark.parametrize("packing", [False, True])
def test_batches_of_validation_are_four_times_as_large(packing: bool) -> None:
    lengths = [3, 50, 7, 7, 2, 9, 4, 4, 4, 12]
    for batch_size, budget in ((2, None), (2, 6)):
        batches = validation_batches(lengths, batch_size, budget, packing)
        assert sorted(place for batch in batches for place in batch) == list(range(10))
        own = [[lengths[place] for place in batch] for batch in batches]
        tokens = [sum(batch) if packing else len(batch) * max(batch) for batch in own]
        if budget is None:
            assert sorted(map(len, batches)) == [2, 8]
        else:
            assert max(tokens) == 50  # four times the budget is less than the longest example
            assert len(batches) < 10

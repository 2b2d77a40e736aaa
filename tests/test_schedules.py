"""How the learning rate goes over the steps."""

import pytest
import torch
from torch.optim import SGD
from transformers import get_scheduler

from ptv2.schedules import SCHEDULES, make_schedule


def rates(name: str, steps: int, epochs: int = 1, warmup_ratio: float = 0.06) -> list[float]:
    """The rate of every step, as a share of the peak."""
    optimizer = SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    return taken(make_schedule(name, optimizer, steps, epochs, warmup_ratio), optimizer, steps)


def taken(
    schedule: torch.optim.lr_scheduler.LRScheduler, optimizer: SGD, steps: int
) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_exponential_schedule() -> None:
    expected = [0.95**epoch for epoch in range(3) for _ in range(4)]
    assert rates("exponential", 12, 3, 0.0) == pytest.approx(expected)
    assert rates("exponential", 12, 3, 0.1)[:5] == pytest.approx([0, 0.5, 1, 1, 0.95])


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "exponential"])
def test_other_schedules_are_those_of_transformers(name: str) -> None:
    for steps, warmup_steps in ((20, 2), (100, 6)):
        optimizer = SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        theirs = get_scheduler(name, optimizer, warmup_steps, steps)
        assert rates(name, steps) == taken(theirs, optimizer, steps)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.06, 0.9])
def test_the_warmup_leaves_a_step(name: str, warmup_ratio: float) -> None:
    assert rates(name, 1, 1, warmup_ratio) == [1]
    rises = warmup_ratio > 0 and name != "constant"
    for epochs in (1, 2):
        first, second = rates(name, 2, epochs, warmup_ratio)
        assert first == (0 if rises else 1)
        assert 0 < second <= 1
    assert max(rates(name, 5, 1, warmup_ratio)) > 0.9

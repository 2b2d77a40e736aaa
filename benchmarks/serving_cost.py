"""What prompts cost ptv2's engine, and what many tasks do: the same batches, in turns.

Part of `bench_serving.py`; tasks have the usual head, one linear layer on the mean.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from measure import time_interleaved
from serving_setup import Setup
from serving_systems import feature, served_task

from ptv2.serving import BUDGET, Engine, Served
from ptv2.serving.backbone import load_backbone

BATCH, BATCHES = 32, 8
"""Sequences of a batch, and how many different batches there are."""
FEW, MANY = 10, 1000
SIZES = (8, 32, 128, 512)
"""Sequences of a batch, each of which divides the last."""


def engine_costs(setup: Setup, texts: Sequence[list[int]], rounds: int, many: int) -> Any:
    """Median seconds of a batch, by what its sequences are.

    Args:
        setup: of usual answers.
        rounds: of every kind.
        many: tasks of the kind with many.
    """
    draw = random.Random(setup.seed)
    batches = [[feature(draw.choice(texts)) for _ in range(BATCH)] for _ in range(BATCHES)]
    tasks = [served_task(setup, number) for number in range(many)]
    bare = [served_task(setup, number, prompted=False) for number in range(FEW)]
    model = load_backbone(setup.encoder, torch.device(setup.device), setup.dtype)
    room = 2**40
    kinds = {
        "bare": _answering(Engine(model, room), bare, batches),
        f"{FEW} tasks": _answering(Engine(model, room), tasks[:FEW], batches),
        f"{many} tasks": _answering(Engine(model, room), tasks, batches),
        f"{many} tasks in {BUDGET >> 20} MiB": _answering(Engine(model), tasks, batches),
    }
    return {
        "sequences of a batch": BATCH,
        "tokens of a batch": sum(len(x["input_ids"]) for batch in batches for x in batch)
        / BATCHES,
        "seconds": time_interleaved(kinds, torch.device(setup.device), rounds),
    }


def size_costs(setup: Setup, texts: Sequence[list[int]], rounds: int) -> Any:
    """Median seconds of the same sequences, by how many are a batch."""
    draw = random.Random(setup.seed)
    drawn = [feature(draw.choice(texts)) for _ in range(SIZES[-1])]
    tasks = [served_task(setup, number) for number in range(FEW)]
    chosen = draw.choices(tasks, k=len(drawn))
    model = load_backbone(setup.encoder, torch.device(setup.device), setup.dtype)
    engine = Engine(model, 2**40)

    def answer(size: int) -> None:
        for first in range(0, len(drawn), size):
            engine.run(chosen[first : first + size], drawn[first : first + size])

    kinds = {str(size): partial(answer, size) for size in SIZES}
    return {
        "sequences": len(drawn),
        "tokens": sum(len(x["input_ids"]) for x in drawn),
        "seconds": time_interleaved(kinds, torch.device(setup.device), rounds),
    }


def _answering(
    engine: Engine, tasks: Sequence[Served], batches: Sequence[list[Any]]
) -> Callable[[], Any]:
    """A call that answers the next batch, every sequence for a task drawn anew."""
    draw, turn = random.Random(0), itertools.cycle(batches)
    for first in range(0, len(tasks), BATCH):
        own = tasks[first : first + BATCH]
        engine.run(own, [feature([0, 1])] * len(own))  # on the device, where there is room
    return lambda: engine.run(draw.choices(tasks, k=BATCH), next(turn))

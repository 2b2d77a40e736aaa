"""Attention over a prompt and a sequence by pytest-benchmark: ptv2 and concatenation.

make micro      # runs it, and checks the ratios by `micro_history.py`
"""

from functools import partial
from timeit import timeit

import pytest
import torch
from bench_kernel import CPU_PROBLEMS, PROBLEMS, Judge, gradients, make, without_grad
from measure import default_device
from rivals import RIVALS

SECONDS = 1
"""That a case is measured for: short ones have more rounds, of which the fastest counts."""
DEVICE = default_device()
ON_CPU = DEVICE.type == "cpu"
OWN = "ptv2 native" if ON_CPU else "ptv2 triton"
RIVAL = "concat, sdpa flash" if ON_CPU else "concat, sdpa efficient"
NAMES = (
    (*(name for name in CPU_PROBLEMS if "64x32" in name or "16x128" in name), "cpu bank")
    if ON_CPU
    else ("short", "training", "bank")
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["forward", "forward + backward"])
@pytest.mark.parametrize("rival", [OWN, RIVAL])  # one right after the other
def test_attention(benchmark, name, rival, part):
    problem = (PROBLEMS | CPU_PROBLEMS)[name]
    inputs = make(problem, DEVICE)
    errors = Judge.of(problem, DEVICE).errors(RIVALS[rival])
    limit = 2e-2 if problem.dtype == "bfloat16" else 2e-3
    assert all(error <= limit for error in errors.values()), errors
    call = partial(without_grad, RIVALS[rival], inputs)
    if part != "forward":
        call = partial(gradients, RIVALS[rival], inputs, torch.randn_like(inputs.query))
    benchmark.extra_info.update(name=name, own=rival == OWN, part=part)
    function = timed(call)
    rounds = int(SECONDS / timeit(function, number=5) * 5)
    benchmark.pedantic(function, rounds=min(max(rounds, 30), 1000), warmup_rounds=3)


def timed(call):
    """A call that returns when its work is done."""

    def run():
        call()
        if not ON_CPU:
            torch.cuda.synchronize()

    return run

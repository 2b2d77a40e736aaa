"""How the learning rate goes over the steps."""

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

EXPONENTIAL, DECAY = "exponential", 0.95
CONSTANT = "constant"
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    CONSTANT,
    "constant_with_warmup",
    "inverse_sqrt",
    EXPONENTIAL,
)
"""Those that depend on the number of steps alone."""


def make_schedule(
    name: str, optimizer: Optimizer, steps: int, epochs: int, warmup_ratio: float
) -> LRScheduler:
    """A schedule of transformers, or one that takes 5% off after every epoch.

    The latter is that of the official code for tags and questions.

    Args:
        name: one of `SCHEDULES`.
        steps: of all epochs.
        warmup_ratio: the share of the steps over which the rate rises, from 0; at least one step
            is left to the peak.
    """
    warmup_steps = min(math.ceil(steps * warmup_ratio), steps - 1)
    if name == EXPONENTIAL:
        return LambdaLR(optimizer, partial(_decayed, steps // epochs, warmup_steps))
    schedule: LRScheduler = get_scheduler(
        name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=steps
    )
    return schedule


def _decayed(epoch_steps: int, warmup_steps: int, step: int) -> float:
    rise = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return float(rise * DECAY ** (step // epoch_steps))

"""Answers for many tasks at once: the prompts on a device, and packed batches of any of them."""

from .bank import Bank
from .batcher import Batcher
from .engine import BUDGET, Engine
from .jobs import DeadlineError, Job, Limits, OverloadedError, UnavailableError
from .served import Served
from .service import Outcome, Service

__all__ = [
    "BUDGET",
    "Bank",
    "Batcher",
    "DeadlineError",
    "Engine",
    "Job",
    "Limits",
    "Outcome",
    "OverloadedError",
    "Served",
    "Service",
    "UnavailableError",
]

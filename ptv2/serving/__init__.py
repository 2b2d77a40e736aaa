"""Answers for many tasks at once: the prompts on a device, and packed batches of any of them."""

from .engine import BUDGET, Engine
from .served import Served

__all__ = ["BUDGET", "Engine", "Served"]

"""Several processes train one prompt: the first one writes, and all fail together."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

R = TypeVar("R")


def is_main() -> bool:
    """Whether this process is the one that writes and prints; true if there is only one."""
    return bool(_state().is_main_process)


def process_count() -> int:
    """How many processes train together."""
    return int(_state().num_processes)


def require_everywhere(holds: bool, message: str) -> None:
    """Raise a ValueError with the message in every process unless something holds in all."""
    if not all(gather_object([holds])):
        raise ValueError(message)


def on_main(function: Callable[[], R]) -> R | None:
    """Call a function in the main process alone, while the others wait.

    Returns:
        What the function returns; None in the other processes.

    Raises:
        Exception: what the function raises, in every process.
    """
    state = _state()
    if state.num_processes == 1:
        return function()
    outcome: list[Any] = [None]
    result = None
    if state.is_main_process:
        try:
            result = function()
        except Exception as error:
            outcome = [error]
    broadcast_object_list(outcome)
    if outcome[0] is not None:
        raise outcome[0]
    return result


def _state() -> PartialState:
    return PartialState(cpu=not torch.accelerator.is_available())

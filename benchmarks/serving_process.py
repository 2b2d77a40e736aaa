"""A system of `bench_serving.py` in a process of its own.

python benchmarks/serving_process.py SYSTEM SETUP
"""

import ctypes
import json
import sys
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import torch
from measure import package_version
from processes import answer_commands
from serving_load import Request, draw_requests, measure
from serving_setup import Setup

NAMES = ("ptv2", "bare", "compiled", "peft", "adapters", "copies")


class Commands:
    """What a process does."""

    def __init__(self, name: str, setup: str) -> None:
        self._name = name
        self._setup = Setup.read(setup)
        self._texts = json.loads(Path(self._setup.texts).read_text())

    def start(self, tasks: int) -> dict[str, str | None]:
        """Load the system and give it tasks; the versions of the packages that it uses."""
        torch.set_num_threads(self._setup.threads)
        self._system = _make(self._name, self._setup)
        self._system.grow(tasks)
        names = ("adapters", "peft", "torch", "transformers")
        return {name: package_version(name) for name in names}

    def memory(self, tasks: int) -> dict[str, Any]:
        """Grow to so many tasks, let each answer in batches of 32, and say what is taken."""
        begin = perf_counter()
        self._system.grow(tasks)
        texts = list(islice(cycle(self._texts), 32))
        for first in range(0, tasks, 32):
            self._system.answers(
                [Request((first + i) % tasks, text) for i, text in enumerate(texts)]
            )
        with suppress(OSError, AttributeError):  # another C library than GNU's
            ctypes.CDLL(None).malloc_trim(0)  # freed memory is not the process's any more
        on_gpu = torch.cuda.is_available()
        return {
            "tasks": tasks,
            "resident bytes": psutil.Process().memory_info().rss,
            "bytes on the GPU": torch.cuda.memory_allocated() if on_gpu else None,
            "bytes of a task": self._system.task_bytes(),
            "seconds": perf_counter() - begin,
        }

    def answers(self, count: int, seed: int) -> dict[str, Any]:
        """The logits of some requests, in mixed batches and each alone."""
        requests, _ = self._draw(count, seed)
        return {
            "requests": requests,
            "together": self._system.answers(requests),
            "alone": [self._system.answers([request])[0] for request in requests],
        }

    def measure(self, rate: float, count: int, bound: float, seed: int) -> dict[str, Any]:
        """Latencies at a rate, in requests a second."""
        requests, moments = self._draw(count, seed)
        times = [moment / rate for moment in moments]
        return {"rate": rate, **measure(self._system, requests, times, bound)}

    def _draw(self, count: int, seed: int) -> tuple[list[Request], list[float]]:
        setup = self._setup
        drawn = draw_requests(self._texts, setup.tasks, setup.exponent, seed)
        moments, requests = zip(*islice(drawn, count), strict=True)
        return list(requests), list(moments)


def _make(name: str, setup: Setup) -> Any:
    if name == "adapters":
        from serving_adapters import Adapters

        return Adapters(setup)
    import serving_systems as systems

    match name:
        case "ptv2" | "bare" | "compiled":
            return systems.Ptv2(setup, name != "bare", name == "compiled")
        case "peft":
            return systems.Peft(setup)
        case "copies":
            return systems.Copies(setup)
    raise ValueError(f"system: expected {' or '.join(NAMES)}, got {name!r}")


if __name__ == "__main__":
    answer_commands(Commands(*sys.argv[1:]))

"""A system of `bench_serving.py` in a process of its own: the process, and who talks to it.

    python benchmarks/serving_process.py SYSTEM SETUP

A command is a line of JSON, and so is its answer.
"""

import ctypes
import json
import os
import subprocess
import sys
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import torch
from measure import package_version
from serving_load import Request, draw_requests, measure
from serving_setup import Setup
from transformers.utils import logging

NAMES = ("ptv2", "bare", "compiled", "peft", "adapters", "copies")


class Process:
    """A system in a process; the answer to its first command waits until it is there.

    Args:
        python: of the system's environment.
        setup: as `Setup.write` gives it.
    """

    def __init__(self, name: str, setup: str, python: str, threads: int) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self.name = name
        self._process = subprocess.Popen(
            [python, "-W", "ignore::FutureWarning", __file__, name, setup],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def call(self, command: str, **arguments: Any) -> Any:
        """The answer to a command.

        Raises:
            NotImplementedError: the system cannot do it; says why.
            RuntimeError: the process has failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([command, arguments]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{self.name}: the process has failed at {command!r}; see above")
        found = json.loads(line)
        if "refused" in found:
            raise NotImplementedError(found["refused"])
        return found["answer"]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


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


def main() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    commands = Commands(*sys.argv[1:])
    for line in sys.stdin:
        command, arguments = json.loads(line)
        try:
            found = {"answer": getattr(commands, command)(**arguments)}
        except (ImportError, MemoryError, NotImplementedError) as error:
            found = {"refused": f"{type(error).__name__}: {error}"}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()

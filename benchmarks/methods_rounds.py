"""The measurements of `bench_methods.py`: training first, then answers, then times in turns."""

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from measure import commit
from processes import Process

RATES = {
    "ptv2": (1e-2, 2e-2, 3e-2),
    "ptv2-pooler": (1e-2, 2e-2, 3e-2),
    "official": (1e-2, 2e-2, 3e-2),
    "peft-prefix": (1e-2, 2e-2, 3e-2),
    "peft-lora": (5e-4, 2e-3, 5e-3),
    "adapters-bottleneck": (5e-4, 1e-3, 3e-3),
    "adapters-prefix": (1e-2, 2e-2, 3e-2),
    "peft-prompt-tuning": (1e-2, 3e-2, 1e-1),
    "peft-p-tuning": (1e-3, 3e-3, 1e-2),
    "fine-tuning": (5e-5, 1e-4, 2e-4),
}
"""What is tried; the middle one is taken without a search."""
SEARCH_EXAMPLES, SEARCH_EPOCHS = 2000, 3
TOLERANCE = 1e-4
TASKS, ROWS, COMPARED = 32, 128, 24


@dataclass(frozen=True)
class Plan:
    """How long a method is trained, on how many examples at most."""

    epochs: int
    examples: int | None

    def options(self, name: str, rate: float, seed: int) -> dict[str, Any]:
        """Of `Commands.train`."""
        return {
            "epochs": self.epochs,
            "learning_rate": rate,
            "weight_decay": 0.01 if name == "fine-tuning" else 0.0,
            "seed": seed,
            "examples": self.examples,
        }


def best(history: Sequence[dict[str, float]]) -> float:
    """The score of the best epoch."""
    return max(epoch["accuracy"] for epoch in history)


@contextmanager
def recorded(name: str, found: dict[str, Any]) -> Iterator[None]:
    """Keep what a method fails with."""
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        found["failed"] = str(error)
        print(f"{name}: {error}", flush=True)


def train(name: str, process: Process, args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Search, if wanted, and a run for every seed; what is found already is kept."""
    usual = Plan(args.epochs, args.examples)
    part = Plan(min(SEARCH_EPOCHS, args.epochs), min(SEARCH_EXAMPLES, args.examples or 10**9))
    rate = RATES[name][1]
    if args.search:
        scores = found.setdefault("search", {})
        for tried in RATES[name]:
            if str(tried) not in scores:
                run = process.call("train", **part.options(name, tried, 0))
                scores[str(tried)] = best(run["history"])
        rate = float(max(scores, key=scores.__getitem__))
    found["learning rate"] = rate
    runs = found.setdefault("runs", {})
    for seed in args.seeds:
        if str(seed) not in runs:
            run = process.call("train", **usual.options(name, rate, seed))
            at = commit(Path(__file__).parent)
            runs[str(seed)] = run | {"score": best(run["history"]), "commit": at}
            print(f"{name}, seed {seed}: {runs[str(seed)]['score']:.4f}", flush=True)


def compare_speeds(
    processes: dict[str, Process], dev: Sequence[Any], rounds: int, methods: dict[str, Any]
) -> None:
    """Describe and measure all methods whose answers to mixed rows are right.

    Args:
        processes: those that fail are taken out.
        dev: examples.
    """
    draw = random.Random(0)
    rows = [(draw.randrange(TASKS), draw.choice(dev)[0]) for _ in range(ROWS)]
    for name, process in list(processes.items()):
        found = methods[name]
        with recorded(name, found):
            found |= process.call("start")
            process.call("grow", tasks=TASKS)
            found |= process.call("compare", rows=rows[:COMPARED], tasks=TASKS)
            if not found["difference"] <= TOLERANCE:
                found["wrong"] = f"together and alone differ by {found['difference']:.1e}"
            elif not found["between tasks"] > 10 * found["difference"]:
                found["wrong"] = f"two tasks differ by {found['between tasks']:.1e}"
        if "wrong" in found or "failed" in found:
            processes.pop(name).close()
    for turn in range(rounds + 1):  # the first is not counted
        texts = draw.sample(rows, 8)
        for kind, call in kinds(rows, texts).items():
            for name, process in list(processes.items()):
                with recorded(name, methods[name]):
                    seconds = call(process)
                    if turn:
                        times = methods[name].setdefault("seconds", {})
                        times.setdefault(kind, []).append(seconds)
                if "failed" in methods[name]:
                    methods[name].pop("seconds", None)
                    processes.pop(name).close()


def kinds(rows: Sequence[Any], texts: Sequence[Any]) -> dict[str, Callable[[Process], float]]:
    """What is measured: seconds of a training step, of a text alone, of all rows."""
    return {
        "training step": lambda process: process.call("steps", count=2),
        "text alone": lambda process: median(
            process.call("answer", rows=[text]) for text in texts
        ),
        "rows of many tasks": lambda process: process.call("answer", rows=rows),
    }

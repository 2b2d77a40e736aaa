"""A method of `bench_methods.py` in a process of its own.

python benchmarks/methods_process.py METHOD SETUP
"""

import itertools
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from measure import cpu_peak_bytes, package_version, peak_bytes
from methods_setup import Setup, Training, batches, stepper, train
from processes import answer_commands

ENVIRONMENTS = {
    "ptv2": "ptv2",
    "ptv2-pooler": "ptv2",
    "official": "ptv2",
    "peft-prefix": "peft",
    "peft-lora": "peft",
    "adapters-bottleneck": "adapters",
    "adapters-prefix": "adapters",
    "peft-prompt-tuning": "peft",
    "peft-p-tuning": "peft",
    "fine-tuning": "ptv2",
}
"""Every method, and the environment that it runs in."""
PACKAGES = ("ptv2", "peft", "adapters", "transformers", "torch")


def make(name: str, setup: Setup) -> Any:
    """A method with one task.

    Raises:
        ImportError: its package is not here.
    """
    if name.startswith("adapters"):
        from methods_adapters import adapters

        return adapters(name, setup)
    import methods_models as models

    match name:
        case "ptv2" | "ptv2-pooler":
            return models.Ptv2(setup, pooler=name == "ptv2-pooler")
        case "official":
            return models.Official(setup)
        case "fine-tuning":
            return models.FineTuned(setup)
    return models.peft(name, setup)


class Commands:
    """What a process does."""

    def __init__(self, name: str, setup: str) -> None:
        self._name, self._setup = name, Setup.read(setup)
        torch.set_num_threads(self._setup.threads)

    def train(self, examples: int | None, **options: Any) -> dict[str, Any]:
        """Train anew; options are those of `Training`.

        Args:
            examples: of the training data at most; None: all.
        """
        training = Training(**options)
        torch.manual_seed(training.seed)
        self._method = make(self._name, self._setup)
        drawn = random.Random(0).sample(self._setup.train, len(self._setup.train))[:examples]
        setup = Setup(**vars(self._setup) | {"train": drawn})
        begin = perf_counter()
        history = train(self._method.module, setup, training)
        return {"history": history, "seconds": perf_counter() - begin}

    def start(self) -> dict[str, Any]:
        """Make task 0 and describe it: parameters, bytes of what is saved, memory of a step."""
        torch.manual_seed(0)
        self._method = make(self._name, self._setup)
        module = self._method.module.train()
        rows = list(batches(self._setup.train, self._setup.batch_size, random.Random(0)))
        self._batches = itertools.cycle(rows[: len(rows) // 2 + 1])
        self._step = stepper(module, self._setup, Training(1, 1e-4), 10**6)
        longest = max(rows, key=lambda batch: len(batch[-1][0]))
        with tempfile.TemporaryDirectory() as folder:
            self._method.save(Path(folder))
            asset = sum(x.stat().st_size for x in Path(folder).rglob("*") if x.is_file())
        device = torch.device(self._setup.device)
        peak = cpu_peak_bytes if device.type == "cpu" else lambda f: peak_bytes(f, device)
        return {
            "trained parameters": sum(x.numel() for x in module.parameters() if x.requires_grad),
            "asset bytes": asset,
            "peak bytes": peak(lambda: self._step(longest)),
            "versions": {name: package_version(name) for name in PACKAGES},
        }

    def steps(self, count: int) -> float:
        """Seconds of a training step, the mean of some on batches of the data."""
        self._method.activate()
        self._method.module.train()
        begin = perf_counter()
        for batch in itertools.islice(self._batches, count):
            self._step(batch)
        return (perf_counter() - begin) / count

    def grow(self, tasks: int) -> None:
        """Have so many tasks."""
        self._method.module.eval()
        self._method.grow(tasks)

    def compare(self, rows: Sequence[Any], tasks: int) -> dict[str, float]:
        """The largest difference between answers to rows together and to each alone; and the
        smallest between the answers of two tasks to the same text.
        """
        self._method.module.eval()
        together = torch.tensor(self._method.answers(rows))
        alone = torch.tensor([self._method.answers([row])[0] for row in rows])
        same = torch.tensor(self._method.answers([(task, rows[0][1]) for task in range(tasks)]))
        return {
            "difference": float((together - alone).abs().max()),
            "between tasks": float(torch.pdist(same, p=torch.inf).min()),
        }

    def answer(self, rows: Sequence[Any]) -> float:
        """Seconds of answers to rows that are there at once."""
        self._method.module.eval()
        begin = perf_counter()
        self._method.answers(rows)
        return perf_counter() - begin


if __name__ == "__main__":
    answer_commands(Commands(*sys.argv[1:]))

"""The methods of `bench_methods.py` that the package `adapters` has, in its own environment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from adapters import AdapterSetup, AutoAdapterModel, PrefixTuningConfig, SeqBnConfig
from adapters.composition import BatchSplit, Stack
from methods_setup import Setup, by_task, collate, copy_task, make_different

Row = tuple[int, list[int]]


class Adapters:
    """An adapter and a head a task; rows of several tasks are one padded batch, split by task."""

    def __init__(self, setup: Setup, config: Any) -> None:
        self.setup, self._config = setup, config
        self.module: Any = AutoAdapterModel.from_pretrained(setup.encoder)
        self.tasks = 0
        self._add(1)
        self.module.train_adapter("task-0")
        self.module.to(setup.device)

    def save(self, folder: Path) -> None:
        """Write task 0 as its users would."""
        self.module.save_adapter(str(folder), "task-0", with_head=True)

    def grow(self, tasks: int) -> None:
        """Have so many tasks, all but task 0 moved copies of it."""
        before = self.tasks
        self._add(tasks)
        for number in range(before, tasks):
            make_different(copy_task(self.module, "task-0", f"task-{number}"), number)
        self.module.eval()

    def activate(self) -> None:
        """Make task 0 the one that is trained."""
        self.module.set_active_adapters("task-0")
        self.module.active_head = "task-0"

    def _add(self, tasks: int) -> None:
        for number in range(self.tasks, tasks):
            self.module.add_adapter(f"task-{number}", self._config)
            self.module.add_classification_head(f"task-{number}", num_labels=self.setup.labels)
        self.tasks = max(tasks, self.tasks)

    @torch.inference_mode()
    def answers(self, rows: Sequence[Row]) -> list[list[float]]:
        """The logits of every row."""
        groups = by_task([task for task, _ in rows])
        order = [place for places in groups.values() for place in places]
        inputs, _ = collate([(rows[place][1], 0) for place in order], self.setup.device)
        names, sizes = [f"task-{task}" for task in groups], list(map(len, groups.values()))
        split = BatchSplit(*names, batch_sizes=sizes) if len(names) > 1 else Stack(*names)
        with AdapterSetup(split):
            states = self.module.base_model(**inputs).last_hidden_state.split(sizes)
        heads = (self.module.heads[name] for name in names)
        logits = [head((x,))[0].float() for head, x in zip(heads, states, strict=True)]
        found: list[list[float]] = [[]] * len(rows)
        for place, own in zip(order, torch.cat(logits).tolist(), strict=True):
            found[place] = own
        return found


def adapters(name: str, setup: Setup) -> Adapters:
    """Prefix tuning without a reparametrisation, as the others have it, or bottleneck adapters."""
    configs = {
        "adapters-prefix": PrefixTuningConfig(flat=True, prefix_length=setup.prompt_length),
        "adapters-bottleneck": SeqBnConfig(),
    }
    return Adapters(setup, configs[name])

"""The package `adapters` as a system of `bench_serving.py`: a task a part of a `BatchSplit`.

Runs in the environment that `environments.sh` makes, without ptv2.
"""

from collections.abc import Iterator, Sequence

import torch
from adapters import AdapterSetup, AutoAdapterModel, PrefixTuningConfig
from adapters.composition import BatchSplit, Stack
from serving_load import Logits, Request, Worker, all_answers, by_task
from serving_setup import Setup, flat, padded


class Adapters:
    """One padded forward for everything that waits, sorted by task.

    A head is a linear layer on the encoder's pooler, applied here to its part of the batch: a
    `BatchSplit` of such heads gives each of them the pooled states of the whole batch. Positions
    begin behind the prompt, which `adapters` does not do by itself, so that answers are those of
    the others.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        model = AutoAdapterModel.from_pretrained(setup.encoder)
        self._model = model.eval().requires_grad_(False).to(setup.device)
        self._tasks = 0
        worker = Worker(self._run, setup.batch_tokens)
        self.submit, self.drop = worker.submit, worker.drop

    def grow(self, tasks: int) -> None:
        """Have so many tasks."""
        for number in range(self._tasks, tasks):
            task, name = self._setup.task(number), f"task-{number}"
            config = PrefixTuningConfig(flat=True, prefix_length=self._setup.prompt_length)
            self._model.add_adapter(name, config)
            self._model.add_classification_head(
                name, num_labels=len(task.bias), layers=1, use_pooler=True
            )
            (prefix,) = self._prefix(name)
            prefix.data.copy_(flat(task.key_value).flatten())
            for own, theirs in zip(self._model.heads[name].parameters(), task[1:], strict=True):
                own.data.copy_(theirs)
        self._tasks = tasks
        self._model.eval().requires_grad_(False).to(self._setup.device, self._setup.torch_dtype)

    def task_bytes(self) -> int:
        """Of the last task."""
        name = f"task-{self._tasks - 1}"
        parameters = [*self._prefix(name), *self._model.heads[name].parameters()]
        return sum(x.nbytes for x in parameters)

    def answers(self, requests: Sequence[Request]) -> list[Logits]:
        """The logits of requests that are one batch."""
        return all_answers(self._run, requests)

    def _prefix(self, name: str) -> list[torch.nn.Parameter]:
        return list(self._model.base_model.prefix_tuning.prefix_tunings[name].parameters())

    @torch.inference_mode()
    def _run(self, requests: Sequence[Request]) -> Iterator[tuple[list[int], list[Logits]]]:
        groups = by_task(requests)
        order = [place for places in groups.values() for place in places]
        inputs = padded([requests[place].ids for place in order], self._setup.device)
        first, length = self._setup.prompt_length, inputs["input_ids"].shape[1]
        inputs["position_ids"] = torch.arange(first, first + length, device=self._setup.device)[
            None
        ]
        names = [f"task-{task}" for task in groups]
        sizes = [len(places) for places in groups.values()]
        split = BatchSplit(*names, batch_sizes=sizes) if len(names) > 1 else Stack(*names)
        with AdapterSetup(split):
            pooled = self._model.base_model(**inputs).pooler_output.split(sizes)
        heads = (self._model.heads[name] for name in names)
        logits = [head((x,), x)[0] for head, x in zip(heads, pooled, strict=True)]
        yield order, [row for part in logits for row in part.tolist()]

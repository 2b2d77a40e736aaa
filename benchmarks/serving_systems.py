"""The systems of `bench_serving.py` in this environment: ptv2, PEFT, and copies of the encoder.

Each is made from a `Setup`, without a task; `grow` adds tasks, and `answers` gives the logits of
requests that are there at once. Beside that it is a `System`.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from copy import deepcopy
from typing import Any

import torch
from serving_load import Logits, Request, Worker, all_answers, by_task
from serving_setup import LABELS, Setup, flat, padded
from torch import nn
from transformers import AutoModelForSequenceClassification

from ptv2 import PromptConfig
from ptv2.heads import Head
from ptv2.pools import FoldedPrompt
from ptv2.serving import Job, Limits, Served, Service
from ptv2.serving.backbone import load_backbone


class Ptv2:
    """`ptv2.serving.Service`: packed batches of all tasks.

    Jobs go to its batcher, where `Service.admit` puts them once it has tokenized.

    Args:
        prompted: False leaves the prompts out, and nothing else.
        compile: as `Service` has it.
    """

    def __init__(self, setup: Setup, prompted: bool = True, compile: bool = False) -> None:
        self._setup, self._prompted = setup, prompted
        limits = Limits(waiting=2**20)
        model = load_backbone(setup.encoder, torch.device(setup.device), setup.dtype)
        self.service = Service(model, limits=limits, compile=compile)
        self._tasks: list[Served] = []
        self._jobs: list[Job] = []

    def grow(self, tasks: int) -> None:
        """Have so many tasks."""
        for number in range(len(self._tasks), tasks):
            served = served_task(self._setup, number, self._prompted)
            self._tasks.append(self.service.bank.publish(served))

    def task_bytes(self) -> int:
        """Of the last task, in host memory; the device's are as many, within a budget."""
        task = self._tasks[-1]
        tensors = [task.prompt.key_value, *(x for layer in task.layers for x in layer)]
        return sum(x.nbytes for x in tensors)

    def submit(self, request: Request, done: Callable[[], None]) -> None:
        job = self._submit(request)
        job.future.add_done_callback(lambda future: future.cancelled() or done())
        self._jobs.append(job)

    def drop(self) -> None:
        wait([job.future for job in self._jobs if not job.future.cancel()])
        failed = [error for job in self._jobs if (error := _error(job)) is not None]
        self._jobs.clear()
        if failed:
            raise failed[0]

    def answers(self, requests: Sequence[Request]) -> list[Logits]:
        jobs = [self._submit(request) for request in requests]
        return [job.future.result()[0].tolist() for job in jobs]

    def _submit(self, request: Request) -> Job:
        job = Job(self._tasks[request.task], [feature(request.ids)])
        self.service.batcher.submit(job)
        return job


def _error(job: Job) -> BaseException | None:
    return None if job.future.cancelled() else job.future.exception()


def feature(ids: list[int]) -> dict[str, list[int]]:
    """What BERT's tokenizer gives for a text."""
    zeros, ones = [0] * len(ids), [1] * len(ids)
    return {"input_ids": ids, "token_type_ids": zeros, "attention_mask": ones}


def served_task(setup: Setup, number: int, prompted: bool = True) -> Served:
    """A task for ptv2."""
    task = setup.task(number)
    offset = setup.prompt_length if setup.same_answers else 0
    config = PromptConfig(
        "sequence-classification",
        tuple(f"label {i}" for i in range(len(task.bias))),
        prompt_length=setup.prompt_length if prompted else 0,
        position_offset=offset,
        pooling="first" if setup.same_answers else "mean",
        head_activation="tanh" if setup.same_answers else None,
    )
    head = Head(config, task.weight.shape[1])
    head.linear.weight.data, head.linear.bias.data = task.weight, task.bias
    if setup.same_answers:
        head.dense.load_state_dict(setup.pooler())
    key_value = task.key_value[..., : config.prompt_length, :]
    prompt = FoldedPrompt(tuple(range(len(key_value))), key_value, None)
    return Served.of(f"task-{number}", config, prompt, head)


class Grouped:
    """A system that takes what waits, and runs the requests of each task as a padded batch."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        worker = Worker(self._run, setup.batch_tokens)
        self.submit, self.drop = worker.submit, worker.drop

    def answers(self, requests: Sequence[Request]) -> list[Logits]:
        return all_answers(self._run, requests)

    def model(self, task: int) -> nn.Module:
        """What answers a task."""
        raise NotImplementedError

    @torch.inference_mode()
    def _run(self, requests: Sequence[Request]) -> Iterator[tuple[list[int], list[Logits]]]:
        for task, places in by_task(requests).items():
            inputs = padded([requests[place].ids for place in places], self._setup.device)
            yield places, self.model(task)(**inputs).logits.tolist()


class Peft(Grouped):
    """PEFT's prefix tuning: one model with an adapter a task, switched for every group.

    Its adapters share the classifier's size, here that of the task with most labels; a task with
    fewer has zeros for the others.
    """

    def __init__(self, setup: Setup) -> None:
        import peft

        self._peft = peft
        self._model: Any = classifier(setup, LABELS)
        self._tasks = 0
        super().__init__(setup)

    def grow(self, tasks: int) -> None:
        length = self._setup.prompt_length
        for number in range(self._tasks, tasks):
            config = self._peft.PrefixTuningConfig(
                task_type="SEQ_CLS", num_virtual_tokens=length, inference_mode=True
            )
            if number == 0:
                self._model = self._peft.get_peft_model(self._model, config, _name(0))
            else:
                self._model.add_adapter(_name(number), config)
            self._fill(number)
        self._tasks = tasks
        self._model.eval()

    def _fill(self, number: int) -> None:
        task, name = self._setup.task(number), _name(number)
        with torch.no_grad():
            self._model.prompt_encoder[name].embedding.weight.copy_(flat(task.key_value))
            head = self._model.base_model.classifier.modules_to_save[name]
            for own, theirs in ((head.weight, task.weight), (head.bias, task.bias)):
                own.zero_()[: len(theirs)] = theirs

    def task_bytes(self) -> int:
        name = _name(self._tasks - 1)
        head = self._model.base_model.classifier.modules_to_save[name]
        return nbytes(self._model.prompt_encoder[name]) + nbytes(head)

    def model(self, task: int) -> nn.Module:
        self._model.set_adapter(_name(task))
        return self._model


class Copies(Grouped):
    """A whole encoder for every task, as full fine-tuning leaves it."""

    def __init__(self, setup: Setup) -> None:
        self._original = classifier(setup, LABELS)
        self._models: list[nn.Module] = []
        super().__init__(setup)

    def grow(self, tasks: int) -> None:
        needed = tasks * nbytes(self._original)
        if needed > self._setup.memory:
            raise MemoryError(f"{tasks} encoders take {needed} bytes, --memory allows fewer")
        for number in range(len(self._models), tasks):
            model, task = deepcopy(self._original), self._setup.task(number)
            for own, theirs in zip(model.classifier.parameters(), task[1:], strict=True):
                own.data = theirs.to(own)
            self._models.append(model)

    def task_bytes(self) -> int:
        return nbytes(self._models[-1])

    def model(self, task: int) -> nn.Module:
        return self._models[task]


def classifier(setup: Setup, labels: int) -> Any:
    """The stock sequence classifier on the encoder."""
    model = AutoModelForSequenceClassification.from_pretrained(setup.encoder, num_labels=labels)
    return model.eval().requires_grad_(False).to(setup.device, setup.torch_dtype)


def nbytes(module: nn.Module) -> int:
    """Of a module's parameters."""
    return sum(x.nbytes for x in module.parameters())


def _name(number: int) -> str:
    return f"task-{number}"

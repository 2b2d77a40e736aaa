"""From a task's name and texts to answers: admission, tokens, the batcher, decoding."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from ..config import PromptConfig
from ..inputs import packable
from ..model import PromptModel
from ..readers import Readers
from ..tasks import QuestionAnswering, Task, TokenClassification
from ..tasks.task import Answer, Feature, by_example
from .bank import Bank
from .batcher import Batcher
from .engine import BUDGET, Engine
from .jobs import Job, Limits
from .served import Served

Result = TypeVar("Result")

MAX_INPUTS = 128
"""Of one request; more come in several."""
MAX_WINDOWS = 256
"""Of the contexts or the texts to tag of one request."""
MAX_CHOICES = 8 * MAX_INPUTS
"""Of the questions of one request."""
MAX_REPEATED = 2**21
"""Characters of the questions of one request, as a tokenizer reads them once for every choice."""
_THREADS = 4
"""For texts and answers: tokenising is one thing at a time."""
_CHARACTERS_PER_TOKEN = 250
"""Longer texts are refused unread: a tokenizer takes seconds for millions of characters."""


class Outcome(NamedTuple):
    """An answer, and what it was made of."""

    answer: Answer
    logits: list[Tensor]  # of every sequence that the input had
    features: list[Feature]  # of the input
    tokens: int


class Memory(NamedTuple):
    """Bytes in use, and those that may be."""

    used: int
    budget: int


class Service:
    """Answers for the tasks of a bank, from any threads.

    Args:
        model: of the backbone; its own tasks are not served.
        tokenizer: of the backbone. None: loaded from where the backbone came from.
        budget: bytes of prompts and heads on the device at most.
        limits: of the batches and of what waits.
        max_length: longest input in tokens, if less than the backbone allows.
        patience: seconds that a request may wait for a batch.
        compile: run the backbone compiled by `torch.compile`, which takes a minute here.

    Raises:
        NotImplementedError: the backbone takes no packed batches, or cannot be compiled.
        ValueError: no batch could hold the longest input, or the patience is not positive.
    """

    def __init__(
        self,
        model: PromptModel,
        tokenizer: Any = None,
        *,
        budget: int = BUDGET,
        limits: Limits | None = None,
        max_length: int | None = None,
        patience: float = 60.0,
        compile: bool = False,
    ) -> None:
        if not patience > 0:
            raise ValueError(f"patience: expected a positive number of seconds, got {patience}")
        if not packable(model.backbone):
            raise NotImplementedError(
                f"model: {model.backbone.config.model_type} takes no packed batches, expected a "
                "backbone that does"
            )
        self._readers = Readers(model, tokenizer, max_length)
        longest = self._readers.length_beside(0)
        limits = (limits or Limits()).suited(model.backbone.device, longest)
        self.draining = False
        self.model = model.eval()
        self.bank = Bank(model, self._require_fit, lambda: self.batcher.wake())
        self._tokenizing = threading.Lock()  # a tokenizer keeps the limits of its last call
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ptv2-texts")
        self._patience = patience
        self._engine = Engine(model, budget, compile=compile)
        if compile:
            reader = self._readers.reader(PromptConfig("feature-extraction"))
            features = reader.prepare_inputs(["a", "a a"])
            self._engine.warm_up([x for own in features for x in reader.sequences(own)])
        self.batcher = Batcher(
            self._engine.run,
            replace(limits, bytes=budget),
            nbytes=self._engine.pool.nbytes,
            between=self._forget,
        )

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome."""
        return self.batcher.alive and not self.draining

    @property
    def memory(self) -> Memory:
        """The bytes that prompts and heads have on the device."""
        pool = self._engine.pool
        return Memory(pool.used, pool.budget)

    def on_device(self, task: Served) -> bool:
        """Whether a task's prompt is there right now."""
        return task in self._engine.pool

    def reader(self, task: Served, **options: Any) -> Task:
        """How a task reads inputs and writes answers; options are fields of its kind's class.

        Raises:
            ValueError: an option is none of its kind, or out of its range.
        """
        return self._readers.reader(task.config, **options)

    def reserved(self, task: Served, inputs: Sequence[Any]) -> AbstractContextManager[None]:
        """Keep places for inputs while `admit` reads them.

        Raises:
            OverloadedError: too much is waiting.
            UnavailableError: nothing is answered any more.
            ValueError: there is no input, or more than `MAX_INPUTS`.
        """
        if not 0 < len(inputs) <= MAX_INPUTS:
            raise ValueError(f"inputs: expected 1 to {MAX_INPUTS}, got {len(inputs)}")
        return self.batcher.reserved(len(inputs), task.name)

    def admit(
        self,
        task: Served,
        inputs: Sequence[Any],
        options: Mapping[str, Any] | None = None,
        cut: bool = True,
    ) -> "Admitted":
        """Read inputs and queue them, under `reserved`.

        Args:
            task: as the bank lends it, until the answer is there.
            inputs: as `Task.prepare_inputs` of the kind of task takes them.
            options: fields of the class of the kind of task.
            cut: whether a text that is too long is cut. If not, one that takes as many tokens as
                there are at most is refused.

        Raises:
            ValueError: an input or an option is none that the task takes.
            OverloadedError: too much is waiting.
            UnavailableError: nothing is answered any more.
        """
        deadline = time.monotonic() + self._patience
        reader = self.reader(task, **options or {})
        if isinstance(reader, QuestionAnswering):
            reader = replace(reader, max_windows=MAX_WINDOWS)
        self._require_texts(inputs, reader)
        if isinstance(reader, TokenClassification):
            _require_few_words(inputs, MAX_WINDOWS * (reader.max_length or 1))
        with self._tokenizing:
            features = reader.prepare_inputs(inputs)
        if len(features) > MAX_WINDOWS:
            raise ValueError(
                f"inputs: expected texts of at most {MAX_WINDOWS} windows, got {len(features)}"
            )
        sequences = [x for feature in features for x in reader.sequences(feature)]
        longest = max(len(x["input_ids"]) for x in sequences)
        if not cut and longest == reader.max_length:
            raise ValueError(f"inputs: expected texts of fewer than {longest} tokens")
        job = Job(task, sequences, deadline)
        self.batcher.submit(job, kept=len(inputs))
        return Admitted(reader, features, job)

    def answer(
        self, name: str, inputs: Sequence[Any], options: Mapping[str, Any] | None = None
    ) -> list[Outcome]:
        """Answer inputs of a task by its name.

        Raises:
            ArithmeticError: as `Admitted.outcomes` does.
            DeadlineError: they waited for too long.
            OverloadedError, UnavailableError, ValueError: as `reserved` and `admit` do.
            UnknownTaskError: it is not served.
        """
        with self.bank.lease(name) as task:
            with self.reserved(task, inputs):
                admitted = self.admit(task, inputs, options)
            try:
                return admitted.outcomes(admitted.job.future.result())
            finally:
                admitted.job.future.cancel()

    async def off_loop(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in one of the few threads that are there for `admit` and the like."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, function, *arguments)

    def close(self, timeout: float | None = None) -> bool:
        """Answer what waits, take no more, and end the thread; whether it has ended in time."""
        return self.batcher.close(timeout)

    def _require_fit(self, task: Served) -> None:
        needed, budget = self._engine.pool.nbytes(task), self._engine.pool.budget
        if needed > budget:
            raise ValueError(
                f"budget: expected at least {needed} bytes for {task.name!r}, got {budget}"
            )

    def _forget(self) -> None:
        for task in self.bank.retired():
            self._engine.pool.drop(task)

    def _require_texts(self, inputs: Sequence[Any], reader: Task) -> None:
        """Raise a ValueError for texts that are too long to be read or that no tokenizer takes."""
        assert reader.max_length is not None
        most = _CHARACTERS_PER_TOKEN * reader.max_length
        _require_choices(inputs)
        for text in _texts_in(inputs):
            if len(text) > most:
                raise ValueError(
                    f"inputs: expected at most {most} characters in a text, got {len(text)}"
                )
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"inputs: expected text that UTF-8 has: {error.reason}") from None


@dataclass(frozen=True)
class Admitted:
    """A request that is queued."""

    reader: Task
    features: list[Feature]
    job: Job

    def outcomes(self, logits: Sequence[Tensor]) -> list[Outcome]:
        """An outcome for each input, from the logits of all sequences.

        Raises:
            ArithmeticError: a number of them is not finite.
        """
        if not all(bool(own.isfinite().all()) for own in logits):
            raise ArithmeticError(f"the logits of {self.job.task.name!r} are not finite")
        found, start = [], 0
        for features in by_example(self.features):
            lengths = [length for feature in features for length in self.reader.lengths(feature)]
            end = start + len(lengths)
            own = list(logits[start:end])
            answer = self.reader.decode(own, features)
            found.append(Outcome(answer, own, features, sum(lengths)))
            start = end
        return found


def _require_choices(inputs: Sequence[Any]) -> None:
    """Raise a ValueError for too many choices, or for questions too long for so many."""
    rows = [row for row in inputs if isinstance(row, list | tuple) and len(row) == 2]
    pairs = [(a, b) for a, b in rows if isinstance(a, str) and isinstance(b, list | tuple)]
    choices = sum(len(own) for _, own in pairs)
    repeated = sum(len(question) * len(own) for question, own in pairs)
    if choices > MAX_CHOICES or repeated > MAX_REPEATED:
        raise ValueError(
            f"inputs: expected at most {MAX_CHOICES} choices and {MAX_REPEATED} characters of "
            f"questions, each counted for every choice, got {choices} and {repeated}"
        )


def _require_few_words(inputs: Sequence[Any], most: int) -> None:
    """Raise a ValueError for texts of more words than so many, which are counted before they are
    tokenised."""
    texts = (x.split() if isinstance(x, str) else x for x in inputs)
    words = sum(len(own) for own in texts if isinstance(own, list | tuple))
    if words > most:
        raise ValueError(f"inputs: expected at most {most} words, got {words}")


def _texts_in(value: Any) -> list[str]:
    """All texts in lists of texts, of pairs and of lists."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return [text for part in value for text in _texts_in(part)]
    return []

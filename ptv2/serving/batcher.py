"""A thread that answers what is waiting, in batches of as much as fits.

It never waits for more: a batch is what is there when the one before is done, within a budget of
tokens, one of prompt rows and tokens together, and the memory for prompts (the policy of
text-embeddings-inference, with a queue a task).
"""

import logging
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..tasks.task import Feature
from .jobs import SHARE, DeadlineError, Done, Job, Limits, OverloadedError, UnavailableError
from .served import Served

logger = logging.getLogger(__name__)

Run = Callable[[Sequence[Served], Sequence[Feature]], list[Tensor]]


_Place = tuple[Job, int]
_LONGEST_WAIT = 60.0
"""Seconds that a client is told to stay away at most."""
_TRIES = 5
"""How often a sequence alone is run that the device has no memory for."""


@dataclass
class _Load:
    """What a batch takes."""

    tokens: int = 0
    rows: int = 0
    bytes: int = 0
    tasks: set[Served] = field(default_factory=set)


class Batcher:
    """The thread, and the queues before it.

    Args:
        run: answers a batch.
        nbytes: what a task takes of `Limits.bytes`.
        between: called in the thread after every batch, and when it is woken.
    """

    def __init__(
        self,
        run: Run,
        limits: Limits,
        nbytes: Callable[[Served], int] = lambda task: 0,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self._run = run
        self._limits = limits
        self._most_tokens = limits.tokens or sys.maxsize
        self._nbytes = nbytes
        self._between = between
        self._changed = threading.Condition()
        self._queues: OrderedDict[str, deque[_Place]] = OrderedDict()  # the next task first
        self._waiting = self._waiting_tokens = self._reserved = 0
        self._tokens_per_second = 0.0
        self.done = Done()
        self._closed = self._woken = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, name="ptv2-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are answered."""
        return self._error is None and self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Sequences that no batch has taken yet."""
        return self._waiting

    def overload(self) -> OverloadedError | None:
        """What every request gets while there is no place at all; None while there is one."""
        full = self._waiting + self._reserved >= self._limits.waiting
        return OverloadedError(self._retry_after()) if full else None

    def submit(self, job: Job, kept: int = 0) -> None:
        """Queue a job's sequences.

        Args:
            kept: how many places `reserved` keeps for them.

        Raises:
            OverloadedError: too many are waiting.
            UnavailableError: the thread is stopping, or dead.
            ValueError: there is no sequence, one that no batch could hold, or more than can wait.
        """
        if not job.inputs or max(job.lengths) > self._most_tokens:
            raise ValueError(
                f"inputs: expected sequences of at most {self._most_tokens} tokens, got "
                f"{job.lengths}"
            )
        self._require_possible(len(job.inputs))
        with self._changed:
            self._require_room(max(0, len(job.inputs) - kept), job.task.name)
            queue = self._queues.setdefault(job.task.name, deque())
            queue.extend((job, place) for place in range(len(job.inputs)))
            self._waiting += len(job.inputs)
            self._waiting_tokens += sum(job.lengths)
            self._changed.notify()

    def wake(self) -> None:
        """Have the thread call `between` soon, also if nothing waits."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    @contextmanager
    def reserved(self, sequences: int, name: str) -> Iterator[None]:
        """Keep places for sequences of a task until they are made and submitted.

        Raises:
            OverloadedError: too many are waiting, or being made.
            UnavailableError: the thread is stopping, or dead.
            ValueError: so many can never wait.
        """
        self._require_possible(sequences)
        with self._changed:
            self._require_room(sequences, name)
            self._reserved += sequences
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= sequences

    def _require_possible(self, sequences: int) -> None:
        if sequences > self._limits.waiting:
            raise ValueError(
                f"inputs: expected at most {self._limits.waiting} sequences, got {sequences}"
            )

    def _require_room(self, sequences: int, name: str) -> None:
        if self._error is not None:
            raise UnavailableError("the engine is dead")
        if self._closed:
            raise UnavailableError("the engine is stopping")
        free = self._limits.waiting - self._waiting - self._reserved
        own = len(self._queues.get(name, ()))
        if sequences and (sequences > free or own + sequences > SHARE * free):
            raise OverloadedError(self._retry_after())

    def _retry_after(self) -> float:
        speed = self._tokens_per_second
        wait = self._waiting_tokens / speed if speed else 1.0
        return min(wait, _LONGEST_WAIT)

    def close(self, timeout: float | None = None) -> bool:
        """Take no more jobs, answer those that wait, and end the thread.

        Returns:
            Whether it has ended within the timeout in seconds.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        batch: list[_Place] | None = []
        try:
            while (batch := self._take()) is not None:
                if batch:
                    begun = time.monotonic()
                    self._answer(batch)
                    self._measure(batch, time.monotonic() - begun)
                self._between()
        except BaseException as error:
            self._die(error, batch or [])

    def _take(self) -> list[_Place] | None:
        """The next batch, one sequence of a task after the other; an empty one for a thread that
        was woken, None at the end."""
        with self._changed:
            while True:
                self._drop_ended()
                batch, woken, self._woken = self._fill(), self._woken, False
                if batch or woken:
                    return batch
                if self._closed and not self._queues:
                    return None
                if not self._queues:
                    self._changed.wait()

    def _fill(self) -> list[_Place]:
        """What fits into a batch."""
        batch: list[_Place] = []
        load = _Load()
        while self._queues:
            name, queue = next(iter(self._queues.items()))
            job, place = queue[0]
            length, new = job.lengths[place], job.task not in load.tasks
            more = self._nbytes(job.task) if new else 0
            if batch and not self._fits(load, length, job.task, more):
                break
            load.tokens += length
            load.rows += length + job.task.prompt_length
            load.bytes += more
            load.tasks.add(job.task)
            batch.append(self._pop(name))
        return batch

    def _fits(self, load: "_Load", length: int, task: Served, more: int) -> bool:
        limits = self._limits
        return (
            load.tokens + length <= self._most_tokens
            and load.rows + length + task.prompt_length <= limits.rows
            and load.bytes + more <= limits.bytes
        )

    def _pop(self, name: str) -> _Place:
        """Take a task's first sequence, and put the task behind the others."""
        queue = self._queues.pop(name)
        job, place = queue.popleft()
        self._waiting -= 1
        self._waiting_tokens -= job.lengths[place]
        if queue:
            self._queues[name] = queue
        return job, place

    def _drop_ended(self) -> None:
        """Take out the sequences of jobs that were cancelled, have failed or are too late."""
        now = time.monotonic()
        for name, queue in list(self._queues.items()):
            kept: deque[_Place] = deque()
            for job, place in queue:
                if job.deadline < now:
                    job.fail(DeadlineError("the deadline is over"))
                if job.ended():
                    self._waiting -= 1
                    self._waiting_tokens -= job.lengths[place]
                else:
                    kept.append((job, place))
            if kept:
                self._queues[name] = kept
            else:
                del self._queues[name]

    def _answer(self, batch: list[_Place], tries: int = _TRIES) -> None:
        """Run a batch; if that fails, its halves, so that one sequence spoils no other."""
        tasks = [job.task for job, _ in batch]
        try:
            found = self._run(tasks, [job.inputs[place] for job, place in batch])
        except Exception as error:
            if isinstance(error, torch.AcceleratorError):
                raise  # the device is of no use any more
            middle = len(batch) // 2
            if middle:
                self._answer(batch[:middle])
                self._answer(batch[middle:])
            elif isinstance(error, torch.OutOfMemoryError) and tries > 1:
                self._answer(batch, tries - 1)
            else:
                logger.error("a sequence of %r failed", tasks[0].name, exc_info=error)
                batch[0][0].fail(error)
            return
        for (job, place), logits in zip(batch, found, strict=True):
            job.give(place, logits)

    def _measure(self, batch: list[_Place], seconds: float) -> None:
        tokens, done = sum(job.lengths[place] for job, place in batch), self.done
        self.done = Done(
            done.batches + 1,
            done.sequences + len(batch),
            done.tokens + tokens,
            done.seconds + seconds,
        )
        speed = tokens / max(seconds, 1e-9)
        old = self._tokens_per_second or speed
        self._tokens_per_second = 0.9 * old + 0.1 * speed

    def _die(self, error: BaseException, batch: list[_Place]) -> None:
        logger.critical("the engine is dead", exc_info=error)
        with self._changed:
            self._error = error
            queued = (place for queue in self._queues.values() for place in queue)
            jobs = {job: None for job, _ in (*batch, *queued)}
            self._queues.clear()
            self._waiting = self._waiting_tokens = 0
        for job in jobs:
            job.fail(UnavailableError("the engine is dead"))

"""A thread that answers what is waiting, in batches of as much as fits.

It never waits for more: a batch is what is there when the one before is done, within a budget of
tokens, one of prompt rows and tokens together, and the memory for prompts (the policy of
text-embeddings-inference, with a queue a task).
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..tasks.task import Feature
from .served import Served

logger = logging.getLogger(__name__)

Run = Callable[[Sequence[Served], Sequence[Feature]], list[Tensor]]


class OverloadedError(RuntimeError):
    """Too much is waiting.

    Args:
        retry_after: seconds until what is waiting now will be done.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"too much is waiting; try again in {retry_after:.1f} s")
        self.retry_after = retry_after


class UnavailableError(RuntimeError):
    """The thread is stopping, or dead."""


class DeadlineError(RuntimeError):
    """A request waited for longer than it wanted to."""


@dataclass(eq=False)
class Job:
    """The sequences of one request; who cancels its future ends it, whatever of it has run.

    Args:
        task: in the version that all of them are answered with.
        inputs: of each sequence, as the tokenizer gives them.
        deadline: in seconds of `time.monotonic`; a sequence that is not begun by then is dropped.
    """

    task: Served
    inputs: Sequence[Feature]
    deadline: float = float("inf")
    future: "Future[list[Tensor]]" = field(default_factory=Future, init=False)

    def __post_init__(self) -> None:
        self.lengths = [len(x["input_ids"]) for x in self.inputs]
        self._found: dict[int, Tensor] = {}
        self._told = False

    def give(self, place: int, logits: Tensor) -> None:
        """The logits of a sequence; with the last of them the future is done."""
        self._found[place] = logits
        if not self.ended() and len(self._found) == len(self.inputs):
            with suppress(InvalidStateError):  # it may be cancelled right now
                self.future.set_result([self._found[i] for i in range(len(self.inputs))])

    def ended(self) -> bool:
        """Whether the future is done; who waits for a cancelled one with others hears of it."""
        if self.future.cancelled() and not self._told:
            self._told = True
            self.future.set_running_or_notify_cancel()
        return self.future.done()

    def fail(self, error: BaseException) -> None:
        """End the job with an error, if it has not ended."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True)
class Limits:
    """How much is taken at once, and how much may wait.

    Args:
        tokens: of a batch; also the longest sequence that is taken.
        rows: of a batch's prompts and tokens together, counted for each sequence.
        bytes: of the prompts and heads of a batch.
        waiting: sequences that wait at most. A task has at most `_SHARE` times as many of the
            places as are free, so that there is always room for the others.
    """

    tokens: int = 16384
    rows: int = 65536
    bytes: int = 2**62
    waiting: int = 4096


@dataclass(frozen=True)
class Done:
    """What has been run so far."""

    batches: int = 0
    sequences: int = 0
    tokens: int = 0
    seconds: float = 0.0


_Place = tuple[Job, int]
_LONGEST_WAIT = 60.0
"""Seconds that a client is told to stay away at most."""
_SHARE = 4
"""Of the places that are free: dynamic thresholds, as Choudhury and Hahne (1998) have them."""
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
        between: called in the thread after every batch.
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
        self._nbytes = nbytes
        self._between = between
        self._changed = threading.Condition()
        self._queues: OrderedDict[str, deque[_Place]] = OrderedDict()  # the next task first
        self._waiting = self._waiting_tokens = self._reserved = 0
        self._tokens_per_second = 0.0
        self.done = Done()
        self._closed = False
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
            ValueError: there is no sequence, or one that no batch could hold.
        """
        if not job.inputs or max(job.lengths) > self._limits.tokens:
            raise ValueError(
                f"inputs: expected sequences of at most {self._limits.tokens} tokens, got "
                f"{job.lengths}"
            )
        if len(job.inputs) > self._limits.waiting:
            raise ValueError(
                f"inputs: expected at most {self._limits.waiting} sequences, got {len(job.inputs)}"
            )
        with self._changed:
            self._require_room(max(0, len(job.inputs) - kept), job.task.name)
            queue = self._queues.setdefault(job.task.name, deque())
            queue.extend((job, place) for place in range(len(job.inputs)))
            self._waiting += len(job.inputs)
            self._waiting_tokens += sum(job.lengths)
            self._changed.notify()

    @contextmanager
    def reserved(self, sequences: int, name: str) -> Iterator[None]:
        """Keep places for sequences of a task until they are made and submitted.

        Raises:
            OverloadedError: too many are waiting, or being made.
            UnavailableError: the thread is stopping, or dead.
        """
        with self._changed:
            self._require_room(sequences, name)
            self._reserved += sequences
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= sequences

    def _require_room(self, sequences: int, name: str) -> None:
        if self._error is not None:
            raise UnavailableError("the engine is dead")
        if self._closed:
            raise UnavailableError("the engine is stopping")
        free = self._limits.waiting - self._waiting - self._reserved
        own = len(self._queues.get(name, ()))
        if sequences and (sequences > free or own + sequences > _SHARE * free):
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
                begun = time.monotonic()
                self._answer(batch)
                self._measure(batch, time.monotonic() - begun)
                self._between()
        except BaseException as error:
            self._die(error, batch or [])

    def _take(self) -> list[_Place] | None:
        """The next batch, one sequence of a task after the other; None at the end."""
        with self._changed:
            while True:
                self._drop_ended()
                if batch := self._fill():
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
            load.tokens + length <= limits.tokens
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

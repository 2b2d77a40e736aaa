"""Requests that arrive at their times, whoever is done, and how long they wait for answers.

Imports nothing beyond Python, so that systems of any environment are measured by the same code.
"""

import itertools
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

Logits = list[float]
CHECK_SECONDS = 0.05
"""How often it is counted how many requests are late."""


class Request(NamedTuple):
    """A text for a task.

    Args:
        task: its number.
        ids: of the tokens.
    """

    task: int
    ids: list[int]


class System(Protocol):
    """Something that answers requests in a thread of its own."""

    def submit(self, request: Request, done: Callable[[], None]) -> None:
        """Queue a request; `done` is called when its logits are in host memory."""

    def drop(self) -> None:
        """Forget what waits, and return when nothing runs."""


def draw_requests(
    texts: Sequence[list[int]], tasks: int, exponent: float, seed: int
) -> Iterator[tuple[float, Request]]:
    """Endless requests of a Poisson process of rate 1, each with the time of its arrival.

    Args:
        texts: one is drawn for every request.
        exponent: of Zipf's law over the tasks.
    """
    draw = random.Random(seed)
    ranks = list(itertools.accumulate((1 + task) ** -exponent for task in range(tasks)))
    moment = 0.0
    while True:
        moment += draw.expovariate(1)
        (task,) = draw.choices(range(tasks), cum_weights=ranks)
        yield moment, Request(task, draw.choice(texts))


def measure(
    system: System, requests: Sequence[Request], moments: Sequence[float], bound: float
) -> dict[str, Any]:
    """Latencies in seconds, from the moments at which requests are due to their answers.

    Stops as soon as the 99th percentile must exceed the bound, and has none then.

    Args:
        moments: seconds from the start.
        bound: of the 99th percentile, in seconds.
    """
    found: list[float] = [math.inf] * len(requests)
    lateness = _Lateness(moments, found, bound)
    begin = time.perf_counter()

    def answered(place: int) -> None:
        found[place] = time.perf_counter() - begin - moments[place]

    for place, (request, moment) in enumerate(zip(requests, moments, strict=True)):
        while (pause := begin + moment - time.perf_counter()) > 0:
            time.sleep(min(pause, CHECK_SECONDS))
        if lateness.too_many(time.perf_counter() - begin):
            break
        system.submit(request, partial(answered, place))
    while math.inf in found and not lateness.too_many(time.perf_counter() - begin):
        time.sleep(0.002)
    system.drop()
    return _summary(found, time.perf_counter() - begin, bound)


class _Lateness:
    """Counts the requests that are late, now and then."""

    def __init__(self, moments: Sequence[float], found: Sequence[float], bound: float) -> None:
        self._moments, self._found, self._bound = moments, found, bound
        self._allowed = len(moments) - _rank(0.99, len(moments)) - 1
        self._next = 0.0

    def too_many(self, now: float) -> bool:
        """Whether more requests are late than the 99th percentile allows."""
        if now < self._next:
            return False
        self._next = now + CHECK_SECONDS
        late = sum(
            min(latency, now - moment) > self._bound
            for moment, latency in zip(self._moments, self._found, strict=True)
        )
        return late > self._allowed


def _rank(share: float, count: int) -> int:
    """The place of a percentile among so many sorted values."""
    return max(math.ceil(share * count) - 1, 0)


def _summary(found: list[float], seconds: float, bound: float) -> dict[str, Any]:
    ordered = sorted(found)
    percentiles = {f"p{n}": ordered[_rank(n / 100, len(found))] for n in (50, 95, 99)}
    held = percentiles["p99"] <= bound
    answered = sum(latency < math.inf for latency in found)
    return {
        "requests": len(found),
        "answered": answered,
        "seconds": seconds,
        "held": held,
        **{name: value if held else None for name, value in percentiles.items()},
    }


class Worker:
    """A thread that takes everything that waits, up to a number of tokens, and has it run.

    Args:
        run: answers a batch: yields places in it with their logits as soon as they are there.
        tokens: of a batch at most.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Request]], Iterator[tuple[list[int], list[Logits]]]],
        tokens: int,
    ) -> None:
        self._run = run
        self._tokens = tokens
        self._waiting: deque[tuple[Request, Callable[[], None]]] = deque()
        self._changed = threading.Condition()
        self._busy = False
        threading.Thread(target=self._loop, daemon=True).start()

    def submit(self, request: Request, done: Callable[[], None]) -> None:
        """As `System` has it."""
        with self._changed:
            self._waiting.append((request, done))
            self._changed.notify_all()

    def drop(self) -> None:
        """As `System` has it."""
        with self._changed:
            self._waiting.clear()
            self._changed.wait_for(lambda: not self._busy)

    def _loop(self) -> None:
        while True:
            batch = self._take()
            for places, _ in self._run([request for request, _ in batch]):
                for place in places:
                    batch[place][1]()
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _take(self) -> list[tuple[Request, Callable[[], None]]]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            self._busy = True
            batch, tokens = [], 0
            while self._waiting:
                tokens += len(self._waiting[0][0].ids)
                if batch and tokens > self._tokens:
                    break
                batch.append(self._waiting.popleft())
            return batch


def by_task(requests: Sequence[Request]) -> dict[int, list[int]]:
    """The places of each task's requests, the task of the oldest request first."""
    found: dict[int, list[int]] = {}
    for place, request in enumerate(requests):
        found.setdefault(request.task, []).append(place)
    return found


def all_answers(
    run: Callable[[Sequence[Request]], Iterator[tuple[list[int], list[Logits]]]],
    requests: Sequence[Request],
) -> list[Logits]:
    """The logits of requests that are run as one batch, in their order."""
    found = dict(pair for part in run(requests) for pair in zip(*part, strict=True))
    return [found[place] for place in range(len(requests))]

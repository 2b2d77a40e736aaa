"""What Prometheus collects, and a line in the log for every request."""

import logging
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .batcher import Batcher
from .service import Service

logger = logging.getLogger(__name__)

TASK = "ptv2_task"
"""The key under which an answered request's scope has the task's name."""


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "ptv2_requests", "Requests by route and status.", ["route", "status"],
            registry=self.registry,
        )  # fmt: skip
        self._answers = Counter(
            "ptv2_task_requests", "Requests that were answered, by task.", ["task"],
            registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "ptv2_request_seconds", "From a request's head to its answer.", ["route"],
            registry=self.registry,
        )  # fmt: skip
        batcher, bank = service.batcher, service.bank
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "waiting_sequences": ("Sequences that no batch has yet.", lambda: batcher.waiting),
            "tasks": ("Tasks that are served.", lambda: len(bank.tasks())),
            "prompt_bytes": ("Prompts and heads on the device.", lambda: service.memory.used),
            "ready": ("1 while new requests are welcome.", lambda: service.ready),
            "alive": ("1 while requests are answered.", lambda: batcher.alive),
        }
        for name, (text, value) in gauges.items():
            Gauge(f"ptv2_{name}", text, registry=self.registry).set_function(value)
        self.registry.register(_Batches(batcher))

    def observe(self, route: str, status: int, seconds: float, task: str | None) -> None:
        """Count a request, and log it.

        Args:
            task: that answered it, if one did.
        """
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        fields = {"route": route, "status": status, "seconds": round(seconds, 6)}
        if task is not None:
            self._answers.labels(task).inc()
            fields["task"] = task
        logger.info("request", extra=fields)


class _Batches(Collector):
    """What the batcher has done so far."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    def collect(self) -> Iterator[CounterMetricFamily]:
        done = self._batcher.done
        yield CounterMetricFamily("ptv2_batches", "Batches that were run.", done.batches)
        yield CounterMetricFamily("ptv2_batch_sequences", "Sequences in them.", done.sequences)
        yield CounterMetricFamily("ptv2_batch_tokens", "Tokens in them.", done.tokens)
        yield CounterMetricFamily("ptv2_batch_seconds", "Time that they took.", done.seconds)


class Measured:
    """ASGI middleware that counts requests and their time."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun, status = time.monotonic(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            # what matched no route is one route, so that the names cannot pile up
            route = getattr(scope.get("route"), "path", "none")
            seconds = time.monotonic() - begun
            answered = scope.get(TASK) if status < 400 else None
            self._metrics.observe(route, status, seconds, answered)

"""What Prometheus collects."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .service import Service


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "ptv2_requests", "Requests by route and status.", ["route", "status"],
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
            "alive": ("1 while requests are answered.", lambda: batcher.alive),
        }
        for name, (text, value) in gauges.items():
            Gauge(f"ptv2_{name}", text, registry=self.registry).set_function(value)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


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
            self._metrics.observe(route, status, time.monotonic() - begun)

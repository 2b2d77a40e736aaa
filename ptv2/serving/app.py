"""The HTTP application: dialects, health, metrics and, with a key of its own, administration."""

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool

from ..config import check_task_name
from ..version import __version__
from . import page
from .dialects import embeddings_inference, hugging_face, open_inference, openai
from .http import (
    BodyLimit,
    EngineError,
    LoadShedding,
    UnauthorizedError,
    error_response,
    require_key,
)
from .metrics import Measured, Metrics
from .service import Service

_KEY = re.compile(r"[!-~]+")

logger = logging.getLogger(__name__)


def create_app(
    service: Service,
    *,
    prompts: Path | None = None,
    key: str | None = None,
    admin_key: str | None = None,
) -> FastAPI:
    """Make the application.

    Args:
        prompts: the folder of saved prompts that administration may load, by their names.
        key: what clients have to show. None: nothing.
        admin_key: what loads and unloads tasks. None: nobody can.

    Raises:
        ValueError: a key is none that a client could show.
    """
    for argument, value in (("key", key), ("admin_key", admin_key)):
        if value is not None and not _KEY.fullmatch(value):
            raise ValueError(
                f"{argument}: expected printable ASCII characters without a space, or None"
            )
    metrics = Metrics(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(title="ptv2", version=__version__, lifespan=lifespan)

    async def authorized(request: Request) -> None:
        require_key(request, key)

    for dialect in (hugging_face, embeddings_inference, openai, open_inference):
        app.include_router(dialect.router(service), dependencies=[Depends(authorized)])
    app.include_router(page.router())
    _add_health(app, service, metrics, [Depends(authorized)])
    if admin_key is not None and prompts is not None:
        _add_administration(app, service, prompts, admin_key)
    for kind in (ValueError, KeyError, RuntimeError, OSError, EngineError, UnauthorizedError):
        app.add_exception_handler(kind, _report)
    app.add_middleware(BodyLimit)
    app.add_middleware(LoadShedding, service=service)
    app.add_middleware(Measured, metrics=metrics)
    return app


async def _report(request: Request, error: Exception) -> JSONResponse:
    response = error_response(error)
    if response.status_code == 500 and not isinstance(error, EngineError):  # logged where it ran
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return response


def _add_health(app: FastAPI, service: Service, metrics: Metrics, guarded: list[Any]) -> None:
    app.include_router(open_inference.health(service))

    @app.head("/health", include_in_schema=False)
    @app.get("/health", tags=["health"])
    async def health() -> Any:
        """200 while new requests are welcome, else 503."""
        if service.ready:
            return {"status": "ok"}
        state = "stopping" if service.batcher.alive else "not running"
        return JSONResponse({"error": f"the engine is {state}"}, 503)

    @app.get("/info", tags=["health"], dependencies=guarded)
    async def info() -> Any:
        """The backbone, the memory for prompts, and every task with its version and its place."""
        backbone = service.model.identity.describe()
        found = {
            "version": __version__,
            "backbone": {name: backbone[name] for name in ("name_or_path", "model_type")},
            "waiting": service.batcher.waiting,
            "memory": service.memory._asdict(),
            "tasks": {
                name: {
                    "task": x.config.task,
                    "labels": len(x.config.labels),
                    "version": x.version,
                    "sha256": x.sha256,
                    "on_device": service.on_device(x),
                }
                for name, x in sorted(service.bank.tasks().items())
            },
        }
        return JSONResponse(found)  # as it is: FastAPI would walk through thousands of tasks

    @app.get("/metrics", tags=["health"])
    async def prometheus() -> Response:
        """What Prometheus collects."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_administration(app: FastAPI, service: Service, prompts: Path, admin_key: str) -> None:
    async def authorized(request: Request) -> None:
        require_key(request, admin_key)

    guarded = [Depends(authorized)]
    app.include_router(open_inference.administration(service, prompts), dependencies=guarded)

    @app.put("/admin/tasks/{name}", tags=["administration"], dependencies=guarded)
    async def load(name: str) -> Any:
        """Load a saved prompt by its name, or its next version."""
        check_task_name(name)
        served = await service.off_loop(service.bank.load, prompts / name, name)
        return {"name": served.name, "version": served.version, "sha256": served.sha256}

    @app.delete("/admin/tasks/{name}", tags=["administration"], dependencies=guarded)
    async def unload(name: str) -> Any:
        """Admit no more requests for a task."""
        service.bank.unload(name)
        return {"name": name}

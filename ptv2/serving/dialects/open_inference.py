"""The Open Inference Protocol v2, as KServe and Triton speak it, with binary tensor data: /v2."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from ...config import check_task_name
from ...model import UnknownTaskError
from ...version import __version__
from ..http import Body, UpToFirstFault, answer, body_schema, parse, read_bytes
from ..jobs import UnavailableError
from ..served import Served
from ..service import Service
from .signatures import SIGNATURES
from .tensors import (
    LENGTH_HEADER,
    InputTensor,
    RequestedOutput,
    read_texts,
    response,
    split_body,
)

_MODEL = "/v2/models/{task}"
_VERSION = "/v2/models/{task}/versions/{version}"


class InferParameters(Body):
    """Whether outputs are binary data where they do not say it themselves."""

    binary_data_output: bool = False


class Infer(Body):
    """Tensors for a model; without `outputs` all of them are wanted."""

    id: str | None = None
    parameters: InferParameters = InferParameters()
    inputs: Annotated[list[InputTensor], UpToFirstFault(), Field(max_length=8)]
    outputs: Annotated[list[RequestedOutput], UpToFirstFault(), Field(max_length=8)] | None = None


class Index(Body):
    """Which models are listed."""

    ready: bool = False


class Load(Body):
    """Nothing that could be chosen."""

    parameters: Body = Body()


class UnloadParameters(Body):
    """Models have no dependents."""

    unload_dependents: bool = False


class Unload(Body):
    """Nothing that makes a difference."""

    parameters: UnloadParameters = UnloadParameters()


def health(service: Service) -> APIRouter:
    """The routes that need no key."""
    routes = APIRouter(tags=["Open Inference Protocol"])

    @routes.get("/v2/health/live")
    async def live() -> Any:
        """200 while requests are answered; 503 if only another start can help."""
        if not service.batcher.alive:
            raise UnavailableError("the engine is not running")
        return {"live": True}

    @routes.get("/v2/health/ready")
    async def ready() -> Any:
        """200 while new requests are welcome, else 503."""
        _require_ready(service)
        return {"ready": True}

    return routes


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["Open Inference Protocol"])

    @routes.get("/v2")
    async def server() -> Any:
        """The server."""
        extensions = ["binary_tensor_data", "model_configuration", "model_repository"]
        return {"name": "ptv2", "version": __version__, "extensions": extensions}

    @routes.post("/v2/repository/index")
    async def index(request: Request) -> Any:
        """All tasks."""
        asked = parse(await read_bytes(request) or b"{}", Index)
        ready = service.ready
        return [
            {
                "name": name,
                "version": str(task.version),
                "state": "READY" if ready else "UNAVAILABLE",
                "reason": "" if ready else "the engine takes no requests",
            }
            for name, task in sorted(service.bank.tasks().items())
            if ready or not asked.ready
        ]

    @routes.get(_MODEL)
    @routes.get(_VERSION, include_in_schema=False)
    async def metadata(task: str, request: Request) -> Any:
        """The tensors of a task; -1 is what requests decide."""
        with _lease(service, task, request) as served:
            signature = SIGNATURES[served.config.task]
            return {
                "name": task,
                "versions": [str(served.version)],
                "platform": "ptv2",
                "inputs": [x.metadata() for x in signature.inputs],
                "outputs": [x.metadata() for x in signature.sized_outputs(service, served)],
                "parameters": _parameters(served),
            }

    @routes.get(f"{_MODEL}/config")
    @routes.get(f"{_VERSION}/config", include_in_schema=False)
    async def config(task: str, request: Request) -> Any:
        """The same as Triton's model configuration has it."""
        with _lease(service, task, request) as served:
            signature = SIGNATURES[served.config.task]
            return {
                "name": task,
                "backend": "ptv2",
                "max_batch_size": 0,
                "input": [x.config() for x in signature.inputs],
                "output": [x.config() for x in signature.sized_outputs(service, served)],
                "parameters": {
                    name: {"string_value": value} for name, value in _parameters(served).items()
                },
            }

    @routes.get(f"{_MODEL}/ready")
    @routes.get(f"{_VERSION}/ready", include_in_schema=False)
    async def ready(task: str, request: Request) -> Any:
        """200 while a task is served and new requests are welcome."""
        with _lease(service, task, request):
            _require_ready(service)
        return {"name": task, "ready": True}

    @routes.post(f"{_MODEL}/infer", openapi_extra=body_schema(Infer))
    @routes.post(f"{_VERSION}/infer", include_in_schema=False)
    async def infer(task: str, request: Request) -> Response:
        """Answer the rows of tensors; binary data comes after the JSON."""
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise ValueError(f"Content-Encoding: expected none, got {encoding[:20]!r}")
        body = await read_bytes(request)
        text, binary = split_body(body, request.headers.get(LENGTH_HEADER))
        asked = parse(text, Infer)
        with _lease(service, task, request) as served:
            signature = SIGNATURES[served.config.task]
            wanted = signature.wanted(asked.outputs or [], asked.parameters.binary_data_output)
            rows = signature.rows(asked.inputs, read_texts(asked.inputs, binary))
            outcomes = await answer(service, request, served, rows)
            found = signature.arrays(service.reader(served), outcomes, rows)
        head = {"model_name": task, "model_version": str(served.version)}
        head |= {} if asked.id is None else {"id": asked.id}
        outputs = {name: found[name] for name in wanted}
        return response(head, outputs, {name for name in wanted if wanted[name]})

    return routes


def administration(service: Service, prompts: Path) -> APIRouter:
    """The routes that load and unload tasks.

    Args:
        prompts: the folder of saved prompts that may be loaded, by their names.
    """
    routes = APIRouter(tags=["administration"])

    @routes.post("/v2/repository/models/{name}/load")
    async def load(name: str, request: Request) -> Response:
        """Load a saved prompt by its name, or its next version."""
        parse(await read_bytes(request) or b"{}", Load)
        check_task_name(name)
        await service.off_loop(service.bank.load, prompts / name, name)
        return Response()

    @routes.post("/v2/repository/models/{name}/unload")
    async def unload(name: str, request: Request) -> Response:
        """Admit no more requests for a task."""
        parse(await read_bytes(request) or b"{}", Unload)
        service.bank.unload(name)
        return Response()

    return routes


@contextmanager
def _lease(service: Service, name: str, request: Request) -> Iterator[Served]:
    """A task, in the version that the path says, if it says one."""
    with service.bank.lease(name) as task:
        version = request.path_params.get("version", str(task.version))
        if version != str(task.version):
            raise UnknownTaskError(
                f"version: {version[:20]!r} of {name!r} is not served, expected {task.version}"
            )
        yield task


def _require_ready(service: Service) -> None:
    if not service.ready:
        raise UnavailableError("the engine takes no requests")


def _parameters(task: Served) -> dict[str, str]:
    """The kind of a task and its labels in their order, as JSON: parameters are no lists."""
    return {"task": task.config.task, "labels": json.dumps(task.config.labels)}

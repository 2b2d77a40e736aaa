"""What all dialects share: bodies, errors, keys, and answers that a client may not wait for."""

import asyncio
import hmac
import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, FailFast, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..model import UnknownTaskError
from .jobs import DeadlineError, OverloadedError, UnavailableError
from .metrics import TASK
from .served import Served
from .service import Outcome, Service

MAX_BODY = 2 * 2**20
"""Bytes of a request's body at most."""
BODY_SECONDS = 20.0
"""That a body may take to come in."""
_REPOSITORY = "/v2/repository/"
"""Below it nothing is answered by a batch."""
_MESSAGE = 500
"""Characters of a message at most: it may repeat what was sent."""

logger = logging.getLogger(__name__)

Parsed = TypeVar("Parsed", bound="Body")


class UpToFirstFault(FailFast):
    """Lists are read up to their first fault: errors are not collected from a whole body."""

    __hash__ = object.__hash__  # a part of a union has one


Texts = Annotated[list[str], UpToFirstFault()]


class Body(BaseModel):
    """A request's body; fields that it does not have are errors."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ClientGoneError(RuntimeError):
    """Nobody waits for the answer any more."""


class EngineError(RuntimeError):
    """A forward failed, which is not the client's fault."""


class SlowBodyError(RuntimeError):
    """A body that took more than `BODY_SECONDS`."""


class TooLargeError(ValueError):
    """A body of more than `MAX_BODY` bytes."""


class UnauthorizedError(RuntimeError):
    """The key is missing or wrong."""


_STATUS: dict[type[Exception], tuple[int, str]] = {
    UnknownTaskError: (404, "not_found"),
    OverloadedError: (429, "overloaded"),
    UnavailableError: (503, "unavailable"),
    DeadlineError: (504, "deadline"),
    ClientGoneError: (499, "client_gone"),
    SlowBodyError: (408, "slow_body"),
    TooLargeError: (413, "too_large"),
    UnauthorizedError: (401, "unauthorized"),
    ValueError: (422, "validation"),
    FileNotFoundError: (404, "not_found"),
}


def error_response(error: Exception) -> JSONResponse:
    """An error as a client sees it; what is not the client's fault says no more than that."""
    for kind, (status, name) in _STATUS.items():
        if isinstance(error, kind):
            headers = {}
            if isinstance(error, OverloadedError):
                headers["Retry-After"] = str(max(1, round(error.retry_after)))
            if isinstance(error, UnauthorizedError):
                headers["WWW-Authenticate"] = "Bearer"
            message = shorten(str(error), _MESSAGE)
            return JSONResponse({"error": message, "error_type": name}, status, headers=headers)
    return JSONResponse({"error": "the server failed", "error_type": "internal"}, 500)


async def read_body(request: Request, kind: type[Parsed]) -> Parsed:
    """Read a body and parse it; raises as `read_bytes` and `parse` do."""
    return parse(await read_bytes(request), kind)


async def read_bytes(request: Request) -> bytes:
    """Read a body.

    Raises:
        ClientGoneError: the client left before the end of it.
        SlowBodyError: it did not come in time.
    """
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.body()
    except TimeoutError:
        raise SlowBodyError(f"body: expected all of it within {BODY_SECONDS:g} s") from None
    except ClientDisconnect:
        raise ClientGoneError("the client is gone") from None


def parse(body: bytes, kind: type[Parsed]) -> Parsed:
    """Parse JSON, strictly: no NaN, no lone surrogates, no unknown field, no deep nesting.

    Raises:
        ValueError: it is not of the kind; the message does not repeat it.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise ValueError(f"{where}: {first['msg']}") from None


async def answer(
    service: Service,
    request: Request,
    task: Served,
    inputs: Sequence[Any],
    options: Mapping[str, Any] | None = None,
    cut: bool = True,
) -> list[Outcome]:
    """Answer inputs, unless the client leaves first.

    Args:
        task: as the bank lends it, until the answer is there.
        cut: as `Service.admit` has it.

    Raises:
        ClientGoneError: it has left.
        EngineError: the forward failed.
    """
    with service.reserved(task, inputs):
        admitted = await service.off_loop(service.admit, task, inputs, options, cut)
    answered = asyncio.wrap_future(admitted.job.future)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((answered, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            raise ClientGoneError("the client is gone")
        logits = answered.result()
    except (ClientGoneError, DeadlineError, UnavailableError):
        raise
    except Exception as error:
        raise EngineError from error
    finally:
        gone.cancel()
        admitted.job.future.cancel()  # while the task is still lent
    try:
        outcomes = await service.off_loop(admitted.outcomes, logits)
    except Exception as error:
        logger.error("an answer of %r cannot be read", task.name, exc_info=error)
        raise EngineError from error
    request.scope[TASK] = task.name
    return outcomes


def shorten(text: str, most: int) -> str:
    """A text, or its beginning and an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def require_key(request: Request, key: str | None) -> None:
    """Raise an UnauthorizedError unless the request has the key, if there is one."""
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), key.encode()):
        raise UnauthorizedError("expected the header Authorization: Bearer with the right key")


class LoadShedding:
    """ASGI middleware that refuses what asks for answers while there is no place for it.

    Such a request costs less than one that is read first, so that a flood of them leaves the time
    to those that have a place.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asks = scope["type"] == "http" and scope["method"] == "POST"
        if asks and not scope["path"].startswith(_REPOSITORY):
            overload = self._service.batcher.overload()
            if overload is not None:
                return await error_response(overload)(scope, receive, send)
        await self._app(scope, receive, send)


class BodyLimit:
    """ASGI middleware that refuses bodies of more than `MAX_BODY` bytes, announced or not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY:
            return await _too_large()(scope, receive, send)
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY:
                raise TooLargeError(f"body: expected at most {MAX_BODY} bytes")
            return message

        await self._app(scope, limited, send)


def _too_large() -> JSONResponse:
    return error_response(TooLargeError(f"body: expected at most {MAX_BODY} bytes"))


def require_kind(task: Served, kind: str) -> None:
    """Raise a ValueError unless a task is of a kind."""
    if task.config.task != kind:
        raise ValueError(f"task: expected {kind}, {task.name!r} is {task.config.task}")


def body_schema(kind: type[Body]) -> dict[str, Any]:
    """The body in the OpenAPI description of a route that reads it itself."""
    schema = kind.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema with what it refers to in place, as it becomes a part of a larger one."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(part, definitions) for key, part in schema.items()}

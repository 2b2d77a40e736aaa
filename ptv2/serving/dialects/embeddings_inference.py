"""text-embeddings-inference: /predict, /embed and /info under a task's path, /models/{task}."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request

from ...version import __version__
from ..http import Body, Texts, UpToFirstFault, answer, body_schema, read_body, require_kind
from ..scores import label_scores
from ..served import Served
from ..service import Outcome, Service


class Predict(Body):
    """A text, a pair of texts ["a", "b"], or a batch of lists of one text or two."""

    inputs: str | Texts | Annotated[list[Texts], UpToFirstFault()]
    raw_scores: bool = False
    truncate: bool = True
    truncation_direction: Literal["Right", "right"] = "right"


class Embed(Body):
    """A text, or several."""

    inputs: str | Texts
    normalize: bool = True
    truncate: bool = True
    truncation_direction: Literal["Right", "right"] = "right"


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["text-embeddings-inference"])

    @routes.post("/models/{task}/predict", openapi_extra=body_schema(Predict))
    async def predict(task: str, request: Request) -> Any:
        """The labels of a text or of a batch, each with its score, the best first."""
        body = await read_body(request, Predict)
        batch = not all(isinstance(text, str) for text in body.inputs)  # lists of texts
        rows = body.inputs if batch else [body.inputs]
        with service.bank.lease(task) as served:
            require_kind(served, "sequence-classification")
            inputs = [_row(row) for row in rows]
            outcomes = await answer(service, request, served, inputs, cut=body.truncate)
            reader = service.reader(served)
            function = "none" if body.raw_scores else None
            found = [label_scores(reader, outcome, function) for outcome in outcomes]
        return found if batch else found[0]

    @routes.post("/models/{task}/embed", openapi_extra=body_schema(Embed))
    async def embed(task: str, request: Request) -> Any:
        """A vector for every text."""
        body = await read_body(request, Embed)
        rows = body.inputs if isinstance(body.inputs, list) else [body.inputs]
        with service.bank.lease(task) as served:
            outcomes = await embeddings(service, request, served, rows, body.truncate)
            return vectors(outcomes, body.normalize)

    @routes.get("/models/{task}/info")
    async def info(task: str) -> Any:
        """What is served under a name."""
        with service.bank.lease(task) as served:
            return {
                "model_id": served.name,
                "model_sha": served.sha256,
                "model_type": {served.config.task: {"labels": list(served.config.labels)}},
                "version": __version__,
                "task_version": served.version,
                "max_input_length": service.reader(served).max_length,
            }

    return routes


async def embeddings(
    service: Service, request: Request, task: Served, texts: list[str], cut: bool = True
) -> list[Outcome]:
    """The outcomes of texts, of a task that gives vectors."""
    require_kind(task, "feature-extraction")
    return await answer(service, request, task, texts, cut=cut)


def vectors(outcomes: list[Outcome], normalize: bool) -> list[list[float]]:
    """The vectors of outcomes, of length 1 if that is wanted."""
    found = [outcome.logits[0] for outcome in outcomes]
    if normalize:
        found = [vector / vector.norm().clamp(min=1e-12) for vector in found]
    return [vector.tolist() for vector in found]


def _row(row: Any) -> Any:
    """A text, or a pair; transformers' word for one text in a batch is a list of it."""
    if isinstance(row, str):
        return row
    if len(row) not in (1, 2):
        raise ValueError(f"inputs: expected a text or two, got {len(row)}")
    return row[0] if len(row) == 1 else tuple(row)

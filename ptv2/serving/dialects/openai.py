"""OpenAI's /v1/models and /v1/embeddings, and /classify as vLLM has it; the task is the model."""

import base64
import time
import uuid
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request

from ..http import Body, Texts, answer, body_schema, read_body, require_kind
from ..scores import label_scores
from ..service import Outcome, Service
from .embeddings_inference import embeddings, vectors


class Embeddings(Body):
    """Texts for a model."""

    model: str
    input: str | Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class Classify(Body):
    """Texts for a model."""

    model: str
    input: str | Texts


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["OpenAI"])

    @routes.get("/v1/models")
    async def models() -> Any:
        """All tasks."""
        found = [
            {"id": name, "object": "model", "created": 0, "owned_by": "ptv2"}
            for name in sorted(service.bank.tasks())
        ]
        return {"object": "list", "data": found}

    @routes.post("/v1/embeddings", openapi_extra=body_schema(Embeddings))
    async def embed(request: Request) -> Any:
        """A vector for every text."""
        body = await read_body(request, Embeddings)
        texts = [body.input] if isinstance(body.input, str) else body.input
        with service.bank.lease(body.model) as task:
            own = service.model.geometry.hidden_size
            if body.dimensions not in (None, own):
                raise ValueError(f"dimensions: expected {own}, got {body.dimensions}")
            outcomes = await embeddings(service, request, task, texts)
        data = [
            {"object": "embedding", "index": index, "embedding": _encode(vector, body)}
            for index, vector in enumerate(vectors(outcomes, normalize=True))
        ]
        return {"object": "list", "data": data, "model": body.model, "usage": _usage(outcomes)}

    @routes.post("/classify", openapi_extra=body_schema(Classify))
    async def classify(request: Request) -> Any:
        """The likeliest class of every text, and the probabilities of all."""
        body = await read_body(request, Classify)
        texts = [body.input] if isinstance(body.input, str) else body.input
        with service.bank.lease(body.model) as task:
            require_kind(task, "sequence-classification")
            outcomes = await answer(service, request, task, texts)
            reader = service.reader(task)
            data = []
            for index, outcome in enumerate(outcomes):
                scores = {x["label"]: x["score"] for x in label_scores(reader, outcome)}
                probs = [scores[label] for label in reader.labels]
                best = max(scores, key=scores.__getitem__)
                data.append({"index": index, "label": best, "probs": probs})
        return {
            "id": f"classify-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": body.model,
            "data": [entry | {"num_classes": len(reader.labels)} for entry in data],
            "usage": _usage(outcomes),
        }

    return routes


def _encode(vector: list[float], body: Embeddings) -> Any:
    if body.encoding_format == "float":
        return vector
    return base64.b64encode(np.array(vector, dtype="<f4").tobytes()).decode()


def _usage(outcomes: list[Outcome]) -> dict[str, int]:
    tokens = sum(outcome.tokens for outcome in outcomes)
    return {"prompt_tokens": tokens, "total_tokens": tokens}

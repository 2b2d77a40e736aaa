"""Hugging Face Inference, as `huggingface_hub.InferenceClient` speaks it: POST /models/{task}."""

from typing import Any, Literal

from fastapi import APIRouter, Request

from ..http import Body, answer, body_schema, read_body
from ..scores import choice_scores, entities, label_scores, require_function, words
from ..served import Served
from ..service import Service
from .embeddings_inference import embeddings, vectors


class Inputs(Body):
    """A text, or what else the kind of task takes; or a list of them.

    How vectors are wanted is said beside the inputs, all else in the parameters.
    """

    inputs: Any
    parameters: dict[str, Any] | None = None
    normalize: bool | None = None
    truncate: bool | None = None
    truncation_direction: Literal["right", "Right"] | None = None
    encoding_format: Literal["float"] | None = None


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["Hugging Face Inference"])

    @routes.post("/models/{task}", openapi_extra=body_schema(Inputs))
    async def infer(task: str, request: Request) -> Any:
        """Answer, in the shape that the task's pipeline in transformers has."""
        body = await read_body(request, Inputs)
        given = {key: x for key, x in (body.parameters or {}).items() if x is not None}
        with service.bank.lease(task) as served:
            if served.config.task == "feature-extraction":
                _require_none_left(given)
                return await _features(service, request, served, body)
            beside = body.model_dump(exclude={"inputs", "parameters"}, exclude_none=True)
            respond = _KINDS[served.config.task]
            return await respond(service, request, served, body.inputs, given | beside)

    return routes


async def _classes(
    service: Service, request: Request, task: Served, inputs: Any, given: dict[str, Any]
) -> Any:
    function, top = given.pop("function_to_apply", None), _top(given)
    _require_none_left(given)
    require_function(function)
    rows = inputs if isinstance(inputs, list) else [inputs]
    outcomes = await answer(service, request, task, rows)
    reader = service.reader(task)
    return [label_scores(reader, outcome, function)[:top] for outcome in outcomes]


async def _tags(
    service: Service, request: Request, task: Served, inputs: Any, given: dict[str, Any]
) -> Any:
    strategy = given.pop("aggregation_strategy", "simple")
    _require_none_left(given)
    if strategy not in ("none", "simple"):
        raise ValueError(f"aggregation_strategy: expected none or simple, got {strategy!r}")
    texts = inputs if isinstance(inputs, list) else [inputs]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("inputs: expected texts")
    outcomes = await answer(service, request, task, texts)
    reader = service.reader(task)
    shown = entities if strategy == "simple" else words
    found = [shown(reader, x, text) for x, text in zip(outcomes, texts, strict=True)]
    return found if isinstance(inputs, list) else found[0]


async def _answers(
    service: Service, request: Request, task: Served, inputs: Any, given: dict[str, Any]
) -> Any:
    names = {"doc_stride": "stride", "max_answer_len": "max_answer_length"}
    options = {own: given.pop(theirs) for theirs, own in names.items() if theirs in given}
    _require_none_left(given)
    if not isinstance(inputs, dict) or inputs.keys() != {"question", "context"}:
        raise ValueError("inputs: expected a question and a context")
    pairs = [(inputs["question"], inputs["context"])]
    (outcome,) = await answer(service, request, task, pairs, options)
    return {name: outcome.answer[name] for name in ("answer", "score", "start", "end")}


async def _choices(
    service: Service, request: Request, task: Served, inputs: Any, given: dict[str, Any]
) -> Any:
    top = _top(given)
    _require_none_left(given)
    if not isinstance(inputs, dict) or inputs.keys() != {"question", "choices"}:
        raise ValueError("inputs: expected a question and choices")
    choices = inputs["choices"]
    if not isinstance(choices, list) or not all(isinstance(text, str) for text in choices):
        raise ValueError("inputs: expected texts as choices")
    pairs = [(inputs["question"], choices)]
    (outcome,) = await answer(service, request, task, pairs)
    return outcome.answer if top is None else choice_scores(outcome)[:top]


async def _features(service: Service, request: Request, task: Served, body: Inputs) -> Any:
    rows = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    outcomes = await embeddings(service, request, task, rows, cut=body.truncate is not False)
    found = vectors(outcomes, normalize=body.normalize is True)
    return found if isinstance(body.inputs, list) else found[0]


_KINDS = {
    "sequence-classification": _classes,
    "token-classification": _tags,
    "question-answering": _answers,
    "multiple-choice": _choices,
}


def _top(given: dict[str, Any]) -> int | None:
    """How many of the best are wanted."""
    top = given.pop("top_k", None)
    if top is not None and (type(top) is not int or top < 1):
        raise ValueError(f"top_k: expected an int of at least 1, got {top!r}")
    return top


def _require_none_left(given: dict[str, Any]) -> None:
    if given:
        raise ValueError(f"parameters: {', '.join(sorted(given))} would be ignored, expected none")

"""Outcomes in the terms that all dialects have: labels with scores, and spans of text."""

import re
from typing import Any

import torch

from ..tasks import SequenceClassification, Task, TokenClassification
from .service import Outcome

_WORD = re.compile(r"[^ \t\r\n]+")
"""As the task splits texts."""


def label_scores(
    reader: Task, outcome: Outcome, function: str | None = None
) -> list[dict[str, Any]]:
    """Every label and its score, the best first; of a regression its one number.

    Args:
        function: "softmax", "sigmoid" or "none". None: what the task was trained with.
    """
    assert isinstance(reader, SequenceClassification)
    row = outcome.logits[0].float()
    require_function(function)
    if function is None:
        multi = reader.multi_label
        function = "none" if reader.regression else "sigmoid" if multi else "softmax"
    values = row.softmax(-1) if function == "softmax" else row
    values = row.sigmoid() if function == "sigmoid" else values
    pairs = zip(reader.labels, values.tolist(), strict=True)
    found = [{"label": label, "score": score} for label, score in pairs]
    return sorted(found, key=lambda entry: entry["score"], reverse=True)


def require_function(function: Any) -> None:
    """Raise a ValueError unless `label_scores` has the function, or it is None."""
    if function not in (None, "softmax", "sigmoid", "none"):
        raise ValueError(f"function_to_apply: expected softmax, sigmoid or none, got {function!r}")


def choice_scores(outcome: Outcome) -> list[dict[str, Any]]:
    """Every choice of a question with its place and its probability, the best first."""
    (feature,) = outcome.features
    scores = torch.cat(outcome.logits).float().softmax(0).tolist()
    rows = enumerate(zip(feature["choices"], scores, strict=True))
    found = [{"choice": place, "text": text, "score": score} for place, (text, score) in rows]
    return sorted(found, key=lambda entry: entry["score"], reverse=True)


def words(reader: Task, outcome: Outcome, text: str) -> list[dict[str, Any]]:
    """Each word of a text with its tag, its probability and its place; not those without a tag."""
    assert isinstance(reader, TokenClassification)
    places = [match.span() for match in _WORD.finditer(text)]
    scores = reader.tag_scores(outcome.logits, outcome.features)
    return [
        {
            "entity": scored[0],
            "score": scored[1],
            "index": index,
            "word": text[start:end],
            "start": start,
            "end": end,
        }
        for index, ((start, end), scored) in enumerate(zip(places, scores, strict=True))
        if scored is not None and scored[0] != "O"
    ]


def entities(reader: Task, outcome: Outcome, text: str) -> list[dict[str, Any]]:
    """The entities of a text, as training scores them, each with the mean of its words' scores."""
    assert isinstance(reader, TokenClassification)
    tagged = {word["index"]: word for word in words(reader, outcome, text)}
    tags = [
        tagged[i]["entity"] if i in tagged else None for i in range(max(tagged, default=-1) + 1)
    ]
    found = []
    for kind, first, last in reader.entities(tags):
        own = [tagged[index] for index in range(first, last + 1)]
        start, end = own[0]["start"], own[-1]["end"]
        score = sum(word["score"] for word in own) / len(own)
        place = {"start": start, "end": end}
        found.append({"entity_group": kind, "score": score, "word": text[start:end]} | place)
    return found

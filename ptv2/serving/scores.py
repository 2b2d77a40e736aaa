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
    if function is None:
        multi = reader.multi_label
        function = "none" if reader.regression else "sigmoid" if multi else "softmax"
    if function not in ("softmax", "sigmoid", "none"):
        raise ValueError(f"function_to_apply: expected softmax, sigmoid or none, got {function!r}")
    values = row.softmax(-1) if function == "softmax" else row
    values = row.sigmoid() if function == "sigmoid" else values
    pairs = zip(reader.labels, values.tolist(), strict=True)
    found = [{"label": label, "score": score} for label, score in pairs]
    return sorted(found, key=lambda entry: entry["score"], reverse=True)


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


def entities(tagged: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """Neighbouring words of one entity together, by the prefixes of their tags."""
    found: list[dict[str, Any]] = []
    last = -2
    for word in tagged:
        prefix, _, kind = word["entity"].rpartition("-")
        begins = prefix in ("B", "S", "U") or word["index"] != last + 1
        if begins or not found or found[-1]["entity_group"] != kind:
            found.append({"entity_group": kind, "scores": [], "start": word["start"]})
        found[-1] |= {"end": word["end"]}
        found[-1]["scores"].append(word["score"])
        last = word["index"] if prefix not in ("E", "L", "S", "U") else -2
    return [
        {
            "entity_group": entity["entity_group"],
            "score": sum(entity["scores"]) / len(entity["scores"]),
            "word": text[entity["start"] : entity["end"]],
            "start": entity["start"],
            "end": entity["end"],
        }
        for entity in found
    ]

"""Spans of text from tags of every scheme: those that training scores."""

from typing import Any

import pytest
import torch

from ptv2.serving.scores import entities
from ptv2.serving.service import Outcome
from ptv2.tasks import TokenClassification

TEXT = "Ada Lovelace met Bob"


def outcome_of(tags: list[str | None], labels: tuple[str, ...]) -> Outcome:
    """One window in which a word is a token, and one without a tag has none."""
    logits = torch.zeros(len(tags), len(labels))
    for place, tag in enumerate(tags):
        if tag is not None:
            logits[place, labels.index(tag)] = 10 + place
    starts = [-1 if tag is None else place for place, tag in enumerate(tags)]
    return Outcome({"tags": tags}, [logits], [{"word_starts": starts}], len(tags))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-PER", [("PER", "Ada Lovelace"), ("PER", "Bob")]),
        ("B-PER B-PER O O", [("PER", "Ada"), ("PER", "Lovelace")]),
        ("I-PER I-PER O I-ORG", [("PER", "Ada Lovelace"), ("ORG", "Bob")]),
        ("B-PER E-PER O S-PER", [("PER", "Ada Lovelace"), ("PER", "Bob")]),
        ("B-PER L-PER O U-PER", [("PER", "Ada Lovelace"), ("PER", "Bob")]),
        ("B-PER M-PER O S-PER", [("PER", "Ada Lovelace"), ("PER", "Bob")]),
        ("B-person-actor B-person-actor O O", [("person-actor", w) for w in ("Ada", "Lovelace")]),
        ("B I O B", [("", "Ada Lovelace"), ("", "Bob")]),
        ("PER PER O PER", [("PER", "Ada Lovelace"), ("PER", "Bob")]),
        ("person-actor art-actor O O", [("person-actor", "Ada"), ("art-actor", "Lovelace")]),
        (
            "NOUN NOUN VERB NOUN",
            list(zip(("NOUN", "NOUN", "VERB", "NOUN"), TEXT.split(), strict=True)),
        ),
        ("B-PER None O O", [("PER", "Ada")]),
        ("O O O O", []),
    ],
)
def test_entities(tags: str, expected: list[tuple[str, str]]) -> None:
    found: list[Any] = [None if tag == "None" else tag for tag in tags.split()]
    labels = tuple(sorted({tag for tag in found if tag} | ({"O"} if "O" in found else set())))
    reader = TokenClassification(None, labels)
    got = entities(reader, outcome_of(found, labels), TEXT)
    assert [(x["entity_group"], x["word"]) for x in got] == expected
    for entity in got:
        assert TEXT[entity["start"] : entity["end"]] == entity["word"]
        assert 0.9 < entity["score"] <= 1
    scores = reader.score([{"tags": found}], [[tag or "O" for tag in found]])
    assert scores["f1"] == (1 if expected else 0)

"""Exact match and F1 of answers, beside values worked out by the official definition."""

import random

import pytest

from ptv2.tasks.squad import best, best_thresholds, exact_match, f1, normalize, squad_scores


@pytest.mark.parametrize(
    ("answer", "references", "expected_exact_match", "expected_f1"),
    [
        ("Denver Broncos", ["Denver Broncos"], 1, 1),
        ("the  Denver, Broncos!", ["denver broncos"], 1, 1),
        ("Broncos", ["Denver Broncos"], 0, 2 / 3),
        ("Broncos of Denver", ["Denver Broncos"], 0, 4 / 5),
        ("Paris", ["Denver Broncos"], 0, 0),
        ("the big the cat", ["big cat"], 1, 1),
        ("theory", ["the ory"], 0, 0),  # articles are whole words
        ("a-b", ["ab"], 1, 1),  # punctuation leaves no space
        ("U.S.", ["us"], 1, 1),
        ("$400", ["400"], 1, 1),
        ("1 \u2013 2", ["1 2"], 0, 4 / 5),  # only ASCII punctuation
        ("b b c", ["b c c"], 0, 2 / 3),
        ("cat", ["dog", "a cat", "cat hat"], 1, 1),
        ("cat", ["cat hat", "dog"], 0, 2 / 3),
        ("Straße", ["STRASSE"], 0, 0),  # lower case, not folded
        ("the", ["a"], 1, 0),  # nothing is left, which has no words to share
        ("", ["cat"], 0, 0),
        ("", [], 1, 1),
        ("the", [], 1, 1),
        ("cat", [], 0, 0),
    ],
)
def test_official_scores(
    answer: str, references: list[str], expected_exact_match: float, expected_f1: float
) -> None:
    assert best(exact_match, answer, references) == expected_exact_match
    assert best(f1, answer, references) == pytest.approx(expected_f1)


def test_normalized_text() -> None:
    assert normalize("  The 'Quick'\tbrown\u00a0fox, an A. ") == "quick brown fox"


def test_scores_are_means_and_tell_the_unanswerable_apart() -> None:
    assert squad_scores(["cat", "dog hat"], [["cat"], ["dog"]]) == pytest.approx(
        {"exact_match": 0.5, "f1": (1 + 2 / 3) / 2}
    )
    assert squad_scores(["cat", "", "dog", ""], [["cat"], ["cat"], [], []]) == {
        "exact_match": 0.5, "f1": 0.5, "has_answer_exact_match": 0.5, "has_answer_f1": 0.5,
        "no_answer_exact_match": 0.5, "no_answer_f1": 0.5,
    }  # fmt: skip
    assert set(squad_scores([""], [[]])) == {
        "exact_match", "f1", "no_answer_exact_match", "no_answer_f1",
    }  # fmt: skip


def test_references_without_words() -> None:
    """SQuAD v2 leaves them out; v1.1 compares with them."""
    assert squad_scores(["the"], [["a"]]) == {"exact_match": 1, "f1": 0}
    assert squad_scores([""], [["A", "grade A level"]]) == {"exact_match": 1, "f1": 0}
    found = squad_scores(
        ["the", "", "grade A", ""], [["a"], ["A", "grade A level"], ["grade"], []]
    )
    assert (found["exact_match"], found["f1"]) == (3 / 4, 3 / 4)
    assert found["has_answer_f1"] == 2 / 3


def official_best(spans: list[str], margins: list[float], references: list[list[str]]) -> float:
    """The best F1 as the official evaluation's loop finds it, from no answer to all."""
    score = best_score = float(sum(not accepted for accepted in references))
    for i in sorted(range(len(spans)), key=margins.__getitem__):
        if references[i]:
            score += max(f1(spans[i], reference) for reference in references[i])
        elif spans[i]:
            score -= 1
        best_score = max(best_score, score)
    return best_score / len(spans)


def test_the_best_limit_for_no_answer() -> None:
    spans = ["cat", "a dog", "hat", "bird"]
    references = [["cat"], ["dog house"], [], ["bird"]]
    found = best_thresholds(spans, [-3.0, -1.0, 0.5, 2.0], references)
    assert found == pytest.approx(
        {
            "best_exact_match": 0.5,
            "best_exact_match_threshold": -2.0,
            "best_f1": (1 + 2 / 3 + 1) / 4,
            "best_f1_threshold": -0.25,
        }
    )
    none = best_thresholds(["x", "y"], [1.0, 2.0], [[], []])
    assert none["best_f1"] == 1
    assert none["best_f1_threshold"] == 0.0
    every = best_thresholds(["x", "y"], [1.0, 2.0], [["x"], ["y"]])
    assert every["best_f1_threshold"] == 3.0
    tied = best_thresholds(["x", "y"], [1.0, 1.0], [["x"], []])  # no limit tells them apart
    assert tied["best_f1"] == 0.5
    draw = random.Random(0)
    for _ in range(200):
        count = draw.randint(1, 8)
        spans = [draw.choice(["cat", "a cat hat", "dog"]) for _ in range(count)]
        references = [draw.choice([[], ["cat"], ["dog", "cat hat"]]) for _ in range(count)]
        margins = [draw.uniform(-2, 2) for _ in range(count)]
        found = best_thresholds(spans, margins, references)
        assert found["best_f1"] == pytest.approx(official_best(spans, margins, references))
        given = [
            "" if margin > found["best_f1_threshold"] else span
            for span, margin in zip(spans, margins, strict=True)
        ]
        assert squad_scores(given, references)["f1"] == pytest.approx(found["best_f1"])

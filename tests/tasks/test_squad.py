"""Exact match and F1 of answers, beside values worked out by the official definition."""

import pytest

from ptv2.tasks.squad import best, exact_match, f1, normalize, squad_scores


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

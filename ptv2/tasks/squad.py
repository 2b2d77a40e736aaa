"""Exact match and F1 of answer texts, as SQuAD's official scripts define them.

Rajpurkar et al. 2016 (arXiv:1606.05250) and 2018 (arXiv:1806.03822).
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case without ASCII punctuation, articles and surplus whitespace."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(given: str, expected: str) -> float:
    """1 if the texts are equal once normalised, else 0."""
    return float(normalise(given) == normalise(expected))


def f1(given: str, expected: str) -> float:
    """F1 of the bags of words; if one is empty, 1 if both are, else 0."""
    given_words, expected_words = normalise(given).split(), normalise(expected).split()
    if not given_words or not expected_words:
        return float(given_words == expected_words)
    common = sum((Counter(given_words) & Counter(expected_words)).values())
    return 2 * common / (len(given_words) + len(expected_words))


def scores(given: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean exact match and F1, each against the reference that it fits best.

    Args:
        given: the answers, "" for none.
        references: the right answers to each question; none: the question has no answer.

    Returns:
        "exact_match" and "f1" in [0, 1]; where some questions have no answer and some have one,
        also those of either part, as in SQuAD 2.0.
    """
    pairs = [_best(one, expected) for one, expected in zip(given, references, strict=True)]
    found = _means(pairs)
    answerable = [bool(expected) for expected in references]
    if any(answerable) and not all(answerable):
        for name, wanted in (("answerable", True), ("unanswerable", False)):
            part = [pair for pair, has in zip(pairs, answerable, strict=True) if has == wanted]
            found |= {f"{name}_{score}": value for score, value in _means(part).items()}
    return found


def _best(given: str, expected: Sequence[str]) -> tuple[float, float]:
    """SQuAD 2.0 leaves out references of which nothing remains; without any, "" is right."""
    wanted = [text for text in expected if normalise(text)] or [""]
    return max(exact_match(given, x) for x in wanted), max(f1(given, x) for x in wanted)


def _means(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    exact, overlap = zip(*pairs, strict=True)
    return {"exact_match": sum(exact) / len(exact), "f1": sum(overlap) / len(overlap)}

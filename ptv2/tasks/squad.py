"""Exact match and F1 of answer texts, as the official SQuAD evaluation defines them."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize(text: str) -> str:
    """Lower case, without punctuation and English articles, one space between the words."""
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(answer: str, reference: str) -> float:
    """1 if the normalised texts are equal, else 0."""
    return float(normalize(answer) == normalize(reference))


def f1(answer: str, reference: str) -> float:
    """F1 of the words that the normalised texts share, each as often as both have it."""
    given, expected = normalize(answer).split(), normalize(reference).split()
    shared = (Counter(given) & Counter(expected)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(given), shared / len(expected)
    return 2 * precision * recall / (precision + recall)


def squad_scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Means over the questions, from 0 to 1.

    Args:
        answers: one a question, "" for none.
        references: the accepted answers of each; none for a question without an answer.

    Returns:
        "exact_match" and "f1", of each question the best over its references, as in SQuAD v1.1.
        If there are questions without an answer, all are scored as in SQuAD v2: an answer to
        such a question scores 1 if it is empty once normalised, else 0, references that are empty
        once normalised are left out, and the same scores follow with the prefixes "has_answer_"
        and "no_answer_" for either kind.
    """
    compared = references if all(references) else [_with_words(row) for row in references]
    rows = [
        (best(exact_match, answer, accepted), best(f1, answer, accepted), bool(given))
        for answer, accepted, given in zip(answers, compared, references, strict=True)
    ]
    scores = _means("", rows)
    if not all(references):
        for prefix, kind in (("has_answer_", True), ("no_answer_", False)):
            part = [row for row in rows if row[2] is kind]
            scores |= _means(prefix, part) if part else {}
    return scores


def best_thresholds(
    spans: Sequence[str], margins: Sequence[float], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """What the best limit for no answer would give, as the official SQuAD v2 evaluation finds it.

    Args:
        spans: the best answer to each question, had it to be one.
        margins: how far the score of no answer exceeds that span's; it is chosen above the limit.
        references: as in `squad_scores`.

    Returns:
        "best_exact_match" and "best_f1" and, each with the suffix "_threshold", their limits,
        halfway between the margins of two questions.
    """
    references = [_with_words(row) for row in references]
    order = sorted(range(len(margins)), key=margins.__getitem__)
    edges = [margins[place] for place in order]
    limits = [edges[0] - 1, *((a + b) / 2 for a, b in pairwise(edges)), edges[-1] + 1]
    apart = [True, *(a < b for a, b in pairwise(edges)), True]
    found: dict[str, float] = {}
    for name, metric in (("exact_match", exact_match), ("f1", f1)):
        gains = [
            best(metric, spans[i], references[i]) - best(metric, "", references[i]) for i in order
        ]
        none = sum(best(metric, "", accepted) for accepted in references)
        totals = accumulate(gains, initial=none)
        total, limit = max(
            ((t, limit) for t, limit, ok in zip(totals, limits, apart, strict=True) if ok),
            key=lambda pair: pair[0],
        )
        found |= {f"best_{name}": total / len(order), f"best_{name}_threshold": limit}
    return found


def best(metric: Callable[[str, str], float], answer: str, references: Sequence[str]) -> float:
    """A metric's highest value over the references; without any, whether the answer is empty."""
    if not references:
        return exact_match(answer, "")
    return max(metric(answer, reference) for reference in references)


def _with_words(references: Sequence[str]) -> list[str]:
    """The references that are not empty once normalised."""
    return [reference for reference in references if normalize(reference)]


def _means(prefix: str, rows: Sequence[tuple[float, float, bool]]) -> dict[str, float]:
    return {
        f"{prefix}exact_match": sum(row[0] for row in rows) / len(rows),
        f"{prefix}f1": sum(row[1] for row in rows) / len(rows),
    }

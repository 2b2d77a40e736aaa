"""Exact match and F1 of answer texts, as the official SQuAD evaluation defines them."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

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
        A question without an answer scores 1 if the answer is empty once normalised, else 0, as
        in SQuAD v2; if there are such questions, the same scores follow with the prefixes
        "has_answer_" and "no_answer_" for either kind.
    """
    rows = [
        (best(exact_match, answer, accepted), best(f1, answer, accepted), bool(accepted))
        for answer, accepted in zip(answers, references, strict=True)
    ]
    scores = _means("", rows)
    if not all(references):
        for prefix, kind in (("has_answer_", True), ("no_answer_", False)):
            part = [row for row in rows if row[2] is kind]
            scores |= _means(prefix, part) if part else {}
    return scores


def best(metric: Callable[[str, str], float], answer: str, references: Sequence[str]) -> float:
    """A metric's highest value over the references; without any, whether the answer is empty."""
    if not references:
        return exact_match(answer, "")
    return max(metric(answer, reference) for reference in references)


def _means(prefix: str, rows: Sequence[tuple[float, float, bool]]) -> dict[str, float]:
    return {
        f"{prefix}exact_match": sum(row[0] for row in rows) / len(rows),
        f"{prefix}f1": sum(row[1] for row in rows) / len(rows),
    }

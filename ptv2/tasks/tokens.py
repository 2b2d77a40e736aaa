"""Tokenisation shared by the tasks: batched, with progress, and never cut in silence."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

CHUNK = 1000

Step = TypeVar("Step")

logger = logging.getLogger(__name__)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    texts: list[Any],
    pairs: list[str] | None = None,
    **options: Any,
) -> tuple[dict[str, list[Any]], list[Encoding]]:
    """Tokenise inputs, cutting each to `max_length` tokens (None: the tokenizer's own limit).

    Returns the model inputs by name, and one `tokenizers.Encoding` an input. Logs a warning
    that says how many inputs were cut.

    Raises:
        ValueError: no room for more than special tokens, or a Python tokenizer, which cannot say
            what it cut.
    """
    limit = token_limit(tokenizer, max_length, pair=pairs is not None)
    features: dict[str, list[Any]] = {}
    encodings: list[Encoding] = []
    for start in progress(range(0, len(texts), CHUNK), "tokenising"):
        chunk = slice(start, start + CHUNK)
        encoded = tokenizer(
            texts[chunk],
            pairs[chunk] if pairs is not None else None,
            truncation=True,
            max_length=limit,
            **options,
        )
        encodings += encoded.encodings
        for name, rows in encoded.items():
            features.setdefault(name, []).extend(rows)
    cut = sum(bool(encoding.overflowing) for encoding in encodings)
    if cut:
        logger.warning("%d of %d inputs were cut to %d tokens", cut, len(texts), limit)
    return features, encodings


def token_limit(tokenizer: PreTrainedTokenizerBase, max_length: int | None, pair: bool) -> int:
    """How many tokens an input may have: `max_length`, or the tokenizer's own limit.

    Args:
        pair: whether the input is of two texts.

    Raises:
        ValueError: no room for more than special tokens, or a Python tokenizer, which cannot say
            what it cut.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"tokenizer: expected one backed by the tokenizers library, "
            f"got {type(tokenizer).__name__}"
        )
    limit = int(tokenizer.model_max_length if max_length is None else max_length)
    least = tokenizer.num_special_tokens_to_add(pair) + 1
    if limit < least:
        raise ValueError(f"max_length: expected at least {least} tokens, got {limit}")
    return limit


def shortest(limit: int, max_length: int | None) -> int:
    """A limit in tokens, or what was asked for if that is less.

    Raises:
        TypeError: what was asked for is no number.
    """
    if max_length is None:
        return limit
    if type(max_length) is not int:
        raise TypeError(f"max_length: expected None or an int, got {max_length!r}")
    return min(limit, max_length)


def progress(steps: Sequence[Step], description: str) -> Iterable[Step]:
    """The steps, with a bar on stderr if there are several."""
    console = Console(stderr=True)
    return track(steps, description, console=console, transient=True, disable=len(steps) < 2)

"""Questions about contexts as model inputs: a long context in windows that overlap."""

from collections.abc import Callable, Sequence

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from .task import Feature
from .tokens import CHUNK, progress, token_limit

CONTEXT = 1
"""The sequence id of the second text of a pair."""

_EXPANSION = 18
"""Tokens of a character at most: Unicode's NFKC makes up to 18 characters of one."""


def encode_contexts(
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    stride: int,
    max_windows: int | None,
    questions: Sequence[str],
    contexts: Sequence[str],
    where: Callable[[int], str],
) -> list[Feature]:
    """The windows of every example, in order: its whole question and a part of its context.

    Args:
        max_length: tokens of a window; None: the tokenizer's own limit.
        stride: tokens that a window shares with the one before it, at most half of those that
            the question leaves for the context.
        max_windows: of all examples; None: any number.
        where: what to call an example in a message.

    Returns:
        The model inputs with "example"; "context", the text, of an example's first window and
        "" of the others; "token_starts" and "token_ends", (length,) each: where a token's text
        begins and ends in the context, in characters and without spaces at its ends. They are -1
        for tokens of other texts, and equal for a token without text.

    Raises:
        ValueError: a question leaves no room for its context, a context is empty, there are more
            windows than allowed, or as `token_limit` does.
    """
    limit = token_limit(tokenizer, max_length, pair=True)
    questions = [question.lstrip() for question in questions]
    rooms = _rooms(tokenizer, limit, questions, where)
    overlaps = [min(stride, room // 2) for room in rooms]
    if max_windows is not None:
        _require_few_windows(tokenizer, max_windows, contexts, rooms, overlaps)
    windows: list[list[Feature]] = [[] for _ in questions]
    for overlap in sorted(set(overlaps)):
        places = [place for place, own in enumerate(overlaps) if own == overlap]
        for start in progress(range(0, len(places), CHUNK), "tokenising"):
            chunk = places[start : start + CHUNK]
            encoded = tokenizer(
                [questions[place] for place in chunk],
                [contexts[place] for place in chunk],
                truncation="only_second",
                max_length=limit,
                stride=overlap,
                return_overflowing_tokens=True,
            )
            samples = encoded.pop("overflow_to_sample_mapping")
            for row, (sample, encoding) in enumerate(zip(samples, encoded.encodings, strict=True)):
                place = chunk[sample]
                inputs = {name: rows[row] for name, rows in encoded.items()}
                window = _window(encoding, contexts[place], first=not windows[place])
                windows[place].append(inputs | window | {"example": place})
    _check_contexts(windows, where)
    return [window for group in windows for window in group]


def _rooms(
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    questions: Sequence[str],
    where: Callable[[int], str],
) -> list[int]:
    """How many tokens each question leaves for its context."""
    room = limit - tokenizer.num_special_tokens_to_add(pair=True)
    rooms = []
    for start in range(0, len(questions), CHUNK):
        encoded = tokenizer(
            list(questions[start : start + CHUNK]), add_special_tokens=False, verbose=False
        )
        rooms += [room - len(ids) for ids in encoded["input_ids"]]
    for example, left in enumerate(rooms):
        if left < 1:
            raise ValueError(
                f"max_length: expected room for a context, but the question of {where(example)} "
                f"takes {room - left} of {room} tokens"
            )
    return rooms


def _require_few_windows(
    tokenizer: PreTrainedTokenizerBase,
    most: int,
    contexts: Sequence[str],
    rooms: Sequence[int],
    overlaps: Sequence[int],
) -> None:
    steps = [room - overlap for room, overlap in zip(rooms, overlaps, strict=True)]
    bounds = (1 + _EXPANSION * len(x) // step for x, step in zip(contexts, steps, strict=True))
    if sum(bounds) <= most:
        return
    encoded = tokenizer(list(contexts), add_special_tokens=False, verbose=False)["input_ids"]
    windows = sum(
        1 + max(0, -(-(len(ids) - room) // step))
        for ids, room, step in zip(encoded, rooms, steps, strict=True)
    )
    if windows > most:
        raise ValueError(
            f"max_windows: expected at most {most} windows, the contexts take {windows}; shorter "
            "questions leave room for larger ones"
        )


def _window(encoding: Encoding, context: str, first: bool) -> Feature:
    starts, ends = [], []
    for source, (start, end) in zip(encoding.sequence_ids, encoding.offsets, strict=True):
        if source != CONTEXT:
            start = end = -1
        else:
            text = context[start:end]
            start += len(text) - len(text.lstrip())
            end = start + len(text.strip())
        starts.append(start)
        ends.append(end)
    return {"context": context if first else "", "token_starts": starts, "token_ends": ends}


def _check_contexts(windows: Sequence[Sequence[Feature]], where: Callable[[int], str]) -> None:
    for example, group in enumerate(windows):
        if all(window["token_starts"] == window["token_ends"] for window in group):
            raise ValueError(
                f"context_column: expected a text, but {where(example)} has no token in "
                f"{group[0]['context'][:40]!r}"
            )

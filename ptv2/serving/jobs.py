"""What waits for an answer: the sequences of a request, how many may wait, and how it may end."""

from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Self

import torch
from torch import Tensor

from ..tasks.task import Feature
from .served import Served

CPU_TOKENS, GPU_TOKENS = 2048, 16384
"""Of a batch. More would make a CPU no faster, but its answers later (docs/serving.md)."""
SHARE = 4
"""Of the places that are free: dynamic thresholds, as Choudhury and Hahne (1998) have them."""


class OverloadedError(RuntimeError):
    """Too much is waiting.

    Args:
        retry_after: seconds until what is waiting now will be done.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"too much is waiting; try again in {retry_after:.1f} s")
        self.retry_after = retry_after


class UnavailableError(RuntimeError):
    """The thread is stopping, or dead."""


class DeadlineError(RuntimeError):
    """A request waited for longer than it wanted to."""


@dataclass(eq=False)
class Job:
    """The sequences of one request; who cancels its future ends it, whatever of it has run.

    Args:
        task: in the version that all of them are answered with.
        inputs: of each sequence, as the tokenizer gives them.
        deadline: in seconds of `time.monotonic`; a sequence that is not begun by then is dropped.
    """

    task: Served
    inputs: Sequence[Feature]
    deadline: float = float("inf")
    future: "Future[list[Tensor]]" = field(default_factory=Future, init=False)

    def __post_init__(self) -> None:
        self.lengths = [len(x["input_ids"]) for x in self.inputs]
        self._found: dict[int, Tensor] = {}
        self._told = False

    def give(self, place: int, logits: Tensor) -> None:
        """The logits of a sequence; with the last of them the future is done."""
        self._found[place] = logits
        if not self.ended() and len(self._found) == len(self.inputs):
            with suppress(InvalidStateError):  # it may be cancelled right now
                self.future.set_result([self._found[i] for i in range(len(self.inputs))])

    def ended(self) -> bool:
        """Whether the future is done; who waits for a cancelled one with others hears of it."""
        if self.future.cancelled() and not self._told:
            self._told = True
            self.future.set_running_or_notify_cancel()
        return self.future.done()

    def fail(self, error: BaseException) -> None:
        """End the job with an error, if it has not ended."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True)
class Limits:
    """How much is taken at once, and how much may wait.

    Args:
        tokens: of a batch; also the longest sequence that is taken. None: any; `suited` chooses.
        rows: of a batch's prompts and tokens together, counted for each sequence.
        bytes: of the prompts and heads of a batch.
        waiting: sequences that wait at most. A task has at most `SHARE` times as many of the
            places as are free, so that there is always room for the others.

    Raises:
        ValueError: a limit is not positive.
    """

    tokens: int | None = None
    rows: int = 65536
    bytes: int = 2**62
    waiting: int = 4096

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and value < 1:
                raise ValueError(f"limits: expected {limit.name} of at least 1, got {value}")

    def suited(self, device: torch.device, longest: int) -> Self:
        """These, with a number of tokens that suits a device, if there is none.

        Args:
            longest: the longest sequence in tokens.

        Raises:
            ValueError: the longest sequence has more.
        """
        tokens = self.tokens
        if tokens is None:
            fewest = CPU_TOKENS if device.type == "cpu" else GPU_TOKENS
            tokens = max(fewest, min(longest, GPU_TOKENS))
        if longest > tokens:
            raise ValueError(
                f"limits: expected tokens of at least {longest} for the longest input, or a "
                f"smaller max_length, got {tokens}"
            )
        return replace(self, tokens=tokens)


@dataclass(frozen=True)
class Done:
    """What has been run so far."""

    batches: int = 0
    sequences: int = 0
    tokens: int = 0
    seconds: float = 0.0

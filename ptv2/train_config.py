"""How a prompt is trained."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .schedules import CONSTANT, SCHEDULES

_NUMBER = (int, float)
_CHOICES = {
    "scheduler": SCHEDULES,
    "precision": ("fp32", "bf16", "fp16"),
    "checkpointing": ("none", "layers", "selective"),
}


@dataclass(frozen=True)
class TrainConfig:
    """How a prompt is trained; the defaults were chosen by measurement (docs/defaults.md).

    Args:
        learning_rate: peak of the schedule.
        head_learning_rate: the head's own peak. None: the same.
        epochs: passes over the training data.
        batch_size: examples a step, unless there is a token budget.
        token_budget: tokens a step at most, instead of a number of examples.
        packing: lay the examples of a batch one after another, without a padding token.
        warmup_ratio: share of the steps over which the learning rate rises; "constant" has none.
        scheduler: "linear", "cosine", "cosine_with_restarts", "polynomial", "constant",
            "constant_with_warmup" or "inverse_sqrt", as transformers has them; or "exponential",
            5% less after every epoch.
        weight_decay: of AdamW, for everything but biases.
        max_grad_norm: the gradient is scaled down to this norm.
        precision: "fp32", "bf16" or "fp16", by autocast.
        backbone_dropout: whether the frozen backbone's own dropout acts in training.
        checkpointing: what the backward computes again instead of keeping it: "none"; "layers",
            all inside a layer of the backbone; "selective", all but the outputs of attention.
        compile: compile the module with `torch.compile`.
        save_steps: a checkpoint every so many steps, besides those at an epoch's end.
        seed: of dropout and of the order of the examples; below 2**32.

    Raises:
        ValueError: a field has a value of another type or outside of its range.
    """

    learning_rate: float = 2e-2
    head_learning_rate: float | None = None
    epochs: int = 8
    batch_size: int = 32
    token_budget: int | None = None
    packing: bool = False
    warmup_ratio: float = 0.06
    scheduler: str = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "fp32"
    backbone_dropout: bool = True
    checkpointing: str = "none"
    compile: bool = False
    save_steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "token_budget", "save_steps"):
            self._require(name, "an int of at least 1", (int,), lambda x: x >= 1)
        self._require("seed", "an int in [0, 2**32)", (int,), lambda x: 0 <= x < 2**32)
        for name in ("learning_rate", "head_learning_rate", "max_grad_norm"):
            self._require(name, "a finite number above 0", _NUMBER, lambda x: 0 < x < math.inf)
        self._require("weight_decay", "a finite number >= 0", _NUMBER, lambda x: 0 <= x < math.inf)
        self._require("warmup_ratio", "a number in [0, 1)", _NUMBER, lambda x: 0 <= x < 1)
        for name in ("packing", "backbone_dropout", "compile"):
            self._require(name, "True or False", (bool,))
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if self.token_budget is not None and self.batch_size != TrainConfig.batch_size:
            raise ValueError(
                f"batch_size: a token budget takes its place, expected no other than "
                f"{TrainConfig.batch_size}, got {self.batch_size}"
            )
        if self.scheduler == CONSTANT and self.warmup_ratio not in (0, TrainConfig.warmup_ratio):
            raise ValueError(
                "warmup_ratio: the scheduler 'constant' has no warm-up, expected 0 or "
                f"'constant_with_warmup', got {self.warmup_ratio}"
            )

    def _require(
        self,
        name: str,
        expected: str,
        types: tuple[type, ...],
        holds: Callable[[Any], bool] = lambda x: True,
    ) -> None:
        """Raise a ValueError unless a field has one of the types, a condition holds for it, or it
        is None by default."""
        value = getattr(self, name)
        if value is None and getattr(TrainConfig, name) is None:
            return
        fits = isinstance(value, types) and (isinstance(value, bool) == (types == (bool,)))
        if not fits or not holds(value):
            raise ValueError(f"{name}: expected {expected}, got {value!r}")

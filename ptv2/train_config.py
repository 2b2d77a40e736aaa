"""How a prompt is trained."""

from dataclasses import dataclass

from .schedules import SCHEDULES


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
        warmup_ratio: share of the steps over which the learning rate rises.
        scheduler: name of a transformers schedule, such as "linear" or "cosine"; or "exponential",
            5% less after every epoch.
        weight_decay: of AdamW, for everything but biases.
        max_grad_norm: the gradient is scaled down to this norm.
        precision: "fp32", "bf16" or "fp16", by autocast.
        backbone_dropout: whether the frozen backbone's own dropout acts in training.
        checkpointing: what the backward computes again instead of keeping it: "none"; "layers",
            all inside a layer of the backbone; "selective", all but the outputs of attention.
        compile: compile the module with `torch.compile`.
        save_steps: a checkpoint every so many steps, besides those at an epoch's end.
        seed: of dropout and of the order of the examples.

    Raises:
        ValueError: a field has a value outside of its range.
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
        for name in ("learning_rate", "epochs", "batch_size", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("token_budget", "save_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"warmup_ratio: expected a value in [0, 1), got {self.warmup_ratio}")
        if self.scheduler not in SCHEDULES:
            names = ", ".join(SCHEDULES)
            raise ValueError(f"scheduler: expected one of {names}, got {self.scheduler!r}")
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise ValueError(f"precision: expected fp32, bf16 or fp16, got {self.precision!r}")
        if self.checkpointing not in ("none", "layers", "selective"):
            raise ValueError(
                f"checkpointing: expected none, layers or selective, got {self.checkpointing!r}"
            )

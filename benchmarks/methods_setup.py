"""What all methods of `bench_methods.py` have in common: the encoder, the data, the training.

Needs torch alone, so that it serves in any environment.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Example = tuple[list[int], int]
"""Token ids and the number of the label."""

WARM_UP, CLIP = 0.06, 1.0
CHUNK = 16
"""Batches whose examples are sorted by length, so that a batch has little padding."""


@dataclass(frozen=True)
class Setup:
    """What a process is told.

    Args:
        encoder: the folder of a BERT.
        labels: how many there are.
        train, dev: the examples.
        precision: fp32, or bf16 for autocast.
    """

    encoder: str
    labels: int
    train: list[Example]
    dev: list[Example]
    prompt_length: int
    batch_size: int
    precision: str
    device: str
    threads: int

    @classmethod
    def read(cls, path: str) -> Self:
        """From a file."""
        return cls(**json.loads(Path(path).read_text()))

    def write(self, path: Path) -> None:
        """As a file."""
        path.write_text(json.dumps(asdict(self)))

    def autocast(self) -> torch.autocast:
        """The precision of a forward."""
        on = self.precision == "bf16"
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=on)


@dataclass(frozen=True)
class Training:
    """How long and how fast."""

    epochs: int
    learning_rate: float
    weight_decay: float = 0.0
    seed: int = 0


def collate(examples: Sequence[Example], device: str) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs (rows, length), padded on the right with 0, and the labels (rows,)."""
    longest = max(len(ids) for ids, _ in examples)
    rows = [ids + [0] * (longest - len(ids)) for ids, _ in examples]
    mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in examples]
    inputs = {
        "input_ids": torch.tensor(rows, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
    return inputs, torch.tensor([label for _, label in examples], device=device)


def batches(
    examples: Sequence[Example], size: int, draw: random.Random
) -> Iterator[list[Example]]:
    """All examples once, in random batches of like length."""
    order = draw.sample(examples, len(examples))
    found = []
    for start in range(0, len(order), CHUNK * size):
        part = sorted(order[start : start + CHUNK * size], key=lambda example: len(example[0]))
        found += [part[i : i + size] for i in range(0, len(part), size)]
    draw.shuffle(found)
    yield from found


def stepper(
    module: nn.Module, setup: Setup, training: Training, steps: int
) -> Callable[[Sequence[Example]], float]:
    """A call that takes one step of AdamW and gives the loss; the rate rises, then falls to 0."""
    trained = [x for x in module.parameters() if x.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, training.learning_rate, weight_decay=training.weight_decay
    )
    warm_up = max(1, int(WARM_UP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, max(0.0, (steps - step) / max(1, steps - warm_up))),
    )

    def step(examples: Sequence[Example]) -> float:
        inputs, labels = collate(examples, setup.device)
        with setup.autocast():
            logits = module(**inputs).logits
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        if all(x.grad is None for x in trained):
            raise RuntimeError("no gradient reaches what is trained")
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def train(module: nn.Module, setup: Setup, training: Training) -> list[dict[str, float | None]]:
    """Train, and give loss and accuracy on dev after every epoch.

    A loss that is not finite ends it, with an accuracy of 0.
    """
    draw = random.Random(training.seed)
    count = -(-len(setup.train) // setup.batch_size)
    step = stepper(module, setup, training, training.epochs * count)
    history: list[dict[str, float | None]] = []
    for _ in range(training.epochs):
        module.train()
        losses = [step(batch) for batch in batches(setup.train, setup.batch_size, draw)]
        loss = sum(losses) / len(losses)
        if not isfinite(loss):
            return [*history, {"loss": None, "accuracy": 0.0}]
        history.append({"loss": loss, "accuracy": accuracy(module, setup)})
    return history


@torch.inference_mode()
def accuracy(module: nn.Module, setup: Setup) -> float:
    """The share of right answers on dev."""
    module.eval()
    right = 0
    for batch in batches(setup.dev, 2 * setup.batch_size, random.Random(0)):
        inputs, labels = collate(batch, setup.device)
        with setup.autocast():
            right += int((module(**inputs).logits.argmax(-1) == labels).sum())
    return right / len(setup.dev)


def by_task(tasks: Sequence[int]) -> dict[int, list[int]]:
    """The places of each task."""
    found: dict[int, list[int]] = {}
    for place, task in enumerate(tasks):
        found.setdefault(task, []).append(place)
    return found


def copy_task(module: nn.Module, source: str, target: str) -> list[Tensor]:
    """Give an adapter another one's parameters, which have its name in theirs.

    Returns:
        What was written.
    """
    parameters: dict[str, Any] = dict(module.named_parameters())
    written = []
    for name, value in parameters.items():
        parts = name.split(".")
        if source in parts:
            own = ".".join(target if part == source else part for part in parts)
            parameters[own].data.copy_(value.data)
            written.append(parameters[own].data)
    if not written:
        raise RuntimeError(f"no parameter is {source}'s")
    return written


def make_different(tensors: Iterable[Tensor], task: int) -> None:
    """Move a copy of task 0, so that every task has answers of its own."""
    draw = torch.Generator().manual_seed(task)
    for x in tensors:
        size = float(x.std()) if x.numel() > 1 else 0.0
        x += (torch.randn(x.shape, generator=draw) * max(size, 0.1) / 2).to(x)

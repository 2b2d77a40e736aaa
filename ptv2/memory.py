"""How much memory a training step takes, counted tensor by tensor without computing anything."""

import re
import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .batches import Batches, token_counts
from .tasks import Collator, Task
from .tasks.task import Feature
from .train_config import TrainConfig

ADAM_STATES = 2
"""AdamW keeps two numbers for each trained one."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step.

    Args:
        saved: what the forward leaves for the backward, parameters and inputs left out.
        peak: the most that is alive at once of what forward and backward allocate, gradients
            included; scratch inside an operator is not seen.
        fixed: parameters, and AdamW's state of the trained ones.
    """

    saved: int
    peak: int
    fixed: int

    @property
    def total(self) -> int:
        """What the step needs at its peak."""
        return self.fixed + self.peak


def step_memory(
    module: nn.Module, collator: Collator, features: list[Feature], autocast: torch.dtype | None
) -> StepMemory:
    """The memory of a training step on one batch, by fake tensors: no data, no time.

    Args:
        module: in training mode; returns an output with a loss.
        collator: makes the batch.
        features: of the batch.
        autocast: 16-bit dtype of the forward; None: the module's own.
    """
    parameters = list(module.parameters())
    device = parameters[0].device
    batch = collator(features)
    gradients = [parameter.grad for parameter in parameters]
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        # held, so that the forward meets these same ones
        weights = [fake.from_tensor(x) for x in (*parameters, *module.buffers())]
        inputs = {
            name: fake.from_tensor(x).to(device) if isinstance(x, Tensor) else x
            for name, x in batch.items()
        }
        cast = torch.autocast(device.type, autocast) if autocast else nullcontext()
        with Allocations(*weights, *tree_leaves(inputs)) as allocations:
            with cast:
                loss = module(**inputs).loss
            saved = allocations.alive
            loss.backward()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    own = sum(x.numel() * x.element_size() for x in (*parameters, *module.buffers()))
    return StepMemory(saved, allocations.peak, own + ADAM_STATES * trained)


_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def plan(
    module: nn.Module,
    task: Task,
    features: Iterable[Feature],
    config: TrainConfig,
    available: int | None = None,
) -> dict[str, Any]:
    """What a training step would need on the longest examples there are.

    Args:
        module: as `training.prepare_module` returns it.
        features: the training examples'.
        available: bytes for all of it. None: the largest batch is not asked for.

    Returns:
        `step` (StepMemory) of `batch` examples of `longest` tokens, and `largest`, the most
        examples of that length that fit (None if not asked for).

    Raises:
        ValueError: an example is longer than the token budget.
    """
    features = list(features)
    counts = token_counts(task, features, config.packing)
    Batches(counts, config.batch_size, config.token_budget)  # as training checks them
    longest = max(range(len(features)), key=counts.__getitem__)
    collator = Collator(task, config.packing)

    def step(examples: int) -> StepMemory:
        batch = [features[longest]] * examples
        return step_memory(module.train(), collator, batch, _AUTOCAST[config.precision])

    batch = config.batch_size
    if config.token_budget is not None:
        batch = config.token_budget // counts[longest]
    fits = None if available is None else largest(lambda n: step(n).total <= available)
    return {"step": step(batch), "batch": batch, "longest": counts[longest], "largest": fits}


def describe(module: nn.Module, found: dict[str, Any], available: int | None) -> dict[str, str]:
    """What `plan` found, in words."""
    trained = {
        part: sum(p.numel() for p in child.parameters() if p.requires_grad)
        for part, child in module.named_children()
    }
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    step: StepMemory = found["step"]
    rows = {
        "trained parameters": ", ".join(f"{n:,} {part}" for part, n in trained.items() if n),
        "frozen parameters": f"{frozen:,}",
        "a batch": f"{found['batch']} of the longest examples, {found['longest']} tokens each",
        "saved for the backward": f"{step.saved:,} bytes ({size(step.saved)})",
        "forward and backward": f"{size(step.peak)} at the peak",
        "weights and optimizer": size(step.fixed),
        "in all": size(step.total),
    }
    if available is not None:
        tokens = found["largest"] * found["longest"]
        rows["largest batch"] = (
            f"{found['largest']} such examples, {tokens:,} tokens, in {size(available)}"
        )
    return rows


def size(count: int) -> str:
    """Bytes as a person reads them, in MB of 1000 x 1000."""
    return f"{count / 1e6:,.1f} MB"


def parse_bytes(text: str, argument: str = "memory") -> int:
    """Bytes of a text such as 8GB, 512MB or 16GiB.

    Args:
        argument: that the text is of.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"([0-9.]+)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    try:
        if found is None:
            raise ValueError
        number, unit, binary = float(found[1]), found[2].upper(), found[3]
        return int(number * (1024 if binary else 1000) ** " KMGT".index(unit or " "))
    except (ValueError, OverflowError):
        raise ValueError(f"{argument}: expected a size such as 8GB, got {text!r}") from None


def device_memory(device: torch.device) -> int | None:
    """Bytes that a GPU has; None for a CPU."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number for which a falling condition holds, 0 if not even 1 does; where it
    holds beyond a million, a number from there."""
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
        if low > 10**6:
            return low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


class Allocations(TorchDispatchMode):
    """Adds up the memory of every tensor that an operator makes, while it lives.

    Args:
        known: tensors that are there before and do not count.
    """

    def __init__(self, *known: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self._known.update(x.untyped_storage() for x in known if isinstance(x, Tensor))

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self._add(x.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known.add(storage)
            size = storage.nbytes()
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.alive -= size

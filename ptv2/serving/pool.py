"""The prompts that lie on the device, within a budget of bytes."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from ..attention import LayerPrompts, PromptBatch
from ..families import Geometry
from ..layout import Packed
from .head_store import HeadStore
from .rows import NoRoomError, RowStore
from .served import Served


class Pool:
    """Prompts and heads on the device, the least recently used of which make room for others.

    One thread uses it; what a forward reads is written before it, on the same stream.

    Args:
        geometry: of the backbone.
        dtype: of the keys and values.
        budget: bytes of prompts and heads at most, with what is kept free for more of them. Where
            it is short of free memory, keys or values of one layer are there twice for a moment.
        by_call_order: as `PromptBatch` has it.
        alike: batches have keys, values, gates and bounds of its own in every layer, also where
            no task of theirs has any, so that code compiled for one is right for all.
    """

    def __init__(
        self,
        geometry: Geometry,
        dtype: torch.dtype,
        device: torch.device,
        budget: int,
        by_call_order: bool,
        alike: bool = False,
    ) -> None:
        shape = (geometry.heads, geometry.head_dim)
        self._layers = geometry.layers
        # the keys, values and gates of every layer
        kinds = [(shape, dtype), (shape, dtype), (shape[:1], torch.float32)] * geometry.layers
        self._prompts = RowStore(kinds, device)
        self.heads = HeadStore(geometry.hidden_size, device)
        self._places: OrderedDict[Served, range] = OrderedDict()  # the last is the last used
        self._by_call_order = by_call_order
        self._alike = alike
        self._device = device
        self.budget = budget
        self.used = 0

    @property
    def allocated(self) -> int:
        """Bytes of all prompts and heads, and of what is kept free for more of them."""
        return self._prompts.nbytes + self.heads.allocated

    def __contains__(self, task: Served) -> bool:
        return task in self._places

    def __len__(self) -> int:
        return len(self._places)

    def nbytes(self, task: Served) -> int:
        """What a task takes on the device."""
        return self._prompts.row_bytes * task.prompt_length + self.heads.nbytes(task)

    def place(self, tasks: Sequence[Served]) -> None:
        """Bring tasks to the device, in the place of others if there is no room.

        Raises:
            ValueError: they do not fit into the budget together.
        """
        wanted = dict.fromkeys(tasks)
        needed = sum(map(self.nbytes, wanted))
        if needed > self.budget:
            raise ValueError(
                f"budget: expected at least {needed} bytes for {len(wanted)} tasks at once, got "
                f"{self.budget}"
            )
        for task in wanted:
            if task in self._places:
                self._places.move_to_end(task)
        missing = [task for task in wanted if task not in self._places]
        more = sum(map(self.nbytes, missing))
        while self.used + more > self.budget:
            self.drop(next(iter(self._places)))
        for task in missing:
            try:
                self._place(task)
            except NoRoomError:  # there is, but not in one piece
                self._compact()
                self._place(task)

    def drop(self, task: Served) -> None:
        """Give a task's memory to others."""
        if task in self._places:
            self._prompts.give_back(self._places.pop(task))
            self.heads.drop(task)
            self.used -= self.nbytes(task)

    def _place(self, task: Served) -> None:
        room = self.budget - self.allocated - self.heads.nbytes(task)
        self._places[task] = self._prompts.take(task.prompt_length, room)
        self.used += self.nbytes(task)
        try:
            self.heads.place(task, self.budget - self.allocated)
            self._write(task)
        except BaseException:
            self.drop(task)
            raise

    def _compact(self) -> None:
        """Give up all memory that is not in use."""
        moved = self._prompts.compact(list(self._places.values()))
        self._places = OrderedDict(zip(self._places, moved, strict=True))
        self.heads.compact()

    def _write(self, task: Served) -> None:
        prompt = task.prompt
        places = list(prompt.layers)
        key_value = prompt.key_value.new_zeros(self._layers, *prompt.key_value.shape[1:])
        key_value[places] = prompt.key_value
        gate = key_value.new_ones(key_value[:, 0, ..., 0].shape)
        if prompt.gate is not None:
            gate[places] = prompt.gate
        key, value = key_value.transpose(2, 3).unbind(1)  # (layers, rows, heads, head_dim)
        by_layer = zip(key, value, gate.transpose(1, 2), strict=True)
        self._prompts.write(self._places[task], [part for parts in by_layer for part in parts])

    def batch(self, tasks: Sequence[Served], packed: Packed) -> PromptBatch:
        """The prompts of a packed batch.

        Args:
            tasks: of each sequence, all of them placed.
        """
        places = {task: place for place, task in enumerate(dict.fromkeys(tasks))}
        gated = self._alike or any(task.prompt.gate is not None for task in places)
        bounds: dict[tuple[bool, ...], Tensor] = {}
        pools: list[LayerPrompts | None] = []
        for layer in range(self._layers):
            present = tuple(layer in task.prompt.layers for task in places)
            if present not in bounds:
                bounds[present] = self._bounds(list(places), present)
            key, value, gate = self._prompts.tensors[3 * layer : 3 * layer + 3]
            own = bounds[present].clone() if self._alike else bounds[present]
            prompts = LayerPrompts(key, value, gate if gated else None, own)
            pools.append(prompts if self._alike or any(present) else None)
        ids = torch.tensor([places[task] for task in tasks], device=self._device)
        return PromptBatch(pools, ids, packed, self._by_call_order)

    def _bounds(self, tasks: Sequence[Served], present: Sequence[bool]) -> Tensor:
        """The rows of each task in a layer, (tasks, 2)."""
        rows = [
            self._places[task] if there else range(0)
            for task, there in zip(tasks, present, strict=True)
        ]
        bounds = [(own.start, own.stop) for own in rows]
        return torch.tensor(bounds, dtype=torch.int32, device=self._device)

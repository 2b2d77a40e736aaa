"""The heads that lie on the device, and all of a batch's applied at once.

Every head is cut into tiles of `TILE` outputs, and the states that heads of tokens see into groups
of `TILE` tokens, so that a batch of any tasks is two batched products, of pooled states and of
tokens, whose pieces are all of one size: what one row gets does not depend on the other rows.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import Pooling
from ..heads import POOLED
from ..layout import Packed
from .rows import RowStore
from .served import TILE, Served


class HeadStore:
    """Heads on the device.

    Args:
        hidden_size: of the backbone.
    """

    def __init__(self, hidden_size: int, device: torch.device) -> None:
        kinds = [((TILE, hidden_size), torch.float32), ((TILE,), torch.float32)]
        self._tiles = RowStore(kinds, device)
        self._places: dict[Served, tuple[range, ...]] = {}
        self._hidden_size = hidden_size
        self._device = device

    def nbytes(self, task: Served) -> int:
        """What a task's head takes."""
        return self._tiles.row_bytes * sum(len(layer.bias) for layer in task.layers)

    @property
    def allocated(self) -> int:
        """Bytes of all tiles, in use or not."""
        return self._tiles.nbytes

    def place(self, task: Served, room: int) -> None:
        """Bring a head to the device.

        Args:
            room: as `RowStore.take` has it.

        Raises:
            NoRoomError: as there.
        """
        rows = self._tiles.take(sum(len(layer.bias) for layer in task.layers), room)
        self._places[task] = _split(rows, task)
        for own, layer in zip(self._places[task], task.layers, strict=True):
            self._tiles.write(own, layer)

    def drop(self, task: Served) -> None:
        """Give a head's memory to others."""
        self._tiles.give_back(_whole(self._places.pop(task, ())))

    def compact(self) -> None:
        """Give up all tiles that are not in use."""
        moved = self._tiles.compact([_whole(places) for places in self._places.values()])
        self._places = {
            task: _split(rows, task) for task, rows in zip(self._places, moved, strict=True)
        }

    def apply(
        self, states: Tensor, packed: Packed, lengths: Sequence[int], tasks: Sequence[Served]
    ) -> list[Tensor]:
        """What each sequence's head makes of its states, in float32 on the CPU.

        Args:
            states: (1, tokens, hidden_size).
            lengths: of the sequences.
            tasks: of each sequence, all of them placed.

        Returns:
            (outputs,) of heads on pooled states, (length, outputs) of heads on tokens, and the
            pooled states themselves, (hidden_size,), where there is no head.
        """
        found: list[Tensor] = [torch.empty(0)] * len(tasks)
        tokens = [i for i, task in enumerate(tasks) if task.layers and not _pools(task)]
        pooled = [i for i in range(len(tasks)) if i not in set(tokens)]
        if pooled:
            vectors = _pool(states, packed, pooled, [tasks[i].config.pooling for i in pooled])
            with_head = [place for place, i in enumerate(pooled) if tasks[i].layers]
            groups = [_Group(tasks[pooled[place]], 1) for place in with_head]
            outputs = iter(self._through(vectors[with_head][:, None], groups))
            features = vectors.cpu() if len(with_head) < len(pooled) else vectors
            for place, i in enumerate(pooled):
                found[i] = next(outputs)[0] if tasks[i].layers else features[place]
        if tokens:
            groups = [_Group(tasks[i], -(-lengths[i] // TILE)) for i in tokens]
            grouped = _group_tokens(states, lengths, tokens)
            for i, logits in zip(tokens, self._through(grouped, groups), strict=True):
                found[i] = logits[: lengths[i]]
        return found

    def _through(self, states: Tensor, groups: Sequence["_Group"]) -> list[Tensor]:
        """The logits of every sequence, (its rows, outputs), on the CPU.

        Args:
            states: (groups of rows, rows, hidden_size); a sequence's groups lie together.
        """
        if not groups:
            return []
        states = self._through_hidden_layers(states, groups)
        linear = [self._places[group.task][-1] for group in groups for _ in range(group.groups)]
        outputs = self._product(states, list(range(len(states))), linear).cpu()
        found, start = [], 0
        for group in groups:
            tiles = len(self._places[group.task][-1])
            end = start + group.groups * tiles
            found.append(_joined(outputs[start:end], tiles)[:, : group.task.outputs])
            start = end
        return found

    def _through_hidden_layers(self, states: Tensor, groups: Sequence["_Group"]) -> Tensor:
        """The states after the hidden layers of those heads that have one."""
        tasks = [group.task for group in groups for _ in range(group.groups)]
        places = [place for place, task in enumerate(tasks) if len(task.layers) > 1]
        if not places:
            return states
        rows = [self._places[tasks[place]][0] for place in places]
        hidden = self._product(states, places, rows)
        hidden = _joined(hidden, len(rows[0])).unflatten(0, (len(places), -1))
        hidden = hidden[..., : self._hidden_size]
        bends = [tasks[place].config.head_activation == "tanh" for place in places]
        tanh = torch.tensor(bends, device=self._device)[:, None, None]
        index = torch.tensor(places, device=self._device)
        return states.index_copy(0, index, torch.where(tanh, hidden.tanh(), F.gelu(hidden)))

    def _product(self, states: Tensor, places: Sequence[int], rows: Sequence[range]) -> Tensor:
        """Groups of rows times tiles of outputs: (pairs, rows, TILE).

        Args:
            places: the groups that are wanted.
            rows: the tiles of each.
        """
        pairs = [(place, tile) for place, own in zip(places, rows, strict=True) for tile in own]
        group, tile = torch.tensor(pairs, device=self._device).unbind(1)
        weight, bias = self._tiles.tensors
        return torch.baddbmm(bias[tile][:, None], states[group], weight[tile].transpose(1, 2))


def _split(rows: range, task: Served) -> tuple[range, ...]:
    """The tiles of each layer of a head."""
    stops = list(accumulate((len(layer.bias) for layer in task.layers), initial=0))
    return tuple(rows[start:stop] for start, stop in pairwise(stops))


def _whole(places: Sequence[range]) -> range:
    """All tiles of a head, which lie together."""
    return range(places[0].start, places[-1].stop) if places else range(0)


class _Group(NamedTuple):
    """A sequence's head, and in how many groups its rows lie."""

    task: Served
    groups: int


def _pools(task: Served) -> bool:
    return task.config.task in POOLED


def _pool(
    states: Tensor, packed: Packed, sequences: Sequence[int], how: Sequence[Pooling]
) -> Tensor:
    """The pooled state of each of some sequences, (sequences, hidden_size), float32."""
    kinds = [kind for kind in get_args(Pooling) if kind in how]
    found = torch.stack([packed.pool(states, kind) for kind in kinds]).float()
    chosen = [(kinds.index(kind), i) for kind, i in zip(how, sequences, strict=True)]
    kind, sequence = torch.tensor(chosen, device=states.device).unbind(1)
    return found[kind, sequence]


def _group_tokens(states: Tensor, lengths: Sequence[int], sequences: Sequence[int]) -> Tensor:
    """The tokens of some sequences in groups of `TILE`, (groups, TILE, hidden_size), float32.

    The last group of a sequence is filled up with its last token.
    """
    ends = torch.tensor(lengths).cumsum(0).tolist()
    index = [
        torch.arange(ends[i] - lengths[i], ends[i] - lengths[i] + -(-lengths[i] // TILE) * TILE)
        .clamp(max=ends[i] - 1)
        .view(-1, TILE)
        for i in sequences
    ]
    return states[0][torch.cat(index).to(states.device)].float()


def _joined(outputs: Tensor, tiles: int) -> Tensor:
    """(groups * tiles, rows, TILE) -> (groups * rows, tiles * TILE)."""
    rows = outputs.shape[1]
    return outputs.view(-1, tiles, rows, TILE).transpose(1, 2).reshape(-1, tiles * TILE)

"""How the reference takes a batch apart: sequences of one prompt and length, as rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import Inputs, Options
from .philox import OWN_COLUMN_OFFSET, keep_mask


@dataclass(frozen=True)
class Place:
    """Where some sequences of one length lie in a (batch, heads, length, ...) tensor."""

    entries: Tensor | slice  # padded: of the batch
    tokens: Tensor | None  # packed: (rows, length)

    def take(self, x: Tensor) -> Tensor:
        """(rows, heads, length, ...)."""
        return x[self.entries] if self.tokens is None else x[0][:, self.tokens].transpose(0, 1)

    def put(self, x: Tensor, rows: Tensor) -> None:
        """Write (rows, heads, length, ...) into x."""
        if self.tokens is None:
            x[self.entries] = rows
        else:
            x[0][:, self.tokens] = rows.transpose(0, 1)


class Rows(NamedTuple):
    """The sequences of one length that share one prompt, in computation precision."""

    place: Place
    start: int  # the prompt's rows of the pool: [start, end)
    end: int
    query: Tensor  # (rows, heads, length, head_dim)
    key: Tensor
    value: Tensor
    prefix_key: Tensor  # (heads, prompt_length, head_dim)
    prefix_value: Tensor
    log_gate: Tensor | None  # (heads, 1, prompt_length), -inf where the gate is 0
    visible: Tensor | None  # broadcasts to (rows, heads, length, length); None: everything
    prefix_keep: Tensor | None  # (rows, heads, length, prompt_length), 0 or 1 / keep rate
    own_keep: Tensor | None  # (rows, heads, length, length)
    positions: "Positions | None"


class Positions(NamedTuple):
    """The position terms between the rows and columns of one length."""

    key: Tensor | None  # (heads, buckets, head_dim)
    query: Tensor | None
    bucket: Tensor  # (length, length), of row and column

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """(rows, heads, length, length), without the scale."""
        rows, heads, length, _ = query.shape
        total = query.new_zeros(rows, heads, length, length)
        index = self.bucket.expand(rows, heads, -1, -1)
        if self.key is not None:
            total += (query @ self.key.transpose(-1, -2)).gather(-1, index)
        if self.query is not None:
            of_columns = (key @ self.query.transpose(-1, -2)).gather(-1, index.transpose(-1, -2))
            total += of_columns.transpose(-1, -2)
        return total

    def query_gradient(self, score_gradient: Tensor) -> Tensor | float:
        """What the scores' gradient (rows, heads, length, length) gives to the queries."""
        return 0.0 if self.key is None else self._summed(score_gradient, self.bucket) @ self.key

    def key_gradient(self, score_gradient: Tensor) -> Tensor | float:
        """What it gives to the keys."""
        if self.query is None:
            return 0.0
        return self._summed(score_gradient.transpose(-1, -2), self.bucket.T) @ self.query

    def _summed(self, gradient: Tensor, bucket: Tensor) -> Tensor:
        """The gradient summed over the places of each bucket: (rows, heads, length, buckets)."""
        table = self.key if self.key is not None else self.query
        assert table is not None
        sums = gradient.new_zeros(*gradient.shape[:3], table.shape[1])
        return sums.scatter_add_(-1, bucket.expand_as(gradient), gradient)


def precision_of(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def rows_by_prompt(inputs: Inputs, options: Options) -> Iterator[Rows]:
    """Yield the sequences group by group, prompts in ascending order of their id."""
    query, key, value, prefix_key, prefix_value, prefix_gate, *_ = inputs
    prompt_bounds, key_mask, seed = inputs.prompt_bounds, inputs.key_mask, inputs.seed
    precision, device = precision_of(query), query.device
    if key_mask is not None:
        query = finite_where_masked(query, key_mask)
        hidden = ~key_mask[:, None, :, None]
        key, value = (x if x is None else x.masked_fill(hidden, 0) for x in (key, value))
    pool_rows = 0 if prefix_key is None else len(prefix_key)
    bounds = [[0, pool_rows]] if prompt_bounds is None else prompt_bounds.tolist()
    for (prompt, length), members in sorted(_groups(inputs).items()):
        start, end = (0, 0) if prompt < 0 or prefix_key is None else bounds[prompt]
        place = _place(inputs, members, length)
        prefix_keep = own_keep = None
        if seed is not None:
            threshold = round(options.dropout_p * 65536)
            keep_scale = 65536 / max(65536 - threshold, 1)
            keep = partial(keep_mask, seed, threshold, members, query.shape[1], length)
            prefix_keep = keep(0, end - start).to(precision).mul_(keep_scale)
            own_keep = keep(OWN_COLUMN_OFFSET, length).to(precision).mul_(keep_scale)
        own = [x if x is None else place.take(x).to(precision) for x in (query, key, value)]
        pool = [
            x if x is None else x[start:end].transpose(0, 1).to(precision)
            for x in (prefix_key, prefix_value)
        ]
        log_gate = None
        if prefix_gate is not None:
            log_gate = prefix_gate[start:end].to(precision).log().transpose(0, 1)[:, None]
        visible = _visible(key_mask, place, length, options, device)
        matrices = (own[0], own[1], own[2], pool[0], pool[1], log_gate)
        positions = _positions(inputs, length, precision)
        yield Rows(place, start, end, *matrices, visible, prefix_keep, own_keep, positions)


def _groups(inputs: Inputs) -> dict[tuple[int, int], list[int]]:
    """The sequences of each (prompt, length), without those that are empty."""
    count, cu_seqlens = inputs.sequences, inputs.cu_seqlens
    ids = [0] * count if inputs.prompt_ids is None else inputs.prompt_ids.tolist()
    lengths = [inputs.query.shape[2]] * count
    if cu_seqlens is not None:
        lengths = [end - start for start, end in pairwise(cu_seqlens.tolist())]
    groups: dict[tuple[int, int], list[int]] = {}
    for sequence, group in enumerate(zip(ids, lengths, strict=True)):
        if group[1] > 0:
            groups.setdefault(group, []).append(sequence)
    return groups


def _place(inputs: Inputs, members: list[int], length: int) -> Place:
    """Where the members are, all of one length."""
    device = inputs.query.device
    if inputs.cu_seqlens is not None:
        starts = inputs.cu_seqlens[torch.tensor(members, device=device)]
        return Place(slice(None), starts[:, None] + torch.arange(length, device=device))
    if len(members) == inputs.sequences:
        return Place(slice(None), None)
    return Place(torch.tensor(members, device=device), None)


def finite_where_masked(x: Tensor, key_mask: Tensor) -> Tensor:
    """Replace non-finite elements of x (batch, heads, length, head_dim) at masked places by 0."""
    return torch.where(key_mask[:, None, :, None] | x.isfinite(), x, 0)


def _visible(
    key_mask: Tensor | None, place: Place, length: int, options: Options, device: torch.device
) -> Tensor | None:
    """Which own columns each row sees; broadcasts to (rows, heads, length, length)."""
    visible = None if key_mask is None else place.take(key_mask[:, None])[:, :, None, :]
    if options.causal or options.window is not None:
        position = torch.arange(length, device=device)
        distance = position[:, None] - position  # row - column
        near = distance.abs() <= (length if options.window is None else options.window)
        near = near & (distance >= 0) if options.causal else near
        visible = near if visible is None else visible & near
    return visible


def _positions(inputs: Inputs, length: int, precision: torch.dtype) -> Positions | None:
    bucket = inputs.position_bucket
    if bucket is None:
        return None
    place = torch.arange(length, device=bucket.device)
    distance = place[:, None] - place  # row - column
    tables = [
        x if x is None else x.to(precision).transpose(0, 1)
        for x in (inputs.position_key, inputs.position_query)
    ]
    return Positions(tables[0], tables[1], bucket.long()[distance + len(bucket) // 2])

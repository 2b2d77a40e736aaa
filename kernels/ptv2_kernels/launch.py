"""What the launches of one call share: arguments as kernels take them, and the size of grids."""

from typing import Any

import torch
from torch import Tensor

from .arguments import Inputs, Options
from .primitives import LOG2_E
from .tiling import padded_head_dim

PROGRAMS = 256
"""About how many programs a sum over the batch is cut into, whatever the batch's size."""


class Launch:
    """The arguments of one call that every kernel takes in the same form.

    Lengths and counts stand alone, not in tuples: so no kernel is specialised on them.
    """

    def __init__(self, inputs: Inputs, options: Options) -> None:
        self.inputs, self.options = inputs, options
        _, self.heads, self.length, self.head_dim = inputs.query.shape
        self.sequences = inputs.sequences
        self.pool_rows = 0 if inputs.prefix_key is None else len(inputs.prefix_key)
        self.packed = inputs.cu_seqlens is not None
        self.cu_seqlens = contiguous(inputs.cu_seqlens)
        self.counts = (self.sequences, self.heads, self.length)
        self.prompts = (contiguous(inputs.prompt_ids), contiguous(inputs.prompt_bounds))
        self.gate = contiguous(inputs.prefix_gate)
        mask = contiguous(inputs.key_mask)
        self.mask = None if mask is None else mask.view(torch.uint8)
        self.dropout = dropout_argument(options.dropout_p, inputs.seed)
        self.positions = self._positions()
        self.score_scale = options.scale * LOG2_E.value
        window = options.window
        self.window = None if window is None else min(window, self.length)
        self.constants = {
            "PRECISION": dot_precision(inputs.query.dtype),
            "HEAD_DIM": self.head_dim,
            "BLOCK_D": padded_head_dim(self.head_dim),
        }

    @property
    def matrices(self) -> list[tuple[Any, ...] | None]:
        """Query, key, value, prefix_key, prefix_value."""
        return [self.matrix(x) for x in self.inputs[:5]]

    def matrix(self, x: Tensor | None) -> tuple[Any, ...] | None:
        """(batch, heads, length, head_dim) or a pool, (rows, heads, head_dim), with strides."""
        if x is None:
            return None
        strides = x.stride()
        if len(strides) == 3:
            return x, 0, strides[1], strides[0]
        return x, 0 if self.packed else strides[0], strides[1], strides[2]

    def _positions(self) -> tuple[Any, ...] | None:
        bucket = contiguous(self.inputs.position_bucket)
        if bucket is None:
            return None
        tables = self.inputs.position_key, self.inputs.position_query
        return *map(self.matrix, tables), bucket, len(bucket) // 2

    def blocks(self, size: int) -> int:
        """Programs that own `size` rows of a sequence and head each, as `locate_block` counts."""
        if self.packed:
            return (self.length // size + self.sequences) * self.heads
        return ceil_div(self.length, size) * self.sequences * self.heads

    def splits(self, tasks: int) -> int:
        """Into how many parts the batch is cut, each for `tasks` programs; they differ by one."""
        per_split = ceil_div(self.sequences, ceil_div(PROGRAMS, tasks))
        return ceil_div(self.sequences, per_split)


def ceil_div(count: int, size: int) -> int:
    """How many parts of a size it takes."""
    return -(-count // size)


def contiguous(x: Tensor | None) -> Tensor | None:
    """The same in contiguous memory, if it is there."""
    return None if x is None else x.contiguous()


def dropout_argument(dropout_p: float, seed: Tensor | None) -> tuple[Any, ...]:
    """(seed, threshold, keep scale): a 16-bit random number below the threshold drops."""
    threshold = round(dropout_p * 65536)
    return seed, threshold, 65536 / max(65536 - threshold, 1)


def dot_precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies fp32: in TF32 only if torch may, else as three TF32 products."""
    # allow_tf32 would say the same, but raises for who sets the newer fp32_precision.
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "tf32x3"
    return "tf32"

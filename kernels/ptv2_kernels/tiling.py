"""Which tile each kernel runs with: conservative defaults that depend on no sequence length."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Tile:
    """Rows and columns of a score tile, and how the kernel is compiled."""

    block_m: int  # query rows; a power of two, at least 16
    block_n: int  # keys of the sequence; a power of two, at least 16
    block_p: int  # keys of the prompt; a power of two, at least 16
    num_warps: int
    num_stages: int  # of the loop over the sequence; loops over prompts are not pipelined

    @property
    def launch_options(self) -> dict[str, Any]:
        """What a launch passes to the compiler, beside its constants."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,  # the default of triton until 3.10
        }


@dataclass(frozen=True)
class Tiles:
    """A tile for each kernel; prefix_grad does not use block_n, key_value_grad not block_p."""

    forward: Tile
    query_grad: Tile
    key_value_grad: Tile
    prefix_grad: Tile


_override: ContextVar[Tiles | None] = ContextVar("tiles", default=None)


@contextmanager
def override_tiles(tiles: Tiles) -> Iterator[None]:
    """Run every launch inside the block with these tiles."""
    token = _override.set(tiles)
    try:
        yield
    finally:
        _override.reset(token)


def padded_head_dim(head_dim: int) -> int:
    """The width of a tile: the next power of two that a matrix instruction takes."""
    return max(16, 1 << (head_dim - 1).bit_length())


# By size of the dtype and padded head_dim: what compiles for sm_80, sm_90 and sm_100 with dropout
# and a mask, does not spill (float32 at 128: hardly), and shares at most 99 KiB of memory.
_LARGE = Tile(64, 64, 32, num_warps=4, num_stages=2)
_LARGE_8 = Tile(64, 64, 32, num_warps=8, num_stages=2)
_SHORT = Tile(32, 64, 32, num_warps=4, num_stages=2)
_NARROW = Tile(64, 32, 32, num_warps=4, num_stages=2)
_SMALL = Tile(32, 32, 32, num_warps=4, num_stages=2)
_SMALL_8 = Tile(32, 32, 32, num_warps=8, num_stages=2)
_FLAT = Tile(16, 32, 32, num_warps=4, num_stages=2)
_TINY = Tile(16, 16, 16, num_warps=4, num_stages=1)
_TINY_8 = Tile(16, 16, 16, num_warps=8, num_stages=1)
_TILES = {
    (2, 16): Tiles(_LARGE, _LARGE, _LARGE, _LARGE_8),
    (2, 32): Tiles(_LARGE, _LARGE, _LARGE, _LARGE_8),
    (2, 64): Tiles(_LARGE, _NARROW, _SHORT, _LARGE_8),
    (2, 128): Tiles(_LARGE, _NARROW, _SMALL, _SMALL_8),
    (4, 16): Tiles(_SMALL, _FLAT, _TINY, _TINY),
    (4, 32): Tiles(_SMALL, _FLAT, _TINY, _TINY),
    (4, 64): Tiles(_SMALL, _TINY, _TINY, _TINY_8),
    (4, 128): Tiles(_FLAT, _TINY_8, _TINY_8, _TINY_8),
}


def select_tiles(head_dim: int, dtype: torch.dtype, dropout: bool) -> Tiles:
    """The tiles for a head size and the queries' dtype, with or without dropout."""
    tiles = _override.get()
    if tiles is not None:
        return tiles
    key = dtype.itemsize, padded_head_dim(head_dim)
    tiles = _TILES[key]
    if dropout and key == (2, 64):
        return replace(tiles, forward=_NARROW)  # the larger tile would spill on sm_80
    return tiles

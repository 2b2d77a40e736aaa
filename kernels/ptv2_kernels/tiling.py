"""Which tile each kernel runs with: data in `tiles/*.json`, one file per GPU or architecture.

A choice depends on the head size, the size of the dtype and whether there is dropout, on no
length: so a new length compiles nothing. A file named after a GPU was measured on it; `sm_80.json`
and its like hold what compiles for every GPU of an architecture without spilling registers.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
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
    max_registers: int | None = None  # given where the compiler would spill to run more programs

    @property
    def launch_options(self) -> dict[str, Any]:
        """What a launch passes to the compiler, beside its constants."""
        limit = {} if self.max_registers is None else {"maxnreg": self.max_registers}
        return limit | {
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
    short_grad: Tile | None  # of the one kernel for sequences of at most block_m rows, if it pays

    def with_positions(self, head_dim: int, dtype: torch.dtype) -> "Tiles":
        """The same where scores of positions are added, whose products take registers."""
        rows = 32 if head_dim <= 64 and dtype.itemsize == 2 else 16
        sizes: dict[str, Any] = {"num_warps": 4, "num_stages": 1, "max_registers": 255}
        by_rows = {"block_m": rows, "block_n": 16, "block_p": rows, **sizes}
        return replace(
            self,
            forward=replace(self.forward, **by_rows),
            query_grad=replace(self.query_grad, **by_rows),
            key_value_grad=replace(self.key_value_grad, block_m=16, block_n=rows, **sizes),
            short_grad=None,
        )

    def short_grad_for(self, max_length: int) -> Tile | None:
        """The tile of the kernel for short sequences, if these are short enough."""
        if self.short_grad is None or max_length > self.short_grad.block_m:
            return None
        return self.short_grad


_override: ContextVar[Tiles | None] = ContextVar("tiles", default=None)


@contextmanager
def override_tiles(tiles: Tiles) -> Iterator[None]:
    """Run every launch inside the block with these tiles.

    Those of this thread: on a GPU autograd launches a backward from a thread of its own, which
    takes the usual ones. `launch_backward` takes these.
    """
    token = _override.set(tiles)
    try:
        yield
    finally:
        _override.reset(token)


def padded_head_dim(head_dim: int) -> int:
    """The width of a tile: the next power of two that a matrix instruction takes."""
    return max(16, 1 << (head_dim - 1).bit_length())


def select_tiles(head_dim: int, dtype: torch.dtype, dropout: bool, device: torch.device) -> Tiles:
    """The tiles for a head size and the queries' dtype, with or without dropout, on a device."""
    return _override.get() or _shipped_tiles(head_dim, dtype, dropout, device)


@cache
def _shipped_tiles(
    head_dim: int, dtype: torch.dtype, dropout: bool, device: torch.device
) -> Tiles:
    name = architecture(device)
    if device.type == "cuda":
        gpu = device_slug(torch.cuda.get_device_name(device))
        name = gpu if (files(__package__) / "tiles" / f"{gpu}.json").is_file() else name
    return shipped_tiles(name, head_dim, dtype, dropout)


def shipped_tiles(name: str, head_dim: int, dtype: torch.dtype, dropout: bool) -> Tiles:
    """The tiles of a file for a head size; one that a tile pads takes no short_grad.

    There the masks of the padding leave that kernel too few registers.
    """
    tiles = read_tiles(name, tile_key(head_dim, dtype, dropout))
    return tiles if head_dim == padded_head_dim(head_dim) else replace(tiles, short_grad=None)


def tile_key(head_dim: int, dtype: torch.dtype, dropout: bool) -> str:
    """What a file's tiles are listed under; the interpreter's float64 counts as float32."""
    bits = 16 if dtype.itemsize == 2 else 32
    return f"{bits}-bit, head {padded_head_dim(head_dim)}" + (", dropout" if dropout else "")


def read_tiles(name: str, key: str) -> Tiles:
    """The tiles of a file under one key."""
    entry = json.loads((files(__package__) / "tiles" / f"{name}.json").read_text())["tiles"][key]
    chosen: Any = {kernel: None if x is None else Tile(**x) for kernel, x in entry.items()}
    return Tiles(**chosen)


def device_slug(device_name: str) -> str:
    """A GPU's name as its file has it: "NVIDIA H100 80GB HBM3" -> "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")


def architecture(device: torch.device) -> str:
    """The file for every GPU of an architecture; where there is none, that of the oldest."""
    if device.type != "cuda":
        return "sm_80"  # the interpreter's
    major, _ = torch.cuda.get_device_capability(device)
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")

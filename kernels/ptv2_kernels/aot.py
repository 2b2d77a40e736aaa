"""Compile every kernel variant that can be launched, at its shipped tile, without a GPU.

`python -m ptv2_kernels.aot [--fast] [--arch 80 90 100]` prints what each kernel needs and fails if
one must not be shipped: it spills registers, does not fit the memory of its processor, or
multiplies 16-bit matrices without the matrix instructions of its architecture. The launchers
themselves run, on tiny CPU tensors, and what they would launch is compiled instead: the table
shows the very specialisations that a GPU would get. TRITON_INTERPRET must not be set.
"""

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from .arguments import Inputs, Needs, Options
from .backward import launch_backward
from .forward import launch_forward
from .tiling import Tiles, override_tiles, shipped_tiles


@dataclass(frozen=True)
class Architecture:
    """What limits a kernel, from NVIDIA's programming guide, and its 16-bit matrix instruction."""

    shared_per_program: int  # bytes
    shared_per_processor: int
    threads_per_processor: int
    matrix_instruction: str  # as the disassembler names it

    registers_per_processor: int = 65536
    tensor_memory: int = 512  # columns; only sm_100 has any


ARCHITECTURES = {
    # Its tiles also serve 8.6, 8.9 and 12.0, where a program has 99 KiB and not 163.
    80: Architecture(99 * 1024, 164 * 1024, 2048, "HMMA"),
    90: Architecture(227 * 1024, 228 * 1024, 2048, "HGMMA"),
    100: Architecture(227 * 1024, 228 * 1024, 2048, "UTCHMMA"),
}
_MATRIX_INSTRUCTION = re.compile(r"\b(HGMMA|HMMA|UTCHMMA|UTCQMMA|IMMA|DMMA)\b")
# Bytes that may spill, 0 if not named here: three TF32 products of heads of 128, or with scores of
# positions of heads of 64, do not fit the registers at any tile.
SPILL_LIMIT = {(torch.float32, 128, False): 160, (torch.float32, 64, True): 160}
ALL = Needs(True, True, True, True, True)
SHORT, LONG = 48, 500  # lengths that take the one or the other backward


@dataclass(frozen=True)
class Variant:
    """One combination of inputs and options, as a user can call it."""

    dtype: torch.dtype
    head_dim: int
    packed: bool = False
    masked: bool = False
    dropout: bool = False
    causal: bool = False
    window: bool = False
    shared: bool = False  # one prompt for all: no prompt_ids, no prompt_bounds
    float32_pool: bool = False  # under 16-bit activations
    grad_lse: bool = False
    gated: bool = False
    positions: bool = False
    needs: Needs = ALL

    def __str__(self) -> str:
        names = (
            *("packed", "masked", "dropout", "causal", "window", "shared"),
            *("float32_pool", "grad_lse", "gated", "positions"),
        )
        flags = [name for name in names if getattr(self, name)]
        if self.needs != ALL:
            flags.append("needs" + "".join(str(i) for i, need in enumerate(self.needs) if need))
        return " ".join([str(self.dtype).removeprefix("torch."), str(self.head_dim), *flags])

    def tiles(self, arch: int) -> Tiles:
        """The shipped tiles."""
        return shipped_tiles(f"sm_{arch}", self.head_dim, self.dtype, self.dropout)


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs."""

    kernel: str
    arch: int
    variant: Variant
    warps: int
    registers: int  # per thread
    spilled: int  # bytes of stack per thread
    shared: int  # bytes
    tensor_memory: int  # columns
    matrix_instructions: dict[str, int]  # in the machine code

    @property
    def resident(self) -> int:
        """How many programs one processor holds at a time."""
        limits = ARCHITECTURES[self.arch]
        per_warp = -(-self.registers * 32 // 256) * 256  # handed out in units of 256
        return min(
            limits.registers_per_processor // (per_warp * self.warps),
            limits.shared_per_processor // (self.shared + 1024),
            limits.threads_per_processor // (32 * self.warps),
            limits.tensor_memory // max(self.tensor_memory, 1),
        )

    @property
    def problems(self) -> str:
        """Why this kernel must not be shipped; empty if it may."""
        limits = ARCHITECTURES[self.arch]
        found = []
        variant = self.variant
        kind = (variant.dtype, variant.head_dim, variant.positions)
        if self.spilled > SPILL_LIMIT.get(kind, 0):
            found.append("spills")
        if self.shared > limits.shared_per_program:
            found.append("too much shared memory")
        if self.tensor_memory > limits.tensor_memory:
            found.append("too much tensor memory")
        multiplies = "delta" not in self.kernel
        if multiplies and not self.matrix_instructions:
            found.append("no matrix instructions")
        if (
            multiplies
            and self.variant.dtype.itemsize == 2
            and not self.variant.positions  # their tiles of 32 rows take the older one
            and limits.matrix_instruction not in self.matrix_instructions
        ):
            found.append(f"no {limits.matrix_instruction}")
        return ", ".join(found)


def variants(fast: bool = False) -> list[Variant]:
    """A covering set: every dtype and padded head size, and every option at the usual ones."""
    half, usual = torch.float16, Variant(torch.float16, 64, masked=True, dropout=True)
    if fast:
        return [usual]
    sizes = itertools.product((half, torch.bfloat16, torch.float32), (16, 32, 64, 128))
    needed = ((3, 4), (0, 1, 3), (2, 4), (0,), (1,), (3,), (4,))
    return [
        *(
            Variant(*size, masked=True, dropout=dropout)
            for size in sizes
            for dropout in (False, True)
        ),
        Variant(half, 64),
        Variant(half, 64, shared=True),
        Variant(half, 64, shared=True, dropout=True),
        Variant(half, 64, packed=True),
        Variant(half, 64, packed=True, dropout=True),
        Variant(half, 64, packed=True, causal=True),
        Variant(half, 128, packed=True),
        Variant(torch.float32, 64, packed=True),
        Variant(half, 64, causal=True),
        Variant(half, 64, masked=True, causal=True, dropout=True),
        Variant(half, 64, masked=True, window=True, dropout=True),
        Variant(half, 64, masked=True, grad_lse=True),
        Variant(torch.bfloat16, 64, masked=True, float32_pool=True),
        Variant(torch.bfloat16, 64, masked=True, float32_pool=True, dropout=True),
        Variant(torch.bfloat16, 64, shared=True, float32_pool=True, dropout=True),
        *(
            Variant(dtype, head_dim, dropout=True, gated=True, shared=shared, float32_pool=shared)
            for dtype, head_dim in ((half, 32), (half, 64), (half, 128), (torch.float32, 64))
            for shared in (False, True)
        ),
        *(
            Variant(dtype, head_dim, masked=True, dropout=dropout, positions=True)
            for dtype, head_dim in ((half, 64), (half, 32), (torch.float32, 64))
            for dropout in (False, True)
        ),
        *(
            Variant(half, 64, masked=True, needs=Needs(*(i in indices for i in range(5))))
            for indices in needed
        ),
        *(
            Variant(half, 64, shared=True, needs=Needs(*(i in indices for i in range(5))))
            for indices in needed[:3]
        ),
        *(Variant(half, head_dim, masked=True, dropout=True) for head_dim in (24, 80, 96)),
    ]


class _OfflineDriver:
    """Stands in for a GPU of one architecture, as far as compiling needs one."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # kernels are cached by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def _compile_only(arch: int) -> Iterator[list[Any]]:
    """Launches inside the block only compile, for `arch`; yields the list they are added to."""
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_kernel(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        compiled.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    triton.runtime.driver.set_active(_OfflineDriver(arch))
    with mock.patch.object(JITFunction, "run", compile_kernel):
        yield compiled


def compile_variant(
    variant: Variant, arch: int, length: int, *, batch: int = 8, prompt_length: int = 20
) -> list[Any]:
    """The compiled kernels of one call: forward, and backward with the needed gradients."""
    heads = 2
    rows = (1, batch * length) if variant.packed else (batch, length)
    pool = (prompt_length, heads, variant.head_dim)
    pool_dtype = torch.float32 if variant.float32_pool else variant.dtype
    cu_seqlens = torch.arange(0, (batch + 1) * length, length, dtype=torch.int32)
    matrix = torch.zeros(*rows, heads, variant.head_dim, dtype=variant.dtype).transpose(1, 2)
    prefix = torch.zeros(pool, dtype=pool_dtype)
    table = torch.zeros(512, heads, variant.head_dim, dtype=variant.dtype)
    bucket = torch.zeros(2 * length - 1, dtype=torch.int32)
    inputs = Inputs(
        *(matrix, matrix, matrix, prefix, prefix),
        torch.zeros(pool[:2], dtype=pool_dtype) if variant.gated else None,
        None if variant.shared else torch.zeros(batch, dtype=torch.int64),
        None if variant.shared else torch.zeros(1, 2, dtype=torch.int32),
        torch.ones(rows, dtype=torch.bool) if variant.masked else None,
        cu_seqlens if variant.packed else None,
        torch.zeros(1, dtype=torch.int64) if variant.dropout else None,
        *((table, table, bucket) if variant.positions else ()),
    )
    dropout_p, window = 0.1 if variant.dropout else 0.0, 8 if variant.window else None
    options = Options(dropout_p, 0.125, variant.causal, window, length)
    with _compile_only(arch) as compiled, override_tiles(variant.tiles(arch)):
        out, lse = launch_forward(inputs, options)
        grad_lse = torch.zeros_like(lse) if variant.grad_lse else None
        needs = variant.needs._replace(prefix_gate=variant.gated)
        launch_backward(torch.zeros_like(out), grad_lse, inputs, out, lse, needs, options)
    return compiled


def variant_resources(variant: Variant, arch: int) -> list[Resources]:
    """Compile one variant, for both backwards, and measure its kernels."""
    kernels = []
    for length in (SHORT, LONG):
        kernels += compile_variant(variant, arch, length)
    distinct = {id(kernel): kernel for kernel in kernels}
    return [_resources(kernel, variant, arch) for kernel in distinct.values()]


def _resources(kernel: Any, variant: Variant, arch: int) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage = _output(triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin.name)
        code = _output(triton.knobs.nvidia.nvdisasm.path, "-c", cubin.name)
    registers, stack = (int(x) for x in re.findall(r"(?:REG|STACK):(\d+)", usage))
    found = _MATRIX_INSTRUCTION.findall(code)
    return Resources(
        kernel=kernel.metadata.name.strip("_"),
        arch=arch,
        variant=variant,
        warps=kernel.metadata.num_warps,
        registers=registers,
        spilled=stack,
        shared=kernel.metadata.shared,
        tensor_memory=getattr(kernel.metadata, "tmem_size", None) or 0,
        matrix_instructions={name: found.count(name) for name in sorted(set(found))},
    )


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Print the table; exit with 1 if a kernel has a problem."""
    parser = argparse.ArgumentParser(description="Compile the kernels without a GPU.")
    parser.add_argument("--fast", action="store_true", help="one variant only")
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=None)
    options = parser.parse_args()
    row = "{:21} {:6} {:42} {:>9} {:>7} {:>6} {:>6} {:>8}  {:18} {}"
    names = ("registers", "spilled", "shared", "tensor", "resident", "matrix", "problems")
    print(f"triton {triton.__version__}")
    print(row.format("kernel", "arch", "variant", *names))
    jobs = list(itertools.product(variants(options.fast), options.arch or ARCHITECTURES))
    count = bad = 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for resources in pool.map(variant_resources, *zip(*jobs, strict=True)):
            for r in resources:
                matrix = " ".join(f"{name}:{n}" for name, n in r.matrix_instructions.items())
                needs = (r.registers, r.spilled, r.shared, r.tensor_memory, r.resident)
                line = (r.kernel, f"sm_{r.arch}", str(r.variant), *needs, matrix, r.problems)
                print(row.format(*line), flush=True)
                count, bad = count + 1, bad + bool(r.problems)
    print(f"{count} kernels, {bad} with problems")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()

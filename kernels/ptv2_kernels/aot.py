"""Compile every shipped kernel variant ahead of time, without a GPU, and report what it needs.

`python -m ptv2_kernels.aot [--fast] [--arch 80 90 100]` prints a table and fails if a kernel must
not be shipped. The launchers themselves run, on tiny CPU tensors, and what they would launch is
compiled instead: the table shows the very specialisations that a GPU would get. TRITON_INTERPRET
must not be set.
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

from .backward import launch_backward
from .forward import launch_forward

ARCHS = (80, 90, 100)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# Bytes per thread that may spill, 32 if not named here: ptxas spills a few registers where that
# lets one more block run. At float32 and head size 128 even the smallest tile spills.
STACK_LIMIT = {(torch.float32, 128): 128}
TENSOR_MEMORY_LIMIT = 512  # columns, on sm_100; a kernel that needs more compiles, to a trap
_MATRIX_INSTRUCTION = re.compile(r"\b(?:wgmma\.mma_async|tcgen05\.mma|mma)\.")


@dataclass(frozen=True)
class Variant:
    """One combination of inputs and options, as a user can call it."""

    dtype: torch.dtype
    head_dim: int
    masked: bool = True
    dropout: bool = False
    causal: bool = False
    window: bool = False
    shared: bool = False  # one prompt for all: no prompt_ids, no prompt_bounds
    float32_pool: bool = False  # under 16-bit activations
    needs: tuple[bool, ...] = (True,) * 5

    def __str__(self) -> str:
        names = ("masked", "dropout", "causal", "window", "shared", "float32_pool")
        flags = [name for name in names if getattr(self, name)]
        if not all(self.needs):
            flags.append("needs" + "".join(str(i) for i, need in enumerate(self.needs) if need))
        return " ".join([str(self.dtype).removeprefix("torch."), str(self.head_dim), *flags])


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs."""

    kernel: str
    arch: int
    variant: Variant
    registers: int  # per thread
    stack: int  # bytes per thread: registers that did not fit
    shared: int  # bytes
    tensor_memory: int  # columns
    matrix_instructions: int  # in the PTX

    @property
    def problems(self) -> str:
        """Why this kernel must not be shipped; empty if it may."""
        found = []
        if self.stack > STACK_LIMIT.get((self.variant.dtype, self.variant.head_dim), 32):
            found.append("spills")
        if self.shared > SHARED_LIMIT[self.arch]:
            found.append("too much shared memory")
        if self.tensor_memory > TENSOR_MEMORY_LIMIT:
            found.append("too much tensor memory")
        if not self.matrix_instructions and "delta" not in self.kernel:
            found.append("no matrix instructions")
        return ", ".join(found)


def variants(fast: bool = False) -> list[Variant]:
    """A covering set: every dtype and padded head size, and every option at the usual ones."""
    usual = Variant(torch.float16, 64, dropout=True)
    if fast:
        return [usual]
    sizes = itertools.product((torch.float16, torch.bfloat16, torch.float32), (16, 32, 64, 128))
    return [
        *(Variant(*size, dropout=dropout) for size in sizes for dropout in (False, True)),
        Variant(torch.float16, 64, masked=False, shared=True),
        Variant(torch.float16, 64, masked=False, causal=True),
        *(
            Variant(
                torch.float16, 64, shared=True, needs=tuple(index in needed for index in range(5))
            )
            for needed in ((3, 4), (0, 1, 3), (2, 4))
        ),
        Variant(torch.float16, 64, window=True, dropout=True),
        Variant(torch.bfloat16, 64, float32_pool=True),
        Variant(torch.bfloat16, 64, float32_pool=True, dropout=True),
        *(Variant(torch.float16, head_dim, dropout=True) for head_dim in (24, 80, 96)),
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
    variant: Variant, arch: int, *, batch: int = 8, length: int = 48, prompt_length: int = 20
) -> list[Any]:
    """The compiled kernels of one variant: forward, and backward with all five gradients."""
    heads = 2
    size = (batch, length, heads, variant.head_dim)
    pool_size = (prompt_length, heads, variant.head_dim)
    pool_dtype = torch.float32 if variant.float32_pool else variant.dtype
    tensors: tuple[Any, ...] = (
        *(torch.zeros(size, dtype=variant.dtype).transpose(1, 2) for _ in range(3)),
        *(torch.zeros(pool_size, dtype=pool_dtype) for _ in range(2)),
        None if variant.shared else torch.zeros(batch, dtype=torch.int64),
        None if variant.shared else torch.zeros(1, 2, dtype=torch.int32),
        torch.ones(batch, length, dtype=torch.bool) if variant.masked else None,
        torch.zeros(1, dtype=torch.int64) if variant.dropout else None,
    )
    dropout_p, window = 0.1 if variant.dropout else 0.0, 8 if variant.window else None
    options: tuple[Any, ...] = (dropout_p, 0.125, variant.causal, window)
    with _compile_only(arch) as compiled:
        out, lse = launch_forward(*tensors, *options)
        grad_out, needs = torch.zeros_like(out), list(variant.needs)
        arguments = [grad_out, None, *tensors, out, lse, needs, *options]
        launch_backward(*arguments)
    return compiled


def variant_resources(variant: Variant, arch: int) -> list[Resources]:
    """Compile one variant and measure its kernels."""
    return [_resources(kernel, variant, arch) for kernel in compile_variant(variant, arch)]


def _resources(kernel: Any, variant: Variant, arch: int) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(x) for x in re.findall(r"(?:REG|STACK):(\d+)", usage))
    return Resources(
        kernel=kernel.metadata.name.strip("_"),
        arch=arch,
        variant=variant,
        registers=registers,
        stack=stack,
        shared=kernel.metadata.shared,
        tensor_memory=getattr(kernel.metadata, "tmem_size", None) or 0,
        matrix_instructions=len(_MATRIX_INSTRUCTION.findall(kernel.asm["ptx"])),
    )


def main() -> None:
    """Print the table; exit with 1 if a kernel has a problem."""
    parser = argparse.ArgumentParser(description="Compile the kernels without a GPU.")
    parser.add_argument("--fast", action="store_true", help="one variant only")
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHS, default=ARCHS)
    options = parser.parse_args()
    row = "{:22} {:6} {:36} {:>9} {:>5} {:>6} {:>6} {:>6}  {}"
    names = ("registers", "stack", "shared", "tensor", "matrix", "problems")
    print(row.format("kernel", "arch", "variant", *names))
    jobs = list(itertools.product(variants(options.fast), options.arch))
    good = True
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for resources in pool.map(variant_resources, *zip(*jobs, strict=True)):
            for r in resources:
                needs = (r.registers, r.stack, r.shared, r.tensor_memory, r.matrix_instructions)
                line = row.format(r.kernel, f"sm_{r.arch}", str(r.variant), *needs, r.problems)
                print(line, flush=True)
                good = good and not r.problems
    sys.exit(not good)


if __name__ == "__main__":
    main()

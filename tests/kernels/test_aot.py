"""Kernels compile for every architecture without a GPU, and fit it."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

KERNELS = (
    "forward_kernel",
    "delta_kernel",
    "query_grad_kernel",
    "key_value_grad_kernel",
    "prefix_grad_kernel",
)
SAME_KERNELS = """
import torch
from ptv2_kernels.aot import Variant, compile_variant
variant = Variant(torch.float16, 64)
first = compile_variant(variant, 90)
for batch, length, prompt_length in [(8, 1, 20), (8, 77, 1), (5, 512, 33)]:
    again = compile_variant(
        variant, 90, batch=batch, length=length, prompt_length=prompt_length
    )
    assert [id(kernel) for kernel in again] == [id(kernel) for kernel in first], (batch, length)
"""


def python(*arguments):
    """Run python where triton compiles, which it does not in an interpreting process."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_kernels_fit_every_architecture():
    result = python("-m", "ptv2_kernels.aot", "--fast")
    assert result.returncode == 0, result.stdout + result.stderr
    rows = {tuple(line.split()[:2]) for line in result.stdout.splitlines()[1:]}
    assert rows == {(kernel, arch) for kernel in KERNELS for arch in ("sm_80", "sm_90", "sm_100")}


def test_new_lengths_compile_nothing():
    result = python("-c", SAME_KERNELS)
    assert result.returncode == 0, result.stderr

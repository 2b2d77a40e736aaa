"""Kernels compile for every architecture without a GPU, and fit it."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

KERNELS = {
    *("forward_kernel", "delta_kernel", "query_grad_kernel", "key_value_grad_kernel"),
    *("prefix_grad_kernel", "short_grad_kernel"),
}
SAME_KERNELS = """
import torch
from ptv2_kernels.aot import Variant, compile_variant
for packed in (False, True):
    variant = Variant(torch.float16, 64, packed=packed, shared=True)
    first = compile_variant(variant, 90, 300)
    for batch, length, prompt_length in [(8, 301, 20), (1, 4096, 1), (5, 512, 33)]:
        again = compile_variant(
            variant, 90, length, batch=batch, prompt_length=prompt_length
        )
        assert [id(kernel) for kernel in again] == [id(kernel) for kernel in first], length
    short = compile_variant(variant, 90, 16, prompt_length=16)
    again = compile_variant(variant, 90, 1, batch=3, prompt_length=1)
    assert [id(kernel) for kernel in again] == [id(kernel) for kernel in short], packed
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
    rows = [line.split()[:2] for line in result.stdout.splitlines()[2:-1]]
    for arch in ("sm_80", "sm_90", "sm_100"):
        assert {kernel for kernel, found in rows if found == arch} == KERNELS


def test_new_lengths_compile_nothing():
    result = python("-c", SAME_KERNELS)
    assert result.returncode == 0, result.stderr

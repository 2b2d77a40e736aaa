"""Which implementation a call runs on."""

import os
import warnings
from functools import cache

import torch
from torch import Tensor

from . import native
from .arguments import Inputs
from .validation import TRITON_DTYPES


def choose_implementation(impl: str, inputs: Inputs) -> str:
    """The implementation's name; an explicit choice is kept or refused.

    Raises:
        NotImplementedError: it does not exist here or cannot take the inputs.
    """
    query = inputs.query
    match impl:
        case "auto" if inputs.position_bucket is not None and not query.is_cuda:
            return "reference"
        case "auto":
            return _fastest(query)
        case "reference":
            return impl
        case "triton":
            _require_triton(query)
            return impl
        case "native":
            _require_native(query)
            if inputs.position_bucket is not None:
                raise NotImplementedError(
                    "positions: impl 'native' has none, expected impl 'reference' or 'triton'"
                )
            return impl
    raise ValueError(f"impl: expected 'auto', 'triton', 'native' or 'reference', got {impl!r}")


def _fastest(query: Tensor) -> str:
    if query.is_cuda:
        return "triton" if _triton_takes(query) else "reference"
    if query.device.type != "cpu" or query.dtype not in native.NATIVE_DTYPES:
        return "reference"
    if native.WHY_MISSING is not None:
        if not torch.compiler.is_compiling():
            _say_missing()
        return "reference"
    return "native"


@cache
def _say_missing() -> None:
    warnings.warn(
        f"ptv2 has no native CPU implementation here and uses the slower reference: "
        f"{native.WHY_MISSING}",
        stacklevel=5,
    )


def _triton_takes(query: Tensor) -> bool:
    return query.dtype in TRITON_DTYPES and 1 <= query.shape[-1] <= 128


def _require_triton(query: Tensor) -> None:
    if not query.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise NotImplementedError(
            "impl: 'triton' needs CUDA tensors (or TRITON_INTERPRET=1 before triton is "
            f"imported), got tensors on {query.device}"
        )
    if not _triton_takes(query):
        raise NotImplementedError(
            "query: impl 'triton' takes float16, bfloat16 or float32 and a head_dim up to "
            f"128, got {query.dtype} and head_dim {query.shape[-1]}"
        )


def _require_native(query: Tensor) -> None:
    if native.WHY_MISSING is not None:
        raise NotImplementedError(f"impl: 'native' is not here: {native.WHY_MISSING}")
    if query.device.type != "cpu" or query.dtype not in native.NATIVE_DTYPES:
        raise NotImplementedError(
            "query: impl 'native' takes float16, bfloat16 or float32 on the CPU, got "
            f"{query.dtype} on {query.device}"
        )

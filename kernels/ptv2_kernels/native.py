"""The native CPU implementation: the C++ in `csrc/`, built for several instruction sets.

The build makes one library of the same sources for each set; the one that torch would use on this
machine is loaded. `ATEN_CPU_CAPABILITY=avx2` (or `default`) forces torch and this down;
`PTV2_AMX=0`, set before the first call in bf16, keeps it from AMX.
"""

from pathlib import Path

import torch
from torch import Tensor

from .arguments import Inputs, Needs, Options

NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def library_path() -> Path:
    """The library for this machine's instruction set and the minor version of this torch."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    built = capability if capability in ("avx512", "avx2") else "default"
    major, minor = torch.__version__.split(".")[:2]
    return Path(__file__).with_name(f"_native_{built}_torch{major}_{minor}.so")


def _load(library: Path) -> str | None:
    if not library.is_file():
        return f"{library.name} was not built when ptv2 was installed"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return f"{library.name} does not load: {error.__cause__ or error}"
    return None


WHY_MISSING = _load(library_path())
"""None if the native implementation is here, else the reason why it is not."""


def product_format(dtype: torch.dtype) -> str:
    """What products of a dtype run on here: "fp32", or for bf16 also "pairs" or "amx"."""
    _require()
    name: str = torch.ops.ptv2_native.product_format(dtype)
    return name


def native_forward(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor]:
    """Return out (batch, heads, length, head_dim), transposed in memory, and lse."""
    _require()
    out, lse = torch.ops.ptv2_native.forward(_contiguous(inputs), *options[:4])
    return out, lse


def native_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    inputs: Inputs,
    out: Tensor | None,
    lse: Tensor,
    needs: Needs,
    options: Options,
) -> list[Tensor | None]:
    """Return the gradients that `needs` names, in its order; None if not needed."""
    _require()
    grads: list[Tensor] = torch.ops.ptv2_native.backward(
        grad_out, grad_lse, _contiguous(inputs), out, lse, list(needs), *options[:4]
    )
    return [grad if need else None for grad, need in zip(grads, needs, strict=True)]


def _require() -> None:
    """Where an exported program asks for what is not here."""
    if WHY_MISSING is not None:
        raise NotImplementedError(f"impl: 'native' is not here: {WHY_MISSING}")


def _contiguous(inputs: Inputs) -> list[Tensor | None]:
    mask = inputs.key_mask
    return list(inputs if mask is None else inputs._replace(key_mask=mask.contiguous()))

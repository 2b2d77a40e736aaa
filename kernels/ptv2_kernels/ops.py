"""The registered operators ``ptv2::prefix_attention`` and its backward.

One operator serves every implementation; ``impl`` picks it inside the launch, where its module is
imported. Nothing here needs triton.
"""

from typing import Any

import torch
from torch import Tensor

_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor prefix_key, Tensor prefix_value, "
    "Tensor? prompt_ids, Tensor? prompt_bounds, Tensor? key_mask, Tensor? seed"
)
_OPTIONS = "float dropout_p, float scale, bool causal, int? window, str impl"

torch.library.define(
    "ptv2::prefix_attention", f"({_INPUTS}, {_OPTIONS}) -> (Tensor out, Tensor lse)"
)
torch.library.define(
    "ptv2::prefix_attention_backward",
    f"(Tensor grad_out, Tensor? grad_lse, {_INPUTS}, Tensor out, Tensor lse, bool[5] needs, "
    f"{_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl("ptv2::prefix_attention", "default")
def _forward(query: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    *inputs, impl = args
    match impl:
        case "triton":
            from .forward import launch_forward as launch
        case "reference":
            from .reference import reference_forward as launch
        case _:
            raise NotImplementedError(f"impl: expected 'triton' or 'reference', got {impl!r}")
    with torch.autocast(query.device.type, enabled=False):
        return launch(query, *inputs)


@torch.library.impl("ptv2::prefix_attention_backward", "default")
def _backward(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *inputs, impl = args
    match impl:
        case "triton":
            from .backward import launch_backward as launch
        case "reference":
            from .reference import reference_backward as launch
        case _:
            raise NotImplementedError(f"impl: expected 'triton' or 'reference', got {impl!r}")
    with torch.autocast(grad_out.device.type, enabled=False):
        return launch(grad_out, *inputs)


@torch.library.register_fake("ptv2::prefix_attention")
def _forward_fake(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, heads, length, head_dim = query.shape
    precision = torch.float64 if query.dtype == torch.float64 else torch.float32
    out = query.new_empty(batch, length, heads, head_dim).transpose(1, 2)
    return out, query.new_empty(batch, heads, length, dtype=precision)


@torch.library.register_fake("ptv2::prefix_attention_backward")
def _backward_fake(grad_out: Tensor, grad_lse: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    inputs, needs = args[:5], args[11]
    return tuple(
        torch.empty_like(x) if need else x.new_empty(0)
        for x, need in zip(inputs, needs, strict=True)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:9], *output)
    ctx.options = inputs[9:]
    ctx.set_materialize_grads(False)


def _autograd_backward(
    ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None
) -> tuple[Tensor | None, ...]:
    *tensors, out, lse = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:5])
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    grads = torch.ops.ptv2.prefix_attention_backward(
        grad_out, grad_lse, *tensors, out, lse, needs, *ctx.options
    )
    wanted = (grad if need else None for grad, need in zip(grads, needs, strict=True))
    return (*wanted, *[None] * 9)


torch.library.register_autograd(
    "ptv2::prefix_attention", _autograd_backward, setup_context=_setup_context
)

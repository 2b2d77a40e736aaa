"""The registered operators ``ptv2::prefix_attention`` and its backward.

One operator serves every layout and implementation; ``impl`` picks the latter inside the launch,
where its module is imported. Nothing here needs triton.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from .arguments import Inputs, Needs, Options, empty_output, rows_contiguous

IMPLEMENTATIONS = ("triton", "native", "reference")

# As in Inputs and Options, and in their order; what the backward may lack is optional there.
_OPTIONAL = (
    "Tensor? prefix_gate, Tensor? prompt_ids, Tensor? prompt_bounds, Tensor? key_mask, "
    "Tensor? cu_seqlens, Tensor? seed, "
    "Tensor? position_key, Tensor? position_query, Tensor? position_bucket"
)
_OPTIONS = "float dropout_p, float scale, bool causal, int? window, SymInt max_length, str impl"
_INPUTS, _GRADIENTS = len(Inputs._fields), len(Needs._fields)

torch.library.define(
    "ptv2::prefix_attention",
    "(Tensor query, Tensor key, Tensor value, Tensor prefix_key, Tensor prefix_value, "
    f"{_OPTIONAL}, {_OPTIONS}) -> (Tensor out, Tensor lse)",
)
torch.library.define(
    "ptv2::prefix_attention_backward",
    "(Tensor grad_out, Tensor? grad_lse, "
    "Tensor query, Tensor? key, Tensor? value, Tensor? prefix_key, Tensor? prefix_value, "
    f"{_OPTIONAL}, Tensor? out, Tensor lse, bool[6] needs, {_OPTIONS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl("ptv2::prefix_attention", "default")
def _forward(query: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    inputs = Inputs(query, *args[: _INPUTS - 1])
    *options, impl = args[_INPUTS - 1 :]
    match impl:
        case "triton":
            from .forward import launch_forward as launch
        case "native":
            from .native import native_forward as launch
        case "reference":
            from .reference import reference_forward as launch
        case _:
            raise NotImplementedError(f"impl: expected {IMPLEMENTATIONS}, got {impl!r}")
    with torch.autocast(query.device.type, enabled=False):
        return launch(inputs, Options(*options))


@torch.library.impl("ptv2::prefix_attention_backward", "default")
def _backward(grad_out: Tensor, grad_lse: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    inputs = Inputs(*args[:_INPUTS])
    out, lse, needs, *options, impl = args[_INPUTS:]
    match impl:
        case "triton":
            from .backward import launch_backward as launch
        case "native":
            from .native import native_backward as launch
        case "reference":
            from .reference import reference_backward as launch
        case _:
            raise NotImplementedError(f"impl: expected {IMPLEMENTATIONS}, got {impl!r}")
    with torch.autocast(grad_out.device.type, enabled=False):
        grads = launch(grad_out, grad_lse, inputs, out, lse, Needs(*needs), Options(*options))
    return tuple(grad_out.new_empty(0) if grad is None else grad for grad in grads)


@torch.library.register_fake("ptv2::prefix_attention")
def _forward_fake(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    precision = torch.promote_types(query.dtype, torch.float32)
    return empty_output(query), query.new_empty(query.shape[:3], dtype=precision)


@torch.library.register_fake("ptv2::prefix_attention_backward")
def _backward_fake(grad_out: Tensor, grad_lse: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    query, needs = args[0], args[_INPUTS + 2]
    return (
        *(
            rows_contiguous(torch.empty_like(query)) if need else query.new_empty(0)
            for need in needs[:3]
        ),
        *(
            x.new_empty(x.shape) if need else query.new_empty(0)
            for x, need in zip((args[3], args[3], args[5]), needs[3:], strict=True)
        ),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Save what the needed gradients depend on, and nothing else."""
    needs = Needs(*ctx.needs_input_grad[:_GRADIENTS])
    query, key, value, prefix_key, prefix_value, prefix_gate, *optional = inputs[:_INPUTS]
    out, lse = output
    ctx.save_for_backward(
        query,
        key if needs.own else None,
        value if needs.query or needs.key else None,
        prefix_key if needs.query or needs.prefix else None,
        prefix_value if needs.query or needs.prefix_key or needs.prefix_gate else None,
        prefix_gate if needs.query or needs.prefix else None,
        *optional,
        out if needs.delta else None,
        lse,
    )
    ctx.options = inputs[_INPUTS:]
    ctx.set_materialize_grads(False)


def _autograd_backward(
    ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:_GRADIENTS])
    if grad_out is None:
        grad_out = torch.zeros_like(saved[0])
    grads = torch.ops.ptv2.prefix_attention_backward(
        grad_out, grad_lse, *saved, needs, *ctx.options
    )
    wanted = (grad if need else None for grad, need in zip(grads, needs, strict=True))
    return (*wanted, *[None] * (_INPUTS - _GRADIENTS + len(ctx.options)))


torch.library.register_autograd(
    "ptv2::prefix_attention", _autograd_backward, setup_context=_setup_context
)


def _no_second_derivative(ctx: Any, *_: Any) -> NoReturn:
    raise NotImplementedError(
        "prefix_attention: second derivatives, of gradients taken with create_graph=True, are not "
        "implemented"
    )


torch.library.register_autograd("ptv2::prefix_attention_backward", _no_second_derivative)

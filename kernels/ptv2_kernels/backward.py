"""The backward of prefix attention, by shape; P is recomputed from the saved log-sum-exp.

With P = exp(S - lse), dropout's keep mask M (0 or 1 / keep rate), delta = rowsum(dO * O) - dlse:

    dV = (P * M)^T dO    dS = P * (M * (dO V^T) - delta)    dQ = scale dS K    dK = scale dS^T Q

Every gradient element is summed by one program in a fixed order: no atomics, the same bits in
every run. The gradient of a prompt's gate is the sum of its dS, with P as it would be if the gate
were 1. The prompt's gradient is summed over the batch inside a kernel, in a few shares of the
batch whose fp32 partial sums are added at the end.
"""

import torch
from torch import Tensor

from .arguments import Inputs, Needs, Options, RowState, rows_contiguous
from .backward_long import launch_delta, launch_key_value_grad, launch_query_grad
from .backward_prefix import launch_prefix_grad
from .backward_short import launch_short_grad, sums_prompt
from .launch import Launch
from .tiling import select_tiles


def launch_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    needs: Needs,
    options: Options,
) -> list[Tensor | None]:
    """Return the gradients that `needs` names, in its order; None if not needed."""
    query, pool = inputs.query, inputs.prefix_key
    empty = query.numel() == 0 or inputs.sequences == 0
    make_grad = torch.zeros_like if empty else torch.empty_like
    grads = [rows_contiguous(make_grad(query)) if need else None for need in needs[:3]]
    prefix_grads: list[Tensor | None] = [None, None, None]
    if empty or (needs.prefix and len(pool) == 0):
        pools = (pool, pool, inputs.prefix_gate)
        prefix_grads = [
            x.new_zeros(x.shape) if need and x is not None else None
            for x, need in zip(pools, needs[3:], strict=True)
        ]
        needs = needs.without_prefix()
    if empty:
        return grads + prefix_grads
    launch = Launch(inputs, options)
    tiles = select_tiles(launch.head_dim, query.dtype, inputs.seed is not None, query.device)
    if launch.positions is not None:
        tiles = tiles.with_positions(launch.head_dim, query.dtype)
    short = tiles.short_grad_for(options.max_length)
    grad_out = rows_contiguous(grad_out)
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    delta = torch.empty_like(lse) if needs.delta else None
    rows = RowState(grad_out, grad_lse, out, lse, delta)
    with torch.cuda.device_of(query):
        if short is not None and sums_prompt(launch, needs, short):
            return grads + launch_short_grad(launch, rows, needs, grads, short)
        if short is not None and needs.own:
            launch_short_grad(launch, rows, needs.without_prefix(), grads, short)
        else:
            if needs.delta:
                launch_delta(launch, rows, tiles.query_grad)
            if needs.query:
                launch_query_grad(launch, rows, grads[0], tiles.query_grad)
            if needs.key or needs.value:
                launch_key_value_grad(launch, rows, needs, grads[1:], tiles.key_value_grad)
        if needs.prefix:
            prefix_grads = launch_prefix_grad(launch, rows, needs, tiles.prefix_grad)
    return grads + prefix_grads

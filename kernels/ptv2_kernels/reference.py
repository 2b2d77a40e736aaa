"""Prefix attention in plain torch: the definition of correct, and what a CPU runs.

For a sequence with queries Q, keys K, values V and a prompt with keys Kp, values Vp::

    S = scale * Q [Kp; K]^T        out = softmax(S + mask) [Vp; V]

A gate multiplies the exponentials of the prompt's scores: log(gate) is added to its columns of S.
Relative positions add their terms to the sequence's own columns of S alone.

The prompt and the sequence stay two blocks with one softmax state. Sequences that share a prompt
are folded into one matrix product with it, so neither the prompt nor a mask is ever expanded over
the batch, and the prompt's gradient is summed over the batch by that product.

Everything is computed in float32, or in float64 for float64 inputs. The backward recomputes the
probabilities from the log-sum-exp (Dao et al. 2022, arXiv:2205.14135).
"""

import torch
from torch import Tensor

from .arguments import Inputs, Needs, Options, empty_output, rows_contiguous
from .reference_rows import Rows, finite_where_masked, precision_of, rows_by_prompt

MOST_OPENED = 2.0**100
"""What a weight would be if its gate were 1 counts as at most this, so that the sum is finite."""


def reference_forward(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor]:
    """Return out (batch, heads, length, head_dim) and lse (batch, heads, length)."""
    query, scale = inputs.query, options.scale
    out = empty_output(query).zero_()
    lse = query.new_full(query.shape[:3], float("-inf"), dtype=precision_of(query))
    for rows in rows_by_prompt(inputs, options):
        prefix_scores = _gated(rows, _prefix_scores(rows, scale))
        own_scores = _own_scores(rows, scale)
        row_max = own_scores.amax(-1)
        if rows.end > rows.start:
            row_max = torch.maximum(row_max, prefix_scores.amax(-1))
        row_max = row_max.masked_fill(row_max == float("-inf"), 0).unsqueeze(-1)
        prefix_weights = prefix_scores.sub_(row_max).exp_()
        own_weights = own_scores.sub_(row_max).exp_()
        row_sum = prefix_weights.sum(-1, keepdim=True) + own_weights.sum(-1, keepdim=True)
        rows.place.put(lse, (row_max + row_sum.log()).squeeze(-1))
        unnormalised = _times_prompt(_dropped(prefix_weights, rows.prefix_keep), rows.prefix_value)
        unnormalised += _dropped(own_weights, rows.own_keep) @ rows.value
        seen = row_sum > 0
        result = torch.where(seen, unnormalised / row_sum.masked_fill(~seen, 1), 0)
        rows.place.put(out, result.to(query.dtype))
    return out, lse


def reference_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    needs: Needs,
    options: Options,
) -> list[Tensor | None]:
    """Return the gradients of the inputs that `needs` names, in its order; None if not needed.

    With P = exp(S - lse), keep mask M (0 or 1 / keep rate) and delta = rowsum(dO * O) - dlse::

        dV = (P * M)^T dO      dS = P * (M * (dO V^T) - delta)
        dQ = scale dS K        dK = scale dS^T Q        (the same for the prompt, summed over rows)

    The gate's gradient is the sum of dS over rows, with P as it would be if the gate were 1, at
    most MOST_OPENED.
    """
    precision, scale = precision_of(inputs.query), options.scale
    shapes = [inputs.query] * 3 + [inputs.prefix_key] * 2 + [inputs.prefix_gate]
    grads = [
        torch.zeros_like(x, dtype=precision) if need and x is not None else None
        for x, need in zip(shapes, needs, strict=True)
    ]
    query_grad, key_grad, value_grad, prefix_key_grad, prefix_value_grad, gate_grad = grads
    if inputs.key_mask is not None:
        grad_out = finite_where_masked(grad_out, inputs.key_mask)
    d_lse = None if grad_lse is None else _counting(grad_lse, lse, inputs.key_mask)
    for rows in rows_by_prompt(inputs, options):
        d_out = rows.place.take(grad_out).to(precision)
        delta = torch.zeros((), dtype=precision, device=d_out.device)
        if needs.delta:
            delta = (d_out * rows.place.take(out).to(precision)).sum(-1, keepdim=True)
        if d_lse is not None:
            delta = delta - rows.place.take(d_lse).unsqueeze(-1)
        row_lse = rows.place.take(lse).unsqueeze(-1)
        row_lse = row_lse.masked_fill(row_lse == float("-inf"), float("inf"))
        d_query = torch.zeros_like(rows.query)
        if needs.query or needs.prefix:
            scores = _prefix_scores(rows, scale).sub_(row_lse)
            p = _gated(rows, scores).exp_()
            if prefix_value_grad is not None:
                share = _summed_over_rows(_dropped(p, rows.prefix_keep), d_out)
                prefix_value_grad[rows.start : rows.end] += share
            if needs.query or needs.prefix_key or needs.prefix_gate:
                dp = _times_prompt(d_out, rows.prefix_value.transpose(-1, -2))
                dp = _dropped(dp, rows.prefix_keep).sub_(delta)
                if gate_grad is not None:
                    opening = scores.exp().clamp_(max=MOST_OPENED).mul_(dp)
                    gate_grad[rows.start : rows.end] += opening.sum((0, 2)).transpose(0, 1)
                ds = p.mul_(dp).mul_(scale)
                if prefix_key_grad is not None:
                    prefix_key_grad[rows.start : rows.end] += _summed_over_rows(ds, rows.query)
                if needs.query:
                    d_query += _times_prompt(ds, rows.prefix_key)
        if needs.own:
            p = _own_scores(rows, scale).sub_(row_lse).exp_()
            if value_grad is not None:
                d_value = _dropped(p, rows.own_keep).transpose(-1, -2) @ d_out
                rows.place.put(value_grad, d_value)
            if needs.query or needs.key:
                dp = d_out @ rows.value.transpose(-1, -2)
                ds = p.mul_(_dropped(dp, rows.own_keep).sub_(delta)).mul_(scale)
                if key_grad is not None:
                    d_key = ds.transpose(-1, -2) @ rows.query
                    if rows.positions is not None:
                        d_key += rows.positions.key_gradient(ds)
                    rows.place.put(key_grad, d_key)
                if needs.query:
                    d_query += ds @ rows.key
                    if rows.positions is not None:
                        d_query += rows.positions.query_gradient(ds)
        if query_grad is not None:
            rows.place.put(query_grad, d_query)
    if inputs.key_mask is not None and query_grad is not None:
        seen = inputs.key_mask[:, None, :, None] | inputs.query.isfinite()
        query_grad.masked_fill_(~seen, 0)
    own_grads = [x if x is None else rows_contiguous(x) for x in grads[:3]]
    prefix_grads = [x if x is None else x.contiguous() for x in grads[3:]]
    return [
        None if grad is None or x is None else grad.to(x.dtype)
        for grad, x in zip(own_grads + prefix_grads, shapes, strict=True)
    ]


def _counting(grad_lse: Tensor, lse: Tensor, key_mask: Tensor | None) -> Tensor:
    """0 for what is not finite where a row is masked or saw nothing."""
    counts = lse != float("-inf")
    if key_mask is not None:
        counts &= key_mask[:, None]
    return torch.where(counts | grad_lse.isfinite(), grad_lse, 0)


def _prefix_scores(rows: Rows, scale: float) -> Tensor:
    """(rows, heads, length, prompt_length)."""
    return _times_prompt(rows.query, rows.prefix_key.transpose(-1, -2)).mul_(scale)


def _gated(rows: Rows, prefix_scores: Tensor) -> Tensor:
    return prefix_scores if rows.log_gate is None else prefix_scores + rows.log_gate


def _own_scores(rows: Rows, scale: float) -> Tensor:
    """(rows, heads, length, length), -inf where a column is not visible."""
    scores = rows.query @ rows.key.transpose(-1, -2)
    if rows.positions is not None:
        scores += rows.positions.scores(rows.query, rows.key)
    scores = scores.mul_(scale)
    return scores if rows.visible is None else scores.masked_fill_(~rows.visible, float("-inf"))


def _fold(x: Tensor) -> Tensor:
    """(rows, heads, length, n) -> (heads, rows * length, n)."""
    return x.transpose(0, 1).flatten(1, 2)


def _times_prompt(x: Tensor, prompt: Tensor) -> Tensor:
    """(rows, heads, length, m) times a shared (heads, m, n) -> (rows, heads, length, n)."""
    product: Tensor = _fold(x) @ prompt
    return product.view(x.shape[1], x.shape[0], x.shape[2], -1).transpose(0, 1)


def _summed_over_rows(left: Tensor, right: Tensor) -> Tensor:
    """Sum over rows of left^T right: (rows, heads, length, p | d) -> (p, heads, d)."""
    return (_fold(left).transpose(1, 2) @ _fold(right)).transpose(0, 1)


def _dropped(probabilities: Tensor, keep: Tensor | None) -> Tensor:
    return probabilities if keep is None else probabilities * keep

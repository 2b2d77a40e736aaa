"""Prefix attention in plain torch: the definition of correct, and what a CPU runs.

For a sequence with queries Q, keys K, values V and a prompt with keys Kp, values Vp::

    S = scale * Q [Kp; K]^T        out = softmax(S + mask) [Vp; V]

The prompt and the sequence stay two blocks with one softmax state. Sequences that share a prompt
are folded into one matrix product with it, so neither the prompt nor a mask is ever expanded over
the batch, and the prompt's gradient is summed over the batch by that product.

Everything is computed in float32, or in float64 for float64 inputs. The backward recomputes the
probabilities from the log-sum-exp (Dao et al. 2022, arXiv:2205.14135).
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

OWN_COLUMN_OFFSET = 2**20
"""Dropout column of a sequence's first own key; the prompt's columns start at 0."""

PHILOX_ROUNDS = 7
_WORD = 0xFFFFFFFF


class Options(NamedTuple):
    """What is the same for every sequence of a call."""

    dropout_p: float
    scale: float
    causal: bool
    window: int | None


class Rows(NamedTuple):
    """The sequences that share one prompt, in computation precision."""

    places: Tensor | slice  # their places in the batch
    start: int  # the prompt's rows of the pool: [start, end)
    end: int
    query: Tensor  # (rows, heads, length, head_dim)
    key: Tensor
    value: Tensor
    prefix_key: Tensor  # (heads, prompt_length, head_dim)
    prefix_value: Tensor
    visible: Tensor | None  # broadcasts to (rows, heads, length, length); None: everything
    prefix_keep: Tensor | None  # (rows, heads, length, prompt_length), 0 or 1 / keep rate
    own_keep: Tensor | None  # (rows, heads, length, length)


def reference_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    prompt_ids: Tensor | None,
    prompt_bounds: Tensor | None,
    key_mask: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    scale: float,
    causal: bool,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """Return out (batch, heads, length, head_dim) and lse (batch, heads, length)."""
    batch, heads, length, head_dim = query.shape
    precision = _precision(query)
    out = query.new_zeros(batch, length, heads, head_dim).transpose(1, 2)
    lse = query.new_full((batch, heads, length), float("-inf"), dtype=precision)
    options = Options(dropout_p, scale, causal, window)
    inputs = (query, key, value, prefix_key, prefix_value)
    for rows in _by_prompt(*inputs, prompt_ids, prompt_bounds, key_mask, seed, options):
        prefix_scores, own_scores = _prefix_scores(rows, scale), _own_scores(rows, scale)
        row_max = own_scores.amax(-1)
        if rows.end > rows.start:
            row_max = torch.maximum(row_max, prefix_scores.amax(-1))
        row_max = row_max.masked_fill(row_max == float("-inf"), 0).unsqueeze(-1)
        prefix_weights = prefix_scores.sub_(row_max).exp_()
        own_weights = own_scores.sub_(row_max).exp_()
        row_sum = prefix_weights.sum(-1, keepdim=True) + own_weights.sum(-1, keepdim=True)
        lse[rows.places] = (row_max + row_sum.log()).squeeze(-1)
        unnormalised = _times_prompt(_dropped(prefix_weights, rows.prefix_keep), rows.prefix_value)
        unnormalised += _dropped(own_weights, rows.own_keep) @ rows.value
        seen = row_sum > 0
        result = torch.where(seen, unnormalised / row_sum.masked_fill(~seen, 1), 0)
        out[rows.places] = result.to(query.dtype)
    return out, lse


def reference_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    prompt_ids: Tensor | None,
    prompt_bounds: Tensor | None,
    key_mask: Tensor | None,
    seed: Tensor | None,
    out: Tensor,
    lse: Tensor,
    needs: list[bool],
    dropout_p: float,
    scale: float,
    causal: bool,
    window: int | None,
) -> tuple[Tensor, ...]:
    """Return the gradients of query, key, value, prefix_key, prefix_value; empty if not needed.

    With P = exp(S - lse), keep mask M (0 or 1 / keep rate) and delta = rowsum(dO * O) - dlse::

        dV = (P * M)^T dO      dS = P * (M * (dO V^T) - delta)
        dQ = scale dS K        dK = scale dS^T Q        (the same for the prompt, summed over rows)
    """
    inputs = (query, key, value, prefix_key, prefix_value)
    precision = _precision(query)
    grads = [
        torch.zeros_like(x, dtype=precision) if need else x.new_empty(0)
        for x, need in zip(inputs, needs, strict=True)
    ]
    need_query, need_key, need_value, need_prefix_key, need_prefix_value = needs
    options = Options(dropout_p, scale, causal, window)
    if key_mask is not None:
        grad_out = _finite_where_masked(grad_out, key_mask)
    for rows in _by_prompt(*inputs, prompt_ids, prompt_bounds, key_mask, seed, options):
        d_out = grad_out[rows.places].to(precision)
        delta = (d_out * out[rows.places].to(precision)).sum(-1, keepdim=True)
        if grad_lse is not None:
            delta -= grad_lse[rows.places].unsqueeze(-1)
        row_lse = lse[rows.places].unsqueeze(-1)
        row_lse = row_lse.masked_fill(row_lse == float("-inf"), float("inf"))
        pool_rows = slice(rows.start, rows.end)
        if need_query or need_prefix_key or need_prefix_value:
            p = _prefix_scores(rows, scale).sub_(row_lse).exp_()
            if need_prefix_value:
                grads[4][pool_rows] += _summed_over_rows(_dropped(p, rows.prefix_keep), d_out)
            dp = _times_prompt(d_out, rows.prefix_value.transpose(-1, -2))
            ds = p.mul_(_dropped(dp, rows.prefix_keep).sub_(delta)).mul_(scale)
            if need_prefix_key:
                grads[3][pool_rows] += _summed_over_rows(ds, rows.query)
            if need_query:
                grads[0][rows.places] += _times_prompt(ds, rows.prefix_key)
        if need_query or need_key or need_value:
            p = _own_scores(rows, scale).sub_(row_lse).exp_()
            if need_value:
                grads[2][rows.places] = _dropped(p, rows.own_keep).transpose(-1, -2) @ d_out
            dp = d_out @ rows.value.transpose(-1, -2)
            ds = p.mul_(_dropped(dp, rows.own_keep).sub_(delta)).mul_(scale)
            if need_key:
                grads[1][rows.places] = ds.transpose(-1, -2) @ rows.query
            if need_query:
                grads[0][rows.places] += ds @ rows.key
    if key_mask is not None and need_query:
        grads[0].masked_fill_(~(key_mask[:, None, :, None] | query.isfinite()), 0)
    return tuple(grad.to(x.dtype) for grad, x in zip(grads, inputs, strict=True))


def _precision(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _by_prompt(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    prompt_ids: Tensor | None,
    prompt_bounds: Tensor | None,
    key_mask: Tensor | None,
    seed: Tensor | None,
    options: Options,
) -> Iterator[Rows]:
    """Yield the batch group by group, prompts in ascending order of their id."""
    batch, heads, length, _ = query.shape
    if batch == 0 or length == 0:
        return
    precision = _precision(query)
    ids = [0] * batch if prompt_ids is None else prompt_ids.tolist()
    bounds = [[0, len(prefix_key)]] if prompt_bounds is None else prompt_bounds.tolist()
    if key_mask is not None:
        query = _finite_where_masked(query, key_mask)
        hidden = ~key_mask[:, None, :, None]
        key, value = key.masked_fill(hidden, 0), value.masked_fill(hidden, 0)
    for prompt in sorted(set(ids)):
        start, end = (0, 0) if prompt < 0 else bounds[prompt]
        members = [row for row, row_id in enumerate(ids) if row_id == prompt]
        whole = len(members) == batch
        index = slice(None) if whole else torch.tensor(members, device=query.device)
        prefix_keep = own_keep = None
        if seed is not None:
            threshold = round(options.dropout_p * 65536)
            scale = 65536 / max(65536 - threshold, 1)
            keep = partial(_keep, seed, threshold, members, heads, length)
            prefix_keep = keep(0, end - start).to(precision).mul_(scale)
            own_keep = keep(OWN_COLUMN_OFFSET, length).to(precision).mul_(scale)
        yield Rows(
            index,
            start,
            end,
            query[index].to(precision),
            key[index].to(precision),
            value[index].to(precision),
            prefix_key[start:end].transpose(0, 1).to(precision),
            prefix_value[start:end].transpose(0, 1).to(precision),
            _visible(key_mask, index, length, options, query.device),
            prefix_keep,
            own_keep,
        )


def _finite_where_masked(x: Tensor, key_mask: Tensor) -> Tensor:
    """Replace non-finite elements of x (batch, heads, length, head_dim) at masked places by 0."""
    return torch.where(key_mask[:, None, :, None] | x.isfinite(), x, 0)


def _visible(
    key_mask: Tensor | None,
    index: Tensor | slice,
    length: int,
    options: Options,
    device: torch.device,
) -> Tensor | None:
    """Which own columns each row sees; broadcasts to (rows, heads, length, length)."""
    visible = None if key_mask is None else key_mask[index][:, None, None, :]
    if options.causal or options.window is not None:
        place = torch.arange(length, device=device)
        distance = place[:, None] - place  # row - column
        near = distance.abs() <= (length if options.window is None else options.window)
        near = near & (distance >= 0) if options.causal else near
        visible = near if visible is None else visible & near
    return visible


def _prefix_scores(rows: Rows, scale: float) -> Tensor:
    """(rows, heads, length, prompt_length)."""
    return _times_prompt(rows.query, rows.prefix_key.transpose(-1, -2)).mul_(scale)


def _own_scores(rows: Rows, scale: float) -> Tensor:
    """(rows, heads, length, length), -inf where a column is not visible."""
    scores = (rows.query @ rows.key.transpose(-1, -2)).mul_(scale)
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


def _keep(
    seed: Tensor,
    threshold: int,
    rows: list[int],
    heads: int,
    length: int,
    first_column: int,
    columns: int,
) -> Tensor:
    """Dropout's keep mask, (rows, heads, length, columns) bool.

    One Philox call (Salmon et al. 2011, 7 rounds) with counter (column // 8, row, head, sequence)
    decides eight columns, 16 bits each; a column is kept if its bits reach the threshold p * 2^16.
    """
    device = seed.device
    key = int(seed)
    keys = (key & _WORD, (key >> 32) & _WORD)
    groups = (columns + 7) // 8
    counters = (
        torch.arange(first_column // 8, first_column // 8 + groups, device=device),
        torch.arange(length, device=device)[:, None],
        torch.arange(heads, device=device)[:, None, None],
        torch.tensor(rows, device=device)[:, None, None, None],
    )
    words = torch.stack(torch.broadcast_tensors(*_philox(counters, keys)), -1)
    bits = torch.stack((words & 0xFFFF, words >> 16), -1).flatten(-3)[..., :columns]
    return bits >= threshold


def _philox(counters: tuple[Tensor, ...], keys: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32 on int64 tensors that hold 32-bit words."""
    c0, c1, c2, c3 = counters
    k0, k1 = keys
    for _ in range(PHILOX_ROUNDS):
        even, odd = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = (odd >> 32) & _WORD ^ c1 ^ k0, odd & _WORD
        c2, c3 = (even >> 32) & _WORD ^ c3 ^ k1, even & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3

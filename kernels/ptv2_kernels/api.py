"""The public function: validation, autocast, the dropout seed, the choice of implementation."""

import math
import os
from typing import Literal

import torch
from torch import Tensor

from . import ops as ops

Impl = Literal["auto", "triton", "native", "reference"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    *,
    prompt_ids: Tensor | None = None,
    prompt_bounds: Tensor | None = None,
    key_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
    return_lse: bool = False,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend over a prompt and the sequence itself in one softmax.

    Sequence ``b`` with prompt ``t`` gets
    ``softmax(scale * Q_b [Kp_t; K_b]^T + mask) [Vp_t; V_b]``. The prompt is a separate block of
    keys and values: it is not concatenated, not expanded over the batch, and every row sees it.

    Args:
        query, key, value: ``(batch, heads, length, head_dim)``, any strides with a last one of 1.
        prefix_key, prefix_value: the pool, ``(prefix_tokens, heads, head_dim)``: the rows of all
            prompts; in the query's dtype or float32, in which their gradients come back.
        prompt_ids: ``(batch,)`` int32 or int64, the prompt of each sequence, -1 for none. None:
            prompt 0 for all. Values are checked on the CPU only (a check would stall a GPU).
        prompt_bounds: ``(prompts, 2)`` int32, the rows ``[start, end)`` of each prompt in the
            pool. None: one prompt, the whole pool.
        key_mask: ``(batch, length)`` bool, True = attend; any pattern. What lies in masked
            positions, NaN included, reaches no output of another row and no gradient.
        dropout_p: probability of dropping an attention weight, in ``[0, 1)``; the mask is a
            function of (seed, sequence, head, row, column) with a seed from torch's generator.
        scale: factor of the scores. None: ``head_dim ** -0.5``.
        causal: row ``i`` sees the prompt and its own columns ``j <= i``.
        window: row ``i`` sees the prompt and its own columns with ``|i - j| <= window``.
        return_lse: also return the log-sum-exp of the scores, natural log, ``(batch, heads,
            length)`` float32; -inf for a row that sees nothing. It is differentiable.
        impl: "triton" (CUDA; on the CPU only with TRITON_INTERPRET=1), "reference", or "auto":
            triton for CUDA tensors, else reference. An explicit choice never falls back.

    Returns:
        ``(batch, heads, length, head_dim)``, laid out so that ``.transpose(1, 2)`` is contiguous.
        A row that sees nothing is 0, with zero gradients.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or value.
        NotImplementedError: the implementation does not exist here or cannot take the inputs.
    """
    query, key, value = _autocast(query, key, value)
    chosen = _choose(impl, query)
    _validate_tensors(
        query, key, value, prefix_key, prefix_value, prompt_ids, prompt_bounds, key_mask
    )
    _validate_options(dropout_p, scale, window)
    seed = None
    if dropout_p > 0:
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=query.device)
    out, lse = torch.ops.ptv2.prefix_attention(
        query,
        key,
        value,
        prefix_key,
        prefix_value,
        prompt_ids,
        prompt_bounds,
        key_mask,
        seed,
        dropout_p,
        query.shape[-1] ** -0.5 if scale is None else scale,
        causal,
        window,
        chosen,
    )
    return (out, lse) if return_lse else out


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _choose(impl: Impl, query: Tensor) -> str:
    match impl:
        case "auto":
            return "triton" if query.is_cuda else "reference"
        case "reference":
            return impl
        case "triton":
            if not query.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
                raise NotImplementedError(
                    "impl: 'triton' needs CUDA tensors (or TRITON_INTERPRET=1 before triton is "
                    f"imported), got tensors on {query.device}"
                )
            if query.dtype not in _DTYPES or not 1 <= query.shape[-1] <= 128:
                raise NotImplementedError(
                    "query: impl 'triton' takes float16, bfloat16 or float32 and a head_dim up to "
                    f"128, got {query.dtype} and head_dim {query.shape[-1]}"
                )
            return impl
        case "native":
            raise NotImplementedError("impl: 'native' is not part of this build")
    raise ValueError(f"impl: expected 'auto', 'triton', 'native' or 'reference', got {impl!r}")


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got}")


def _validate_tensors(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    prompt_ids: Tensor | None,
    prompt_bounds: Tensor | None,
    key_mask: Tensor | None,
) -> None:
    _require(query.dim() == 4, "query", "(batch, heads, length, head_dim)", tuple(query.shape))
    _require(query.dtype in (*_DTYPES, torch.float64), "query", "a floating dtype", query.dtype)
    batch, heads, length, head_dim = query.shape
    for name, x in (("key", key), ("value", value)):
        _require(
            x.shape == query.shape, name, f"query's shape {tuple(query.shape)}", tuple(x.shape)
        )
        _require(x.dtype == query.dtype, name, f"query's dtype {query.dtype}", x.dtype)
    for name, x in (("prefix_key", prefix_key), ("prefix_value", prefix_value)):
        _require(
            x.dim() == 3 and x.shape[1:] == (heads, head_dim),
            name,
            f"(prefix_tokens, {heads}, {head_dim})",
            tuple(x.shape),
        )
        _require(
            x.dtype in (query.dtype, torch.float32),
            name,
            f"query's dtype {query.dtype} or torch.float32",
            x.dtype,
        )
    tokens = prefix_key.shape[0]
    _require(
        prefix_value.shape == prefix_key.shape and prefix_value.dtype == prefix_key.dtype,
        "prefix_value",
        f"prefix_key's shape and dtype {tuple(prefix_key.shape)} {prefix_key.dtype}",
        f"{tuple(prefix_value.shape)} {prefix_value.dtype}",
    )
    floating = dict(
        query=query, key=key, value=value, prefix_key=prefix_key, prefix_value=prefix_value
    )
    for name, x in floating.items():
        _require(
            x.stride(-1) == 1 or x.shape[-1] == 1 or x.numel() == 0,
            name,
            "a last stride of 1",
            x.stride(),
        )
    if prompt_ids is not None:
        _require(
            prompt_ids.shape == (batch,) and prompt_ids.dtype in (torch.int32, torch.int64),
            "prompt_ids",
            f"({batch},) int32 or int64",
            f"{tuple(prompt_ids.shape)} {prompt_ids.dtype}",
        )
    if prompt_bounds is not None:
        _require(
            prompt_bounds.dim() == 2
            and prompt_bounds.shape[1] == 2
            and prompt_bounds.shape[0] > 0
            and prompt_bounds.dtype == torch.int32,
            "prompt_bounds",
            "(prompts, 2) int32 with at least one prompt",
            f"{tuple(prompt_bounds.shape)} {prompt_bounds.dtype}",
        )
    if key_mask is not None:
        _require(
            key_mask.shape == (batch, length) and key_mask.dtype == torch.bool,
            "key_mask",
            f"({batch}, {length}) bool",
            f"{tuple(key_mask.shape)} {key_mask.dtype}",
        )
    optional = dict(prompt_ids=prompt_ids, prompt_bounds=prompt_bounds, key_mask=key_mask)
    for name, y in (floating | optional).items():
        if y is not None:
            _require(y.device == query.device, name, f"query's device {query.device}", y.device)
    if query.device.type == "cpu" and not torch.compiler.is_compiling():
        _validate_prompts(prompt_ids, prompt_bounds, tokens)


def _validate_prompts(
    prompt_ids: Tensor | None, prompt_bounds: Tensor | None, tokens: int
) -> None:
    """Check values, which only the CPU can do without waiting."""
    prompts = 1 if prompt_bounds is None else len(prompt_bounds)
    if prompt_bounds is not None:
        start, end = prompt_bounds.unbind(1)
        _require(
            bool(((start >= 0) & (start <= end) & (end <= tokens)).all()),
            "prompt_bounds",
            f"0 <= start <= end <= {tokens} (the pool's rows)",
            prompt_bounds.tolist(),
        )
    if prompt_ids is not None and len(prompt_ids):
        low, high = (int(x) for x in prompt_ids.aminmax())
        _require(
            low >= -1 and high < prompts,
            "prompt_ids",
            f"values from -1 to {prompts - 1}",
            f"{low} to {high}",
        )


def _validate_options(dropout_p: float, scale: float | None, window: int | None) -> None:
    _require(0 <= dropout_p < 1, "dropout_p", "a value in [0, 1)", dropout_p)
    _require(scale is None or math.isfinite(scale), "scale", "a finite number or None", scale)
    _require(window is None or window >= 0, "window", "an int >= 0 or None", window)

"""What the operation accepts: every error names the argument, what was expected and what came."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from .arguments import Inputs

TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def require(condition: bool, name: str, expected: str | Callable[[], str], got: object) -> None:
    """Raise ValueError unless the condition holds.

    Args:
        expected, got: texts with a size in them come as functions: written under torch.compile,
            a size would become a constant, and every new one would compile again.
    """
    if not condition:
        wanted, found = (x() if callable(x) else x for x in (expected, got))
        raise ValueError(f"{name}: expected {wanted}, got {found}")


def validate_padded(inputs: Inputs) -> None:
    """Check the tensors of the padded layout."""
    query = inputs.query
    require(query.dim() == 4, "query", "(batch, heads, length, head_dim)", tuple(query.shape))
    _validate_matrices(inputs, heads=query.shape[1])
    _validate_positions(inputs, query.shape[2])
    _validate_mask(inputs.key_mask, (query.shape[0], query.shape[2]))
    _validate_prompts(inputs)


def validate_packed(inputs: Inputs, max_seqlen: int | None) -> None:
    """Check the tensors of the packed layout, (tokens, heads, head_dim)."""
    query, cu_seqlens = inputs.query, inputs.cu_seqlens
    assert cu_seqlens is not None
    require(query.dim() == 3, "query", "(tokens, heads, head_dim)", tuple(query.shape))
    require(
        cu_seqlens.dim() == 1 and len(cu_seqlens) > 0 and cu_seqlens.dtype == torch.int32,
        "cu_seqlens",
        "(sequences + 1,) int32",
        lambda: f"{tuple(cu_seqlens.shape)} {cu_seqlens.dtype}",
    )
    require(
        len(cu_seqlens) > 1 or query.shape[0] == 0,
        "cu_seqlens",
        lambda: f"at least one sequence for {query.shape[0]} tokens",
        "none",
    )
    require(max_seqlen is None or max_seqlen >= 0, "max_seqlen", "an int >= 0 or None", max_seqlen)
    _validate_matrices(inputs, heads=query.shape[1])
    _validate_positions(inputs, query.shape[0] if max_seqlen is None else max_seqlen)
    _validate_mask(inputs.key_mask, (query.shape[0],))
    if _values_are_at_hand(query):
        _validate_lengths(cu_seqlens, query.shape[0], max_seqlen)
    _validate_prompts(inputs)


def validate_options(dropout_p: float, scale: float | None, window: int | None) -> None:
    """Check the numbers."""
    require(0 <= dropout_p < 1, "dropout_p", "a value in [0, 1)", dropout_p)
    require(scale is None or math.isfinite(scale), "scale", "a finite number or None", scale)
    require(window is None or window >= 0, "window", "an int >= 0 or None", window)


def _validate_matrices(inputs: Inputs, heads: int) -> None:
    query, prefix_key = inputs.query, inputs.prefix_key
    head_dim = query.shape[-1]
    require(
        query.dtype in (*TRITON_DTYPES, torch.float64), "query", "a floating dtype", query.dtype
    )
    for name in ("key", "value"):
        x = getattr(inputs, name)
        require(
            x.shape == query.shape,
            name,
            lambda: f"query's shape {tuple(query.shape)}",
            tuple(x.shape),
        )
        require(x.dtype == query.dtype, name, f"query's dtype {query.dtype}", x.dtype)
    for name in ("prefix_key", "prefix_value"):
        x = getattr(inputs, name)
        require(
            x.dim() == 3 and x.shape[1:] == (heads, head_dim),
            name,
            lambda: f"(prefix_tokens, {heads}, {head_dim})",
            tuple(x.shape),
        )
        require(
            x.dtype in (query.dtype, torch.float32),
            name,
            f"query's dtype {query.dtype} or torch.float32",
            x.dtype,
        )
    require(
        inputs.prefix_value.shape == prefix_key.shape
        and inputs.prefix_value.dtype == prefix_key.dtype,
        "prefix_value",
        lambda: f"prefix_key's shape and dtype {tuple(prefix_key.shape)} {prefix_key.dtype}",
        lambda: f"{tuple(inputs.prefix_value.shape)} {inputs.prefix_value.dtype}",
    )
    gate = inputs.prefix_gate
    if gate is not None:
        require(
            gate.shape == prefix_key.shape[:2],
            "prefix_gate",
            lambda: f"(prefix_tokens, heads) {tuple(prefix_key.shape[:2])}",
            tuple(gate.shape),
        )
        require(
            gate.dtype in (prefix_key.dtype, torch.float32),
            "prefix_gate",
            f"prefix_key's dtype {prefix_key.dtype} or torch.float32",
            gate.dtype,
        )
    for name, x in inputs._asdict().items():
        if x is not None:
            require(x.device == query.device, name, f"query's device {query.device}", x.device)
    for name, x in list(inputs._asdict().items())[:5]:
        require(
            x.stride(-1) == 1 or x.shape[-1] == 1 or x.numel() == 0,
            name,
            "a last stride of 1",
            x.stride(),
        )


def _validate_positions(inputs: Inputs, length: int) -> None:
    bucket, query = inputs.position_bucket, inputs.query
    if bucket is None:
        return
    require(
        bucket.dim() == 1 and len(bucket) % 2 == 1 and bucket.dtype == torch.int32,
        "positions.bucket",
        "(2 * reach + 1,) int32",
        lambda: f"{tuple(bucket.shape)} {bucket.dtype}",
    )
    require(
        len(bucket) // 2 >= length - 1,
        "positions.bucket",
        lambda: f"a reach of at least {length - 1}, the longest sequence's",
        lambda: len(bucket) // 2,
    )
    tables = {"key": inputs.position_key, "query": inputs.position_query}
    for name, x in tables.items():
        if x is not None:
            require(
                x.dim() == 3 and x.shape[1:] == inputs.prefix_key.shape[1:],
                f"positions.{name}",
                lambda: f"(buckets, heads, head_dim) {tuple(inputs.prefix_key.shape[1:])}",
                tuple(x.shape),
            )
            require(
                x.dtype in (query.dtype, torch.float32),
                f"positions.{name}",
                f"query's dtype {query.dtype} or torch.float32",
                x.dtype,
            )
            require(
                not x.requires_grad,
                f"positions.{name}",
                "a tensor without requires_grad: it gets no gradient",
                "one with it",
            )
    counts = {len(x) for x in tables.values() if x is not None}
    require(len(counts) == 1, "positions", "tables of as many buckets, at least one", counts)
    if _values_are_at_hand(query):
        low, high = (int(x) for x in bucket.aminmax())
        count = counts.pop()
        require(
            low >= 0 and high < count,
            "positions.bucket",
            f"values from 0 to {count - 1}",
            f"{low} to {high}",
        )


def _validate_mask(key_mask: Tensor | None, shape: tuple[int, ...]) -> None:
    if key_mask is not None:
        require(
            key_mask.shape == shape and key_mask.dtype == torch.bool,
            "key_mask",
            lambda: f"{shape} bool",
            lambda: f"{tuple(key_mask.shape)} {key_mask.dtype}",
        )


def _validate_prompts(inputs: Inputs) -> None:
    prompt_ids, prompt_bounds = inputs.prompt_ids, inputs.prompt_bounds
    if prompt_ids is not None:
        require(
            prompt_ids.shape == (inputs.sequences,)
            and prompt_ids.dtype in (torch.int32, torch.int64),
            "prompt_ids",
            lambda: f"({inputs.sequences},) int32 or int64",
            lambda: f"{tuple(prompt_ids.shape)} {prompt_ids.dtype}",
        )
    if prompt_bounds is not None:
        require(
            prompt_bounds.dim() == 2
            and prompt_bounds.shape[1] == 2
            and prompt_bounds.shape[0] > 0
            and prompt_bounds.dtype == torch.int32,
            "prompt_bounds",
            "(prompts, 2) int32 with at least one prompt",
            lambda: f"{tuple(prompt_bounds.shape)} {prompt_bounds.dtype}",
        )
    if _values_are_at_hand(inputs.query):
        _validate_prompt_values(inputs)


def _values_are_at_hand(query: Tensor) -> bool:
    """Whether values can be read without waiting: on the CPU, and not while tracing."""
    traced = torch.compiler.is_compiling() or isinstance(query, FakeTensor)
    return query.device.type == "cpu" and not traced


def _validate_prompt_values(inputs: Inputs) -> None:
    """Check values, which only the CPU can do without waiting."""
    prompt_ids, prompt_bounds = inputs.prompt_ids, inputs.prompt_bounds
    tokens, gate = len(inputs.prefix_key), inputs.prefix_gate
    prompts = 1 if prompt_bounds is None else len(prompt_bounds)
    if prompt_bounds is not None:
        start, end = prompt_bounds.unbind(1)
        require(
            bool(((start >= 0) & (start <= end) & (end <= tokens)).all()),
            "prompt_bounds",
            f"0 <= start <= end <= {tokens} (the pool's rows)",
            prompt_bounds.tolist(),
        )
    if gate is not None and gate.numel():
        low_gate, high_gate = (float(x) for x in gate.detach().aminmax())
        require(
            low_gate >= 0 and high_gate < math.inf,
            "prefix_gate",
            "finite values >= 0",
            f"{low_gate} to {high_gate}",
        )
    if prompt_ids is not None and len(prompt_ids):
        low, high = (int(x) for x in prompt_ids.aminmax())
        require(
            low >= -1 and high < prompts,
            "prompt_ids",
            f"values from -1 to {prompts - 1}",
            f"{low} to {high}",
        )


def _validate_lengths(cu_seqlens: Tensor, tokens: int, max_seqlen: int | None) -> None:
    ends = cu_seqlens.tolist()
    lengths = [end - start for start, end in pairwise(ends)]
    require(
        ends[0] == 0 and ends[-1] == tokens and min(lengths, default=0) >= 0,
        "cu_seqlens",
        f"values that rise from 0 to {tokens} (the tokens)",
        ends,
    )
    longest = max(lengths, default=0)
    require(
        max_seqlen is None or longest <= max_seqlen,
        "max_seqlen",
        f"at least {longest}, the longest sequence",
        max_seqlen,
    )

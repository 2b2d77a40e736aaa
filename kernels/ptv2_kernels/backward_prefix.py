"""The gradient of the prompts alone: summed over the batch inside the kernel, in fp32.

A program owns some rows of the pool, one head and a share of the sequences, and walks the
sequences that use a prompt with such a row; how many they are, and how many prompts, is known to
the device alone. The shares' partial sums are added at the end, so the order of all sums is fixed.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import Needs, RowState
from .dropout import drop, dropout_keep_unaligned
from .launch import Launch, ceil_div
from .primitives import (
    LN_2,
    finite_rows,
    gated,
    load_delta,
    load_gate,
    load_lse,
    load_rows,
    load_tile,
    locate_sequence,
    prompt_rows,
    recompute_ungated,
    score_gradient,
    store_tile,
)
from .tiling import Tile


@triton.jit
def touching_prompts(prompts, prompt_count, first, last, CHUNK: tl.constexpr = 64):
    """The least range [begin, end) of prompts that holds all with a pool row in [first, last)."""
    _, prompt_bounds_ptr, _ = prompts
    begin = 0 * prompt_count
    end = prompt_count
    if prompt_bounds_ptr is not None:
        begin = prompt_count
        end = 0 * prompt_count
        for chunk in range(0, prompt_count, CHUNK):
            prompt = chunk + tl.arange(0, CHUNK)
            there = prompt < prompt_count
            starts = tl.load(prompt_bounds_ptr + 2 * prompt, mask=there, other=0)
            ends = tl.load(prompt_bounds_ptr + 2 * prompt + 1, mask=there, other=0)
            touching = there & (starts < last) & (ends > first)
            begin = tl.minimum(begin, tl.min(tl.where(touching, prompt, prompt_count)))
            end = tl.maximum(end, tl.max(tl.where(touching, prompt + 1, 0)))
    return begin, end


@triton.jit
def store_gate_grad(partial_ptr, pool_place, dgate, pool_rows, heads, positions):
    """Write a share's gradients of the gates: [BLOCK_P]."""
    split, head, _ = pool_place
    places = (split * pool_rows + positions) * heads + head
    tl.store(partial_ptr + places, dgate, mask=positions < pool_rows)


@triton.jit(
    do_not_specialize=[
        "sequences", "heads", "length", "pool_rows", "prompt_count", "splits", "score_scale",
    ]
)  # fmt: skip
def _prefix_grad_kernel(
    grad_out, query, prefix_key, prefix_value, prefix_gate_ptr,
    cu_seqlens_ptr, sequences, heads, length,
    prompt_bounds_ptr, pool_rows, prompt_count, members_ptr, member_starts_ptr,
    key_mask_ptr, dropout, lse_ptr, delta_ptr, partial_key, partial_value, partial_gate_ptr,
    splits, score_scale,
    NEEDS_KEY: tl.constexpr, NEEDS_VALUE: tl.constexpr, NEEDS_GATE: tl.constexpr,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of BLOCK_P pool rows, one head, over a share of the sequences.

    It takes every splits-th of each prompt's members. Prompts may overlap and leave gaps. A row of
    a sequence that is not finite makes its own prompt's gradients NaN, and no others'.
    """
    layout = (cu_seqlens_ptr, sequences, heads, length)
    prompts = (None, prompt_bounds_ptr, pool_rows)
    blocks = tl.cdiv(pool_rows, BLOCK_P)
    program = tl.program_id(0)
    first = program % blocks * BLOCK_P
    split = (program // blocks // heads).to(tl.int64)
    head = (program // blocks % heads).to(tl.int64)
    positions = first + tl.arange(0, BLOCK_P)
    inside = positions < pool_rows
    pool_place = (split, head, 0)
    dtype = query[0].dtype.element_ty
    k = load_tile(prefix_key, pool_place, positions, inside, HEAD_DIM, BLOCK_D).to(dtype)
    if NEEDS_KEY or NEEDS_GATE:
        v = load_tile(prefix_value, pool_place, positions, inside, HEAD_DIM, BLOCK_D).to(dtype)
    # Transposed, so that the wide dimension is the one the matrix instructions want wide.
    dk = tl.zeros([BLOCK_D, BLOCK_P], lse_ptr.dtype.element_ty)
    dv = tl.zeros([BLOCK_D, BLOCK_P], lse_ptr.dtype.element_ty)
    dgate = tl.zeros([BLOCK_P], lse_ptr.dtype.element_ty)
    gate = load_gate((prefix_gate_ptr, heads), pool_place, positions, inside, dgate.dtype)

    begin, end = touching_prompts(prompts, prompt_count, first, first + BLOCK_P)
    for prompt in range(begin, end):
        pool_start, pool_end = prompt_rows(prompts, prompt)
        visible = ((positions >= pool_start) & (positions < pool_end))[None, :]
        member = split
        last = tl.cast(sequences, tl.int64)
        if members_ptr is not None:
            member += tl.load(member_starts_ptr + prompt)
            last = tl.load(member_starts_ptr + prompt + 1)
        touched = (pool_start < first + BLOCK_P) & (pool_end > first)
        last = tl.where(touched, last, member)
        for index in range(member, last, splits):
            sequence = tl.cast(index, tl.int64)
            if members_ptr is not None:
                sequence = tl.load(members_ptr + index)
            own = locate_sequence(layout, sequence, head)
            _, _, start, rows_end, _, _ = own
            place = (sequence, head, start)
            for first_row in range(0, rows_end, BLOCK_M):
                rows = first_row + tl.arange(0, BLOCK_M)
                q = load_rows(query, own, rows, key_mask_ptr, HEAD_DIM, BLOCK_D)
                do = load_rows(grad_out, own, rows, key_mask_ptr, HEAD_DIM, BLOCK_D)
                lse = load_lse(lse_ptr, own, rows)
                if prompt_bounds_ptr is not None:  # other prompts' rows are among these
                    q, unusable = finite_rows(q)
                    lse += unusable
                    do, unusable = finite_rows(do)
                    lse += unusable
                keep = dropout_keep_unaligned(dropout, place, rows, first - pool_start, BLOCK_P)
                ungated = recompute_ungated(
                    q, k, gate, visible, lse[:, None], score_scale, PRECISION
                )
                if NEEDS_VALUE:
                    kept = drop(gated(ungated, gate), keep, dropout).to(do.dtype)
                    dv = tl.dot(tl.trans(do), kept, dv, input_precision=PRECISION)
                if NEEDS_KEY or NEEDS_GATE:
                    delta = load_delta(delta_ptr, own, rows)[:, None]
                    weight_grad = tl.dot(do, tl.trans(v), input_precision=PRECISION)
                    score_grad = score_gradient(ungated, weight_grad, keep, delta, dropout)
                    score_grad = tl.where(visible, score_grad, 0.0)  # others' rows may hold NaN
                    if NEEDS_GATE:
                        dgate += tl.sum(score_grad, 0)
                    if NEEDS_KEY:
                        score_grad = gated(score_grad, gate).to(dtype)
                        dk = tl.dot(tl.trans(q), score_grad, dk, input_precision=PRECISION)

    if NEEDS_KEY:
        dk *= score_scale * LN_2
        store_tile(partial_key, pool_place, tl.trans(dk), positions, inside, HEAD_DIM, BLOCK_D)
    if NEEDS_VALUE:
        dv *= dropout[2]
        store_tile(partial_value, pool_place, tl.trans(dv), positions, inside, HEAD_DIM, BLOCK_D)
    if NEEDS_GATE:
        store_gate_grad(partial_gate_ptr, pool_place, dgate, pool_rows, heads, positions)


def launch_prefix_grad(
    launch: Launch, rows: RowState, needs: Needs, tile: Tile
) -> list[Tensor | None]:
    """Return the gradients of the pool's keys, values and gates."""
    inputs = launch.inputs
    if needs.prefix_gate:  # its sums take registers
        tile = replace(tile, block_p=16)
    blocks = ceil_div(launch.pool_rows, tile.block_p)
    splits = launch.splits(launch.heads * blocks)
    sums = partial_sums(launch, needs, splits, rows.lse.dtype)
    prompt_count = 1
    members = member_starts = None
    if inputs.prompt_ids is not None:
        prompt_count = 1 if inputs.prompt_bounds is None else len(inputs.prompt_bounds)
        members, member_starts = members_by_prompt(inputs.prompt_ids, prompt_count)
    _prefix_grad_kernel[(blocks * splits * launch.heads,)](
        launch.matrix(rows.grad_out), launch.matrix(inputs.query),
        launch.matrix(inputs.prefix_key), launch.matrix(inputs.prefix_value), launch.gate,
        launch.cu_seqlens, *launch.counts, launch.prompts[1], launch.pool_rows, prompt_count,
        members, member_starts, launch.mask, launch.dropout, rows.lse, rows.delta,
        *map(partial_matrix, sums[:2]), sums[2], splits, launch.score_scale,
        NEEDS_KEY=needs.prefix_key, NEEDS_VALUE=needs.prefix_value,
        NEEDS_GATE=needs.prefix_gate, **launch.constants,
        BLOCK_M=tile.block_m, BLOCK_P=tile.block_p, **tile.launch_options,
    )  # fmt: skip
    return totals(launch, sums)


def members_by_prompt(prompt_ids: Tensor, prompt_count: int) -> tuple[Tensor, Tensor]:
    """Sequences in the order of their prompts, and where each prompt's begin: (prompts + 1,).

    Those without a prompt come first, before the first beginning. Nothing waits for the device.
    """
    ids, members = torch.sort(prompt_ids, stable=True)
    prompts = torch.arange(prompt_count + 1, device=ids.device, dtype=ids.dtype)
    return members, torch.searchsorted(ids, prompts)


def partial_sums(
    launch: Launch, needs: Needs, splits: int, precision: torch.dtype
) -> list[Tensor | None]:
    """Room for each share's gradients of the pool: (splits, *its shape), keys, values, gates."""
    pool, gate = launch.inputs.prefix_key, launch.inputs.prefix_gate
    return [
        x.new_empty((splits, *x.shape), dtype=precision) if need and x is not None else None
        for x, need in zip((pool, pool, gate), needs[3:], strict=True)
    ]


def partial_matrix(sums: Tensor | None) -> tuple[Tensor, int, int, int] | None:
    """Partial sums as kernels take them: a share is found where a sequence would be."""
    if sums is None:
        return None
    return sums, sums.stride(0), sums.stride(2), sums.stride(1)


def totals(launch: Launch, sums: list[Tensor | None]) -> list[Tensor | None]:
    """The gradients of the pool, in the dtypes of what they are of."""
    pool, gate = launch.inputs.prefix_key, launch.inputs.prefix_gate
    return [
        None if x is None or of is None else x.sum(0).to(of.dtype)
        for x, of in zip(sums, (pool, pool, gate), strict=True)
    ]

"""Are the Triton kernels right on this machine? Every dtype, layout, mask, dropout, bank.

    python benchmarks/check_kernels.py --output results/check.json

Results and gradients against the reference in float64; the same bits in 100 runs; a sequence's
bits alone and in a batch. Exits with 1 if anything is wrong.
"""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from measure import argument_parser, provenance, write_json
from torch import Tensor

from ptv2_kernels import prefix_attention, prefix_attention_varlen
from ptv2_kernels.testing import (
    GRADIENTS,
    LIMITS,
    make_inputs,
    make_positions,
    pack,
    relative_l2,
)

PROMPTS = {"one prompt": (20,), "long prompt": (150,), "bank": (20, 0, 37, 5)}
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": 17},
    "dropout": {"dropout_p": 0.1},
    "gates": {"dropout_p": 0.1},
    "positions": {"dropout_p": 0.1},
}


def make_case(
    layout: str, prompts: str, lengths: list[int], dtype: torch.dtype, head_dim: int, **more: Any
) -> tuple[dict[str, Any], Tensor]:
    """Arguments of the layout's function, what masks hide poisoned with NaN, and dO."""
    longest = max(lengths)
    inputs = make_inputs(
        *(len(lengths), 2, longest, head_dim),
        prompts=PROMPTS[prompts],
        mixed=prompts == "bank",
        dtype=dtype,
        **more,
    )
    grad_out = torch.randn(inputs["query"].shape).to(inputs["query"])
    inside = torch.arange(longest) < torch.tensor(lengths)[:, None]
    hidden = ~inside.to(grad_out.device)[:, None, :, None]
    for x in (grad_out, *(inputs[name] for name in GRADIENTS[:3])):
        x.masked_fill_(hidden, float("nan"))
    if layout == "packed":
        ends = torch.tensor((0, *lengths)).cumsum(0).to(torch.int32)
        inputs |= {name: pack(inputs[name], lengths) for name in GRADIENTS[:3]}
        inputs |= {"cu_seqlens": ends.to(grad_out.device), "max_seqlen": longest}
        return inputs, pack(grad_out, lengths)
    if layout == "masked":
        inputs["key_mask"] = ~hidden[:, 0, :, 0]
    return inputs, grad_out


def evaluate(inputs: dict[str, Any], grad_out: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """out and the gradients; the same dropout in every call."""
    torch.manual_seed(1)
    function = prefix_attention_varlen if "cu_seqlens" in inputs else prefix_attention
    names = (*GRADIENTS, "prefix_gate") if "prefix_gate" in inputs else GRADIENTS
    leaves = {name: inputs[name].detach().clone().requires_grad_() for name in names}
    out = function(**inputs | leaves, **options)
    return out, *torch.autograd.grad(out, tuple(leaves.values()), grad_out)


def worst_error(inputs: dict[str, Any], grad_out: Tensor, options: dict[str, Any]) -> float:
    """The largest relative error of out and the gradients; infinite for a stray NaN."""
    found = evaluate(inputs, grad_out, impl="triton", **options)
    names = (*GRADIENTS, "prefix_gate") if "prefix_gate" in inputs else GRADIENTS
    exactly = inputs | {name: inputs[name].double() for name in names}
    if "positions" in inputs:
        tables = inputs["positions"]
        doubled = {"key": tables.key.double(), "query": tables.query.double()}
        exactly["positions"] = tables._replace(**doubled)
    expected = evaluate(exactly, grad_out.double(), impl="reference", **options)
    errors = [relative_l2(x, y) for x, y in zip(found, expected, strict=True)]
    return max(float("inf") if error != error else error for error in errors)


Case = tuple[torch.dtype, int, tuple[int, ...], str, str, str]


def cases(toy: bool) -> list[Case]:
    """Everything at heads of 64, and at the other sizes a mixed batch and a plain one."""
    dtypes = [torch.bfloat16, torch.float16, torch.float32] if not toy else [torch.float32]
    head_dims = [64, 16, 24, 32, 80, 96, 128] if not toy else [16]
    lengths = [(128, 1, 77, 40), (515, 128, 1, 300)] if not toy else [(9, 1, 5)]
    found = []
    for case in itertools.product(
        dtypes, head_dims, lengths, ("masked", "packed", "full"), PROMPTS, OPTIONS
    ):
        _, head_dim, _, _, prompts, options = case
        extra = options in ("gates", "positions")
        left_out = prompts != "bank" if extra else toy and prompts == "long prompt"
        usual = head_dim == head_dims[0] and not left_out
        if usual or (prompts, options) in {
            ("bank", "dropout"),
            ("one prompt", "plain"),
            ("bank", "gates"),
        }:
            found.append(case)
    return found


def check_case(case: Case, device: torch.device) -> dict[str, Any]:
    """A case's error, and whether it keeps to the limit."""
    dtype, head_dim, lengths, layout, prompts, options = case
    rows = [max(lengths)] * 2 if layout == "full" else list(lengths)
    name = f"{str(dtype)[6:]}, head {head_dim}, {lengths}, {layout}, {prompts}, {options}"
    try:
        more = {"device": device, "gated": options == "gates"}
        inputs, grad_out = make_case(layout, prompts, rows, dtype, head_dim, **more)
        if options == "positions":
            inputs["positions"] = make_positions(inputs, max(rows) - 1)
        error = worst_error(inputs, grad_out, OPTIONS[options])
    except Exception as problem:  # a kernel that does not compile or run is a finding too
        return {"case": name, "error": repr(problem)[:500], "good": False}
    return {"case": name, "error": error, "good": error <= LIMITS[dtype]}


def check_numbers(device: torch.device, toy: bool) -> Iterator[dict[str, Any]]:
    """A row for each case. Processes share them: most of the time goes into compiling."""
    check = partial(check_case, device=device)
    if device.type != "cuda":
        yield from map(check, cases(toy))
        return
    with ProcessPoolExecutor(12, mp_context=get_context("spawn")) as pool:
        yield from pool.map(check, cases(toy))


def check_bits(device: torch.device, toy: bool) -> list[dict[str, Any]]:
    """The same bits in every run, and for a sequence whatever is beside it."""
    rows = []
    dtype = torch.float32 if toy else torch.bfloat16
    lengths, head_dim = ([9, 5, 7], 16) if toy else ([200, 128, 77, 1] * 4, 64)
    for layout, prompts in itertools.product(("masked", "packed"), ("one prompt", "bank")):
        inputs, grad_out = make_case(layout, prompts, lengths, dtype, head_dim, device=device)
        options = {"impl": "triton", "dropout_p": 0.1}
        first = evaluate(inputs, grad_out, **options)
        good = all(
            torch.equal(torch.nan_to_num(x), torch.nan_to_num(y))
            for _ in range(2 if toy else 100)
            for x, y in zip(evaluate(inputs, grad_out, **options), first, strict=True)
        )
        rows.append({"case": f"same bits, {layout}, {prompts}", "good": good})
    inputs, grad_out = make_case("masked", "bank", lengths, dtype, head_dim, device=device)
    own = {*GRADIENTS[:3], "prompt_ids", "key_mask"}
    alone = {name: x[2:3] if name in own else x for name, x in inputs.items()}
    single = evaluate(alone, grad_out[2:3], impl="triton")
    whole = evaluate(inputs, grad_out, impl="triton")
    good = all(
        torch.equal(torch.nan_to_num(x[2:3]), torch.nan_to_num(y))
        for x, y in zip(whole[:4], single[:4], strict=True)
    )
    rows.append({"case": "same bits alone and in a batch", "good": good})
    return rows


def check_memory(device: torch.device) -> Iterator[dict[str, Any]]:
    """What compute-sanitizer says of a few calls; nothing where it is not installed."""
    tool = shutil.which("compute-sanitizer")
    if tool is None or device.type != "cuda":
        return
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, __file__]
    command += ["--few", "--output", os.devnull]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # a block per tensor
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=environment
        )
        good, said = result.returncode == 0, result.stdout[-500:] + result.stderr[-500:]
    except subprocess.TimeoutExpired:
        good, said = False, "out of time: nothing is known"
    yield {"case": "compute-sanitizer", "good": good, "said": said}


def few_errors(device: torch.device) -> float:
    """The worst error of a few calls that run every kernel, with odd sizes."""
    found = [
        worst_error(
            *make_case("packed", prompts, lengths, torch.float16, 24, device=device),
            {"dropout_p": 0.1},
        )
        for lengths in ([128, 77], [300, 5])
        for prompts in ("one prompt", "bank")
    ]
    return max(found)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--few", action="store_true", help="a few calls, then stop")
    args = parser.parse_args()
    if args.few:
        sys.exit(few_errors(args.device) > LIMITS[torch.float16])
    rows: list[dict[str, Any]] = []
    parts = (
        check_bits(args.device, args.toy),
        check_numbers(args.device, args.toy),
        check_memory(args.device),
    )
    origin = provenance(args.device)
    for row in itertools.chain(*parts):
        rows.append(row)
        if not row["good"]:
            print("WRONG", row, flush=True)
        if len(rows) % 20 == 0:
            write_json(args.output, {"provenance": origin, "cases": rows})
    wrong = sum(not row["good"] for row in rows)
    write_json(args.output, {"provenance": origin, "wrong": wrong, "cases": rows})
    print(f"{len(rows)} cases, {wrong} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

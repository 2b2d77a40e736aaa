"""Are the Triton kernels right on this machine? Every dtype, layout, mask, dropout, bank.

    python benchmarks/check_kernels.py --output results/check.json

Results and gradients against the reference in float64; the same bits in 100 runs; a sequence's
bits alone and in a batch. Exits with 1 if anything is wrong.
"""

import argparse
import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from bench_kernel import default_device
from measure import provenance, write_json
from torch import Tensor

from ptv2_kernels import prefix_attention, prefix_attention_varlen
from ptv2_kernels.testing import GRADIENTS, make_inputs, pack, relative_l2

LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
PROMPTS = {"one prompt": (20,), "long prompt": (150,), "bank": (20, 0, 37, 5)}
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": 17},
    "dropout": {"dropout_p": 0.1},
}


def make_case(
    layout: str, prompts: str, lengths: list[int], dtype: torch.dtype, head_dim: int, **where: Any
) -> tuple[dict[str, Any], Tensor]:
    """Arguments of the layout's function, what masks hide poisoned with NaN, and dO."""
    longest = max(lengths)
    inputs = make_inputs(
        *(len(lengths), 2, longest, head_dim),
        prompts=PROMPTS[prompts],
        mixed=prompts == "bank",
        dtype=dtype,
        **where,
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
    """out and the five gradients; the same dropout in every call."""
    torch.manual_seed(1)
    function = prefix_attention_varlen if "cu_seqlens" in inputs else prefix_attention
    leaves = {name: inputs[name].detach().clone().requires_grad_() for name in GRADIENTS}
    out = function(**inputs | leaves, **options)
    return out, *torch.autograd.grad(out, tuple(leaves.values()), grad_out)


def worst_error(inputs: dict[str, Any], grad_out: Tensor, options: dict[str, Any]) -> float:
    """The largest relative error of out and the gradients; infinite for a stray NaN."""
    found = evaluate(inputs, grad_out, impl="triton", **options)
    exactly = inputs | {name: inputs[name].double() for name in GRADIENTS}
    expected = evaluate(exactly, grad_out.double(), impl="reference", **options)
    errors = [relative_l2(x, y) for x, y in zip(found, expected, strict=True)]
    return max(float("inf") if error != error else error for error in errors)


def check_numbers(device: torch.device, toy: bool) -> list[dict[str, Any]]:
    """A row for each case: its error, its limit, whether it holds."""
    dtypes = [torch.bfloat16, torch.float16, torch.float32] if not toy else [torch.float32]
    head_dims = [64, 16, 24, 32, 80, 96, 128] if not toy else [16]
    lengths = {"short": [128, 1, 77, 40], "long": [515, 128, 1, 300]}
    if toy:
        lengths = {"short": [9, 1, 5]}
    rows = []
    cases = itertools.product(
        dtypes, head_dims, lengths, ("masked", "packed", "full"), PROMPTS, OPTIONS
    )
    for dtype, head_dim, size, layout, prompts, options in cases:
        usual = head_dim == head_dims[0] and not (toy and prompts == "long prompt")
        if not usual and (prompts, options) not in {("bank", "dropout"), ("one prompt", "plain")}:
            continue
        longest = [max(lengths[size])] * 2 if layout == "full" else lengths[size]
        inputs, grad_out = make_case(layout, prompts, longest, dtype, head_dim, device=device)
        error = worst_error(inputs, grad_out, OPTIONS[options])
        name = f"{str(dtype)[6:]}, head {head_dim}, {size}, {layout}, {prompts}, {options}"
        rows.append({"case": name, "error": error, "good": error <= LIMITS[dtype]})
        if not rows[-1]["good"]:
            print(f"WRONG {name}: {error:.2e}", flush=True)
    return rows


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


def check_memory(device: torch.device) -> dict[str, Any] | None:
    """What compute-sanitizer says of one run; None where it is not installed."""
    tool = shutil.which("compute-sanitizer")
    if tool is None or device.type != "cuda":
        return None
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, __file__]
    result = subprocess.run([*command, "--one"], capture_output=True, text=True)
    return {
        "case": "compute-sanitizer",
        "good": result.returncode == 0,
        "said": result.stdout[-500:],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=torch.device, default=default_device())
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--one", action="store_true", help="one call of everything, then stop")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.one:
        case = make_case("packed", "bank", [128, 77], torch.float16, 64, device=args.device)
        sys.exit(worst_error(*case, {"dropout_p": 0.1}) > LIMITS[torch.float16])
    rows = check_bits(args.device, args.toy) + check_numbers(args.device, args.toy)
    sanitizer = check_memory(args.device)
    rows += [] if sanitizer is None else [sanitizer]
    bad = [row for row in rows if not row["good"]]
    if args.output is not None:
        result = {"provenance": provenance(args.device), "wrong": len(bad), "cases": rows}
        write_json(args.output, result)
    print(f"{len(rows)} cases, {len(bad)} wrong", *(row["case"] for row in bad), sep="\n")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()

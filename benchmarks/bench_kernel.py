"""The operation beside every rival: forward, backward, peak memory, bytes kept for the backward.

    python benchmarks/bench_kernel.py --output results/kernel.json [--problems short train]
    [--device cuda]

A rival is timed only if its result and its five gradients agree with the reference in float64;
what disagrees, or refuses the inputs, is listed with the reason. Times are medians of interleaved
runs, with the inputs in the cache ("warm") or evicted from it ("cold"); the spread is the middle
half of the runs, as a share of the median.
"""

import json
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import (
    argument_parser,
    peak_bytes,
    provenance,
    saved_bytes,
    spread,
    times_interleaved,
    write_json,
)
from report_tables import headline
from rivals import RIVALS, AttentionInputs, Plan, Rival, Unsupported, forget_shapes, refusals
from torch import Tensor

from ptv2_kernels.testing import GRADIENTS, make_inputs, relative_l2

AGREEMENT = {torch.float32: 2e-3, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""The largest relative error of a rival that is timed; float32 may be multiplied as TF32."""


@dataclass(frozen=True)
class Problem:
    """What is computed; 12 heads of 64 as in BERT-base."""

    batch: int
    length: int
    prompt_length: int = 20
    prompts: int = 1  # more: sequences use them in turn
    heads: int = 12
    head_dim: int = 64
    dtype: str = "bfloat16"
    padded: bool = False  # lengths from half of `length` to all of it
    dropout_p: float = 0.0
    seed: int = 0  # of the numbers

    def flops(self) -> int:
        """Of the forward: two products of each row with each key, padding counted as work."""
        columns = self.prompt_length + self.length
        return 4 * self.batch * self.heads * self.length * columns * self.head_dim

    def bytes(self) -> int:
        """That a forward must move: query, key, value and out once, the pool once, lse."""
        rows = self.batch * self.heads * self.length
        pool = 2 * self.prompts * self.prompt_length * self.heads
        size = getattr(torch, self.dtype).itemsize
        return (4 * rows + pool) * self.head_dim * size + 4 * rows


@cache
def make(problem: Problem, device: torch.device) -> AttentionInputs:
    """Random inputs, always the same."""
    sizes = (problem.batch, problem.heads, problem.length, problem.head_dim)
    pools = (problem.prompt_length,) * problem.prompts
    dtype = getattr(torch, problem.dtype)
    tensors = make_inputs(*sizes, prompts=pools, dtype=dtype, device=device, seed=problem.seed)
    lengths = [problem.length] * problem.batch
    ids = [i % problem.prompts for i in range(problem.batch)]
    prompt_ids = bounds = mask = None
    if problem.padded:
        half = problem.length // 2
        lengths = [problem.length - (i * 7919) % (half + 1) for i in range(problem.batch)]
        ends = torch.tensor(lengths)[:, None]
        mask = (torch.arange(problem.length) < ends).to(device)
    if problem.prompts > 1:
        starts = torch.arange(0, sum(pools), problem.prompt_length, dtype=torch.int32)
        bounds = torch.stack((starts, starts + problem.prompt_length), 1).to(device)
        prompt_ids = torch.tensor(ids).to(device)
    plan = Plan(mask, lengths, ids, problem.length, problem.prompt_length, sum(pools), device)
    matrices = [tensors[name] for name in GRADIENTS]
    return AttentionInputs(*matrices, prompt_ids, bounds, mask, plan, problem.dropout_p)


PROBLEMS = {
    "short": Problem(32, 128),
    "middle": Problem(8, 512),
    "long": Problem(4, 2048),
    "long prompt": Problem(32, 128, prompt_length=128),
    "padded": Problem(32, 128, padded=True),
    "training": Problem(32, 128, padded=True, dropout_p=0.1),
    "training, middle": Problem(8, 512, padded=True, dropout_p=0.1),
    "bank": Problem(64, 128, prompts=64, padded=True),
    "float32": Problem(16, 128, dtype="float32"),
    "float16": Problem(32, 128, dtype="float16"),
}
CPU_PROBLEMS = {
    f"cpu {batch}x{length}, prompt {prompt}, head {head}, {dtype}": Problem(
        batch, length, prompt, head_dim=head, dtype=dtype
    )
    for dtype in ("float32", "bfloat16")
    for batch, length, prompt, head in (
        *((16, 128, 20, 64), (32, 128, 64, 64), (8, 512, 128, 64)),
        *((32, 128, 64, 32), (64, 32, 16, 32), (1, 128, 20, 64)),
    )
} | {
    "cpu training": Problem(16, 128, dtype="float32", padded=True, dropout_p=0.1),
    "cpu bank": Problem(64, 128, prompts=64, dtype="float32", padded=True),
}
"""For a CPU; a GPU's would take it minutes each."""


def toy(problem: Problem) -> Problem:
    """The same at a size for the interpreter."""
    sizes = dict(batch=2, length=12, prompt_length=3, heads=1, head_dim=16, dtype="float32")
    return replace(problem, prompts=min(problem.prompts, 3), **sizes)


def gradients(rival: Rival, inputs: AttentionInputs, grad_out: Tensor) -> tuple[Tensor, ...]:
    """out, then the gradients of the five matrices."""
    matrices = {name: getattr(inputs, name).detach().requires_grad_() for name in GRADIENTS}
    out = rival(replace(inputs, **matrices))
    return out, *torch.autograd.grad(out, tuple(matrices.values()), grad_out)


@dataclass
class Judge:
    """The reference's results in float64, and what they say of a rival's; without dropout."""

    inputs: AttentionInputs
    grad_out: Tensor
    expected: tuple[Tensor, ...]

    @classmethod
    def of(cls, problem: Problem, device: torch.device) -> "Judge":
        """Compute the results."""
        inputs = make(replace(problem, dropout_p=0.0), device)
        grad_out = torch.randn_like(inputs.query)
        if inputs.key_mask is not None:
            grad_out.masked_fill_(~inputs.key_mask[:, None, :, None], 0)
        exactly = replace(inputs, **{name: getattr(inputs, name).double() for name in GRADIENTS})
        expected = gradients(RIVALS["ptv2 reference"], exactly, grad_out.double())
        return cls(inputs, grad_out, expected)

    def errors(self, rival: Rival) -> dict[str, float]:
        """Relative errors of out and the gradients; padded rows of out do not count."""
        found = list(gradients(rival, self.inputs, self.grad_out))
        expected = list(self.expected)
        if self.inputs.key_mask is not None:
            hidden = ~self.inputs.key_mask[:, None, :, None]
            found[0], expected[0] = (x[0].masked_fill(hidden, 0) for x in (found, expected))
        names = ("out", *GRADIENTS)
        return {n: relative_l2(x, y) for n, x, y in zip(names, found, expected, strict=True)}


def check(problem: Problem, device: torch.device) -> tuple[dict[str, Rival], list[dict[str, Any]]]:
    """The rivals whose results agree, and what was found of each."""
    good, rows = {}, []
    judge, inputs = Judge.of(problem, device), make(problem, device)
    for name, rival in RIVALS.items():
        row: dict[str, Any] = {"rival": name}
        rows.append(row)
        try:
            with refusals(name):
                gradients(rival, inputs, judge.grad_out)  # with dropout, if the problem has it
                row["errors"] = judge.errors(rival)
        except Unsupported as reason:
            row["unsupported"] = str(reason)
            continue
        limit = AGREEMENT[getattr(torch, problem.dtype)]
        if all(error <= limit for error in row["errors"].values()):  # not so for NaN
            good[name] = rival
        else:
            row["wrong"] = f"relative error {max(row['errors'].values()):.1e}"
    return good, rows


def measure(problem: Problem, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """A row for each rival: errors, seconds and bytes, or why there are none."""
    forget_shapes()
    rivals, rows = check(problem, device)
    inputs = make(problem, device)
    leaves = {name: getattr(inputs, name).detach().requires_grad_() for name in GRADIENTS}
    with_grad = replace(inputs, **leaves)
    grad_out = torch.randn_like(inputs.query)
    forward = {name: partial(without_grad, rival, inputs) for name, rival in rivals.items()}
    both = {name: partial(gradients, rival, inputs, grad_out) for name, rival in rivals.items()}
    timed = {
        f"{part}, {state}": times_interleaved(functions, device, rounds, cold=state == "cold")
        for part, functions in (("forward", forward), ("forward + backward", both))
        for state in ("warm", "cold")
    }
    for row in rows:
        name = row["rival"]
        if name in rivals:
            row["seconds"] = {part: median(times[name]) for part, times in timed.items()}
            row["spread"] = {part: spread(times[name]) for part, times in timed.items()}
            row["peak bytes, forward"] = peak_bytes(forward[name], device)
            row["peak bytes, forward + backward"] = peak_bytes(both[name], device)
            row["saved bytes"] = saved_bytes(partial(rivals[name], with_grad))
            row["forward TFLOP/s"] = problem.flops() / row["seconds"]["forward, warm"] / 1e12
    return rows


def without_grad(rival: Rival, inputs: AttentionInputs) -> Tensor:
    """A call as inference makes it."""
    with torch.no_grad():
        return rival(inputs)


def floor(problem: Problem, hardware: dict[str, float] | None) -> dict[str, float] | None:
    """The least seconds a forward can take on hardware of measured bandwidth and matrix speed."""
    if hardware is None:
        return None
    return {
        "memory": problem.bytes() / hardware["copy bytes per second"],
        "matrix products": problem.flops() / hardware["matrix FLOP per second"],
    }


def table(
    name: str, problem: Problem, rows: list[dict[str, Any]], floors: dict[str, float] | None
) -> str:
    """The rows as people read them, in microseconds and MiB, with the ratio to the best rival."""
    part = "forward + backward, warm"
    rivals = [
        row["seconds"][part] for row in rows if "seconds" in row and "ptv2" not in row["rival"]
    ]
    best = min(rivals, default=None)
    lines = [f"{name}: {problem}", f"{'':32}{'forward':>10}{'both':>10}{'saved':>9}  of the best"]
    if floors is not None:
        lines.append(f"  {'(roofline)':30}{max(floors.values()) * 1e6:10.1f}")
    for row in rows:
        if "seconds" not in row:
            why = row.get("unsupported") or row["wrong"]
            lines.append(f"  {row['rival']:30}{why[:80]}")
            continue
        forward, both = row["seconds"]["forward, warm"], row["seconds"][part]
        ratio = f"{both / best:.2f}" if best else "-"
        lines.append(
            f"  {row['rival']:30}{forward * 1e6:10.1f}{both * 1e6:10.1f}"
            f"{row['saved bytes'] / 2**20:9.2f}  {ratio}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argument_parser(__doc__)
    every = PROBLEMS | CPU_PROBLEMS
    parser.add_argument("--problems", nargs="+", choices=every, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--hardware", type=Path, help="result of hardware.py, for the roofline")
    args = parser.parse_args()
    hardware = read_hardware(args.hardware)
    results = {"provenance": provenance(args.device), "hardware": hardware, "problems": {}}
    on_cpu = args.device.type == "cpu" and not args.toy
    for name in args.problems or (CPU_PROBLEMS if on_cpu else PROBLEMS):
        problem = toy(every[name]) if args.toy else every[name]
        rows = measure(problem, args.device, args.rounds)
        floors = floor(problem, hardware)
        results["problems"][name] = {
            "problem": asdict(problem),
            "flops": problem.flops(),
            "bytes": problem.bytes(),
            "floor seconds": floors,
            "rivals": rows,
        }
        write_json(args.output, results)
        print(table(name, problem, rows, floors), flush=True)
    print(headline(results))


def read_hardware(path: Path | None) -> Any:
    """The measured speeds; None where they were not measured."""
    if path is None or not path.exists():
        return None
    return json.loads(path.read_text())["hardware"]


if __name__ == "__main__":
    main()

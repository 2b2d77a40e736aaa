"""What a call costs the host, and whether graphs and compilers take it.

    python benchmarks/bench_host.py --output results/host.json

Host time: how long a call takes to return, with work so small that the device never holds it up.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from bench_kernel import Problem, gradients, make, without_grad
from measure import argument_parser, provenance, write_json
from rivals import RIVALS, Unsupported, refusals

from ptv2_kernels import prefix_attention
from ptv2_kernels.testing import GRADIENTS, relative_l2

NAMES = ("ptv2 triton", "ptv2 reference", "concat, sdpa efficient", "concat, eager")


def host_seconds(function: Callable[[], Any], device: torch.device, calls: int) -> float:
    """Median seconds until a call returns."""
    found = []
    for _ in range(calls + 3):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        function()
        found.append(time.perf_counter() - begin)
    return median(found[3:])


def host_times(problem: Problem, device: torch.device, calls: int) -> dict[str, Any]:
    """Seconds of a forward, and of a forward and backward, for a few rivals."""
    inputs = make(problem, device)
    grad_out = torch.randn_like(inputs.query)
    rows: dict[str, Any] = {}
    for name in NAMES:
        rival = RIVALS[name]
        try:
            with refusals(name):
                rows[name] = {
                    "forward": host_seconds(partial(without_grad, rival, inputs), device, calls),
                    "forward + backward": host_seconds(
                        partial(gradients, rival, inputs, grad_out), device, calls
                    ),
                }
        except Unsupported as reason:
            rows[name] = {"unsupported": str(reason)}
    return rows


def graph_capture(problem: Problem, device: torch.device) -> str:
    """Capture a forward and backward in a CUDA graph and replay it on new inputs."""
    if device.type != "cuda":
        return "no GPU"
    rival = RIVALS["ptv2 triton"]
    inputs = make(problem, device)
    grad_out = torch.randn_like(inputs.query)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            gradients(rival, inputs, grad_out)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(rival, inputs, grad_out)
    for name in GRADIENTS:
        getattr(inputs, name).copy_(torch.randn_like(getattr(inputs, name)))
    graph.replay()
    expected = gradients(rival, inputs, grad_out)
    same = all(torch.equal(x, y) for x, y in zip(captured, expected, strict=True))
    return "same bits" if same else "WRONG: a replay differs from a call"


def compiled(problem: Problem, device: torch.device, backend: str) -> str:
    """torch.compile without a break, forward and backward, against a plain call."""
    inputs = make(problem, device)
    matrices = {name: getattr(inputs, name) for name in GRADIENTS}
    impl = "triton" if device.type == "cuda" else "reference"
    optional = {"prompt_ids": inputs.prompt_ids, "prompt_bounds": inputs.prompt_bounds}
    function = partial(prefix_attention, **optional, key_mask=inputs.key_mask, impl=impl)
    results = []
    for call in (function, torch.compile(function, fullgraph=True, backend=backend)):
        leaves = {name: x.detach().requires_grad_() for name, x in matrices.items()}
        out = call(**leaves)
        results.append((out, *torch.autograd.grad(out.square().sum(), tuple(leaves.values()))))
    worst = max(relative_l2(x, y) for x, y in zip(*results, strict=True))
    return f"relative difference {worst:.1e}" if worst < 1e-2 else f"WRONG: {worst:.1e}"


def main() -> None:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    problem = Problem(1, 16, heads=2, dtype="float32" if args.toy else "bfloat16")
    bank = replace(problem, prompts=2, batch=2)
    backend = "aot_eager" if args.toy else "inductor"
    parts: dict[str, Callable[[], Any]] = {
        "host seconds": partial(host_times, problem, args.device, 3 if args.toy else 200),
        "graph": partial(graph_capture, problem, args.device),
        "graph, bank": partial(graph_capture, bank, args.device),
        "compile": partial(compiled, bank, args.device, backend),
    }
    result: dict[str, Any] = {"provenance": provenance(args.device)}
    for name, part in parts.items():
        try:
            result[name] = part()
        except Exception as error:  # a finding; the other parts still run
            result[name] = f"WRONG: {type(error).__name__}: {str(error)[:500]}"
        write_json(args.output, result)
        print(f"{name}: {result[name]}", flush=True)
    if any("WRONG" in str(result[name]) for name in parts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

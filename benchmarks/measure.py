"""What the benchmarks share: timing, memory, and where a result comes from."""

import argparse
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

CACHE_BYTES = 256 * 2**20
"""Written before a cold run; more than the L2 cache of any GPU so far."""
CYCLES_PER_SECOND = 2e9
"""At least the clock of a GPU: how long `torch.cuda._sleep` takes."""
BF16_PRODUCTS = {"fp32": "", "pairs": ", ptv2's bf16 in pairs", "amx": ", ptv2's bf16 by AMX"}
"""What ptv2's native implementation multiplies bf16 with."""
NOT_SOURCES = (":!/benchmarks/results", ":!/kernels/ptv2_kernels/tiles/nvidia-*")
"""What these scripts write: it does not make the sources differ from their commit."""


def provenance(device: torch.device) -> dict[str, Any]:
    """Device, versions and commit."""
    root = Path(__file__).parent
    names = ("torch", "triton", "transformers", "numpy", "flash-attn", "peft")
    return {
        "device": device_name(device),
        "capability": torch.cuda.get_device_capability(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in names},
        "commit": commit(root),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every script has: where to run, how large, where the result goes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", type=torch.device, default=default_device())
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--output", type=Path, required=True)
    return parser


def default_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """The GPU's name; of a CPU what ratios depend on: cores, instructions, products of bf16."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    from ptv2_kernels import native  # not in the environments of rivals, which need no name

    instructions = torch.backends.cpu.get_cpu_capability()
    if torch.cpu._is_amx_tile_supported():
        instructions += " and AMX"
    if native.WHY_MISSING is None:
        instructions += BF16_PRODUCTS[native.product_format(torch.bfloat16)]
    return f"{cpu_name()}, {os.cpu_count()} cores, {instructions}"


def cpu_name() -> str:
    """As the processor calls itself, where Linux says it."""
    known = Path("/proc/cpuinfo")
    found = (
        re.search(r"^model name\s*:\s*(.+)$", known.read_text(), re.M) if known.exists() else None
    )
    return found[1].strip() if found else f"{platform.machine()} CPU"


def commit(root: Path) -> str | None:
    """The commit of the sources, with a mark if they differ from it; None outside of a clone.

    PTV2_COMMIT says it where the sources are a copy without their history.
    """
    found = os.environ.get("PTV2_COMMIT")
    if found:
        return found
    found = _output("git", "-C", str(root), "rev-parse", "HEAD")
    if not found:
        return None
    status = ("git", "-C", str(root), "status", "--porcelain", "--", ":/", *NOT_SOURCES)
    return found + ("+changes" if _output(*status) else "")


def _output(*command: str) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def package_version(name: str) -> str | None:
    """None: it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def write_json(path: Path, content: Any) -> None:
    """Write a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, default=str) + "\n")
    part.replace(path)


def time_interleaved(
    functions: dict[Any, Callable[[], Any]],
    device: torch.device,
    rounds: int,
    *,
    cold: bool = False,
) -> dict[Any, float]:
    """Median seconds of each function, as `times_interleaved` finds them."""
    timed = times_interleaved(functions, device, rounds, cold=cold)
    return {name: median(seconds) for name, seconds in timed.items()}


def spread(values: Sequence[float]) -> float:
    """The middle half of some values, from end to end, as a share of their median."""
    if len(values) < 2:
        return 0.0
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


def times_interleaved(
    functions: dict[Any, Callable[[], Any]],
    device: torch.device,
    rounds: int,
    *,
    cold: bool = False,
) -> dict[Any, list[float]]:
    """Seconds of each function; they take turns, so that a slow phase meets all of them.

    On a GPU it is the work that is timed, not the launches: the GPU waits until the host has
    enqueued all of it, unless a function itself waits for the GPU.

    Args:
        cold: evict the cache before each run. Else a run finds what the run before left there.
    """
    evict = torch.empty(CACHE_BYTES if cold else 0, dtype=torch.uint8, device=device)
    waits = {name: 2 * _enqueue_seconds(function, device) for name, function in functions.items()}
    timed: dict[Any, list[Any]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            evict.zero_()
            timed[name].append(_time(function, device, waits[name]))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        timed = {
            name: [start.elapsed_time(end) / 1e3 for start, end in events]
            for name, events in timed.items()
        }
    return timed


def _enqueue_seconds(function: Callable[[], Any], device: torch.device) -> float:
    """How long the host needs, once everything is compiled and allocated."""
    seconds = 0.0
    for _ in range(3 if device.type == "cuda" else 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        function()
        seconds = time.perf_counter() - begin
    return seconds


def _time(function: Callable[[], Any], device: torch.device, wait: float) -> Any:
    """Seconds on a CPU; the events around the work on a GPU."""
    if device.type != "cuda":
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    torch.cuda._sleep(int(max(wait, 1e-3) * CYCLES_PER_SECOND))
    start.record()
    function()
    end.record()
    return start, end


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int | None:
    """How much more memory than before a call holds at its peak; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = function()
    torch.cuda.synchronize(device)
    del result
    return torch.cuda.max_memory_allocated(device) - before


def cpu_peak_bytes(function: Callable[[], Any]) -> int:
    """The same on a CPU, by torch's profiler: for models, since it records every operator."""
    function()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def saved_bytes(function: Callable[[], Any]) -> int:
    """Bytes of distinct memory that autograd keeps for the backward of one call."""
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = function()
    del result
    return sum(storages.values())

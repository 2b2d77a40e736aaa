"""What the benchmarks share: timing, memory, and where a result comes from."""

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

CACHE_BYTES = 256 * 2**20
"""Written before a cold run; more than the L2 cache of any GPU so far."""
AHEAD_CYCLES = 400_000
"""For so long a GPU waits while the host enqueues what is timed: so launches cost it no time."""


def provenance(device: torch.device) -> dict[str, Any]:
    """Device, versions and commit."""
    root = Path(__file__).parent
    names = ("torch", "triton", "transformers", "numpy", "flash-attn")
    return {
        "device": device_name(device),
        "capability": torch.cuda.get_device_capability(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in names},
        "commit": commit(root),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or what is known of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


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
    return found + ("+changes" if _output("git", "-C", str(root), "status", "--porcelain") else "")


def _output(*command: str) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _version(name: str) -> str | None:
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


def slug(name: str) -> str:
    """A name as a file has it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def time_interleaved(
    functions: dict[str, Callable[[], Any]],
    device: torch.device,
    rounds: int,
    *,
    cold: bool = False,
    prepare: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Median seconds of each function; they take turns, so that a slow phase meets all of them.

    Args:
        cold: evict the cache before each run. Else a run finds what the run before left there.
        prepare: called before each run, not timed.
    """
    evict = torch.empty(CACHE_BYTES if cold else 0, dtype=torch.uint8, device=device)
    timed: dict[str, list[Any]] = {name: [] for name in functions}
    for function in functions.values():
        for _ in range(2):  # compiles, allocates
            if prepare is not None:
                prepare()
            function()
    for _ in range(rounds):
        for name, function in functions.items():
            if prepare is not None:
                prepare()
            evict.zero_()
            timed[name].append(_time(function, device))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        timed = {
            name: [start.elapsed_time(end) / 1e3 for start, end in events]
            for name, events in timed.items()
        }
    return {name: median(seconds) for name, seconds in timed.items()}


def _time(function: Callable[[], Any], device: torch.device) -> Any:
    """Seconds on a CPU; the events around the work on a GPU."""
    if device.type != "cuda":
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(AHEAD_CYCLES)
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

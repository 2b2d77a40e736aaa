"""The measurements of `bench_serving.py`: answers first, then rates and latencies, then memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite, isnan
from statistics import median
from typing import Any

from processes import Process
from serving_setup import Setup

EQUAL = ("ptv2", "compiled", "peft", "adapters")
"""The systems that give the same answers."""
TOLERANCE = {"fp32": 3e-5, "bf16": 0.03, "fp16": 0.004}
"""Of the largest logit, by the encoder's dtype: three times what BERT-base's answers differ by."""
PRECISION = 1.06
"""The ratio of two rates between which the highest is not looked for any more."""
SLOWEST = 0.1
"""A rate in requests a second; a system that does not hold it holds none."""

Point = dict[str, Any]


@dataclass(frozen=True)
class Load:
    """How rates are measured.

    Args:
        bound: of the 99th percentile of latency, in seconds.
        seconds: that requests arrive for.
        fewest: requests, if that is longer.
        rounds: in each of which every system is measured.
        first: the rate to begin with.
        points: rates at which all systems are measured.
    """

    bound: float
    seconds: float
    fewest: int
    rounds: int
    first: float
    points: int


@contextmanager
def running(pythons: dict[str, str], setup: Setup) -> Iterator[dict[str, Process]]:
    """A process for every system, made by its Python; all are ended at the end."""
    text = setup.write()
    processes = {
        name: Process(name, "serving_process.py", (name, text), python, setup.threads)
        for name, python in pythons.items()
    }
    try:
        yield processes
    finally:
        for process in processes.values():
            process.close()


def compare_answers(
    processes: dict[str, Process], count: int, seed: int, tolerance: float
) -> dict[str, float]:
    """How far answers to some requests are apart: together and alone, and from another system's.

    Raises:
        SystemExit: too far.
    """
    answers = {x: p.call("answers", count=count, seed=seed) for x, p in processes.items()}
    gaps = {f"{x}, alone": _gap(found["together"], found["alone"]) for x, found in answers.items()}
    first, *others = [name for name in EQUAL if name in answers] or [None]
    for name in others:
        gap = _gap(answers[first]["together"], answers[name]["together"])
        gaps[f"{name}, {first}"] = gap
    rows = (row for found in answers.values() for row in found["together"])
    largest = max((abs(x) for row in rows for x in row if isfinite(x)), default=0.0)
    if wrong := {name: gap for name, gap in gaps.items() if not gap <= tolerance * largest}:
        raise SystemExit(f"the answers differ: {wrong}; no speed is reported")
    return gaps


def _gap(some: list[list[float]], others: list[list[float]]) -> float:
    """The largest difference of two systems' logits; what one has more is no label's."""
    rows = zip(some, others, strict=True)
    gaps = [abs(x - y) for row in rows for x, y in zip(*row, strict=False)]
    return max(gaps, key=lambda gap: inf if isnan(gap) else gap)


def measure_load(processes: dict[str, Process], load: Load, seed: int) -> dict[str, Any]:
    """The highest rates and the latencies of all systems, round by round."""
    rates: dict[str, list[float]] = {name: [] for name in processes}
    points: list[Point] = []
    grid: list[float] = []
    for number in range(load.rounds):
        print(f"round {number + 1} of {load.rounds}", flush=True)
        for name, process in processes.items():
            start, factor = (rates[name][-1], 1.25) if number else (load.first, 2.0)
            measure = partial(_measure, process, load, seed + number)
            rate, tried = highest_rate(measure, max(start, SLOWEST), factor)
            rates[name].append(rate)
            points += [{"system": name, "round": number, "search": True, **x} for x in tried]
        grid = grid or _spread([found[0] for found in rates.values()], load.points)
        left = list(processes)
        for rate in grid:
            for name in list(left):
                point = _measure(processes[name], load, seed + number, rate)
                points.append({"system": name, "round": number, "search": False, **point})
                if not point["held"]:
                    left.remove(name)
    return {
        "highest rate": {name: median(found) for name, found in rates.items()},
        "highest rate of each round": rates,
        "points": points,
    }


def highest_rate(
    measure: Callable[[float], Point], start: float, factor: float
) -> tuple[float, list[Point]]:
    """The highest rate that is held, and every point on the way.

    Args:
        start: a rate to begin with; then come others, higher or lower by the factor, until one is
            held and one is not, and then rates between them.
    """
    points = [measure(start)]
    held, rate = points[0]["held"], start
    while points[-1]["held"] == held:
        rate = rate * factor if held else rate / factor
        if rate < SLOWEST:
            return 0.0, points
        points.append(measure(rate))
    low, high = (rate / factor, rate) if held else (rate, rate * factor)
    while high / low > PRECISION:
        middle = (low * high) ** 0.5
        points.append(measure(middle))
        low, high = (middle, high) if points[-1]["held"] else (low, middle)
    return low, points


def _measure(process: Process, load: Load, seed: int, rate: float) -> Point:
    count = max(round(rate * load.seconds), load.fewest)
    point = process.call("measure", rate=rate, count=count, bound=load.bound, seed=seed)
    told = "more than it holds"
    if point["held"]:
        told = " ".join(f"{name} {point[name] * 1000:.0f} ms" for name in ("p50", "p95", "p99"))
    print(f"  {process.name}, {rate:.1f} a second: {told}", flush=True)
    return point


def _spread(highest: Sequence[float], count: int) -> list[float]:
    """Rates from a quarter of the lowest to the highest, each the same factor above the last."""
    low, high = max(min(highest) / 4, SLOWEST), max(*highest, SLOWEST)
    return [low * (high / low) ** (i / max(count - 1, 1)) for i in range(count)]


def measure_memory(pythons: dict[str, str], setup: Setup, counts: Sequence[int]) -> list[Point]:
    """What every system takes by the number of tasks, beyond what it takes with one."""
    rows: list[Point] = []
    with running(pythons, setup) as processes:
        for name, process in processes.items():
            process.call("start", tasks=0)
            one = process.call("memory", tasks=1)
            for tasks in counts:
                try:
                    row = process.call("memory", tasks=tasks)
                except NotImplementedError as error:
                    row = {"tasks": tasks, "refused": str(error)}
                else:
                    row["grown bytes"] = row["resident bytes"] - one["resident bytes"]
                rows.append({"system": name, **row})
                told = row.get("refused") or f"{row['grown bytes'] / 2**20:.0f} MiB"
                print(f"  {name}, {tasks} tasks: {told}", flush=True)
    return rows

"""Two results of the suite: what is compared, and what has changed."""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

PARTS = ("kernel", "training", "methods", "serving", "quality")
OURS = ("ptv2 triton", "ptv2 native")
"""The kernel's implementations, the best first; the reference is no basis of a comparison."""


class Number(NamedTuple):
    """A number by its name: how many times ptv2's a rival's is, or a score."""

    name: str
    value: float
    kind: str  # "ratio" or "score"


def read_part(folder: Path, name: str) -> Any:
    """A part's results; None: there are none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def numbers(folder: Path) -> list[Number]:
    """Of all parts that are there."""
    readers = (_kernel, _training, _methods, _serving, _quality)
    found: list[Number] = []
    for part, reader in zip(PARTS, readers, strict=True):
        results = read_part(folder, part)
        if results is not None:
            found += [Number(f"{part}: {n.name}", *n[1:]) for n in reader(results)]
    return found


def ours(rivals: dict[str, dict[str, Any]]) -> str | None:
    """The name of ptv2's best implementation among those that were timed."""
    return next((name for name in OURS if "seconds" in rivals.get(name, {})), None)


def _kernel(results: Any) -> Iterator[Number]:
    for problem, found in results["problems"].items():
        rivals = {row["rival"]: row for row in found["rivals"]}
        own = ours(rivals)
        if own is None:
            continue
        for name, row in rivals.items():
            for part in ("forward, warm", "forward + backward, warm"):
                if "seconds" in row and not name.startswith("ptv2"):
                    ratio = row["seconds"][part] / rivals[own]["seconds"][part]
                    yield Number(f"{problem}, {part}, {name}", ratio, "ratio")


def _training(results: Any) -> Iterator[Number]:
    for case, found in results["cases"].items():
        for rival in ("stock", "peft"):
            for what in ("seconds", "kept bytes"):
                if rival in found[what]:
                    ratio = found[what][rival] / found[what]["ptv2"]
                    yield Number(f"{case}, {what}, {rival}", ratio, "ratio")


def _methods(results: Any) -> Iterator[Number]:
    methods = results["methods"]
    own = methods.get("ptv2", {}).get("seconds")
    for name, found in methods.items():
        if found.get("runs") and not results["settings"].get("quick"):
            score = mean(run["score"] for run in found["runs"].values())
            yield Number(f"{name}, score", score, "score")
        if own and name != "ptv2":
            for kind, seconds in found.get("seconds", {}).items():
                yield Number(f"{kind}, {name}", median(seconds) / median(own[kind]), "ratio")


def _serving(results: Any) -> Iterator[Number]:
    rates = results["load"]["highest rate"]
    for name, rate in rates.items():
        if name != "ptv2" and rate and rates.get("ptv2"):
            yield Number(f"requests a second, ptv2 / {name}", rates["ptv2"] / rate, "ratio")


def _quality(results: Any) -> Iterator[Number]:
    scores: dict[tuple[str, str], list[float]] = {}
    for run in results:
        if "score" in run:
            scores.setdefault((run["task"], run["method"]), []).append(run["score"])
    for (task, method), found in scores.items():
        yield Number(f"{task}, {method}", mean(found), "score")


def different_settings(before: Path, after: Path) -> list[str]:
    """What the two runs of a part do not have in common, beside their results."""
    about = [read_part(folder, "suite") for folder in (before, after)]
    lines = []
    for part in PARTS:
        old, new = ((x or {"parts": {}})["parts"].get(part) for x in about)
        for what in ("mode", "device"):
            if old and new and old[what] != new[what]:
                lines.append(f"{part}: {what} was {old[what]}, is {new[what]}")
    return lines


def compare(before: Path, after: Path) -> str:
    """The numbers of two folders side by side, those that differ most first.

    Raises:
        SystemExit: they have no number in common.
    """
    old, new = ({n.name: n for n in numbers(folder)} for folder in (before, after))
    common = [name for name in old if name in new]
    if not common:
        raise SystemExit(f"--compare: {before} and {after} have no results in common")

    def change(name: str) -> float:
        return new[name].value / old[name].value - 1 if old[name].value else 0.0

    common.sort(key=lambda name: -abs(change(name)))
    lines = different_settings(before, after)
    lines += [f"{'before':>10}{'after':>10}{'change':>9}"]
    for name in common:
        lines.append(
            f"{old[name].value:>10.3f}{new[name].value:>10.3f}{100 * change(name):>+8.1f}%  {name}"
        )
    ratios = [abs(change(name)) for name in common if old[name].kind == "ratio"]
    if ratios:
        lines.append(f"{len(ratios)} ratios differ by {100 * median(ratios):.1f}% in the median")
    for folder, here, there in ((before, old, new), (after, new, old)):
        only = [name for name in here if name not in there]
        if only:
            lines.append(f"only in {folder}: " + "; ".join(only))
    return "\n".join(lines)

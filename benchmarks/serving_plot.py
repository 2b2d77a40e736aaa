"""Pictures, rows and a table of what `bench_serving.py` has found."""

import csv
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

PERCENTILES = ("p50", "p95", "p99")


def latencies(found: dict[str, Any], name: str) -> dict[float, dict[str, float]]:
    """A system's percentiles in seconds by the rate: medians of the rounds, if most have held."""
    points = [x for x in found["points"] if x["system"] == name and not x["search"]]
    rounds = 1 + max(x["round"] for x in found["points"])
    by_rate: dict[float, dict[str, float]] = {}
    for rate in dict.fromkeys(x["rate"] for x in points):
        held = [x for x in points if x["rate"] == rate and x["held"]]
        if 2 * len(held) > rounds:
            by_rate[rate] = {key: median(x[key] for x in held) for key in PERCENTILES}
    return by_rate


def table(results: dict[str, Any]) -> str:
    """What to read first."""
    found, lines = results["load"], []
    bound = results["settings"]["bound"]
    lines.append(f"requests a second with a 99th percentile of at most {bound * 1000:.0f} ms")
    own = found["highest rate"].get("ptv2")
    for name, rate in found["highest rate"].items():
        ratio = (
            f", ptv2 has {own / rate:.2f} times as many" if own and rate and name != "ptv2" else ""
        )
        lines.append(f"  {name:<10}{rate:>8.1f}{ratio}")
    lines.append("memory, MiB: tensors of all tasks, growth of the process from one task on")
    for row in results["memory"]:
        told = row.get("refused") or (
            f"{row['tasks'] * row['bytes of a task'] / 2**20:>8.1f}"
            f"{row['grown bytes'] / 2**20:>10.1f}"
        )
        lines.append(f"  {row['system']:<10}{row['tasks']:>6} tasks {told}")
    seconds = results["engine"]["seconds"]
    lines.append(f"ptv2, a batch of {results['engine']['sequences of a batch']} sequences, ms")
    bare = seconds["bare"]
    for name, value in seconds.items():
        lines.append(f"  {name:<28}{value * 1000:>8.1f}{value / bare:>7.2f} of bare")
    sizes = results["sizes"]
    lines.append(f"ptv2, {sizes['sequences']} sequences in batches of")
    lines += [f"  {size:<28}{value * 1000:>8.1f}" for size, value in sizes["seconds"].items()]
    return "\n".join(lines)


def write_rows(results: dict[str, Any], path: Path) -> None:
    """A CSV file with a number a row: measure, system, at (rate or tasks), value."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("measure", "system", "at", "value"))
        writer.writerows(_rows(results))


def _rows(results: dict[str, Any]) -> Iterator[tuple[str, str, Any, float]]:
    found = results["load"]
    for name, rate in found["highest rate"].items():
        yield "highest rate, requests a second", name, "", rate
        for at, values in latencies(found, name).items():
            for key, value in values.items():
                yield f"latency {key}, seconds", name, at, value
    for row in results["memory"]:
        if "refused" not in row:
            yield "growth of the process, bytes", row["system"], row["tasks"], row["grown bytes"]
            of_all = row["tasks"] * row["bytes of a task"]
            yield "tensors of tasks, bytes", row["system"], row["tasks"], of_all
    for name, value in results["engine"]["seconds"].items():
        yield "batch, seconds", "ptv2", name, value


def plot(results: dict[str, Any], folder: Path) -> None:
    """serving_latency.png, serving_rate.png and serving_memory.png."""
    try:
        from matplotlib import pyplot
    except ImportError:
        raise SystemExit("--plot: needs matplotlib; pip install matplotlib") from None
    folder.mkdir(parents=True, exist_ok=True)
    found = results["load"]
    names = list(found["highest rate"])
    colors = {name: f"C{place}" for place, name in enumerate(names)}

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name in names:
        by_rate = latencies(found, name)
        for key, style in (("p50", "--"), ("p99", "-")):
            milliseconds = [values[key] * 1000 for values in by_rate.values()]
            label = f"{name}, {key}"
            axes.plot(
                list(by_rate), milliseconds, style, color=colors[name], marker=".", label=label
            )
    axes.set(xlabel="requests a second", ylabel="latency, ms", xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(folder / "serving_latency.png", dpi=150)

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    bars = axes.bar(names, found["highest rate"].values(), color=list(colors.values()))
    axes.bar_label(bars, fmt="%.0f")
    bound = results["settings"]["bound"] * 1000
    axes.set_ylabel(f"requests a second, 99th percentile up to {bound:.0f} ms")
    figure.savefig(folder / "serving_rate.png", dpi=150)

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name in dict.fromkeys(row["system"] for row in results["memory"]):
        rows = [x for x in results["memory"] if x["system"] == name and "refused" not in x]
        grown = [x["grown bytes"] / 2**20 for x in rows]
        axes.plot(
            [x["tasks"] for x in rows], grown, marker=".", color=colors.get(name), label=name
        )
    axes.set(xlabel="tasks", ylabel="MiB more than with one task", xscale="log", yscale="log")
    axes.legend()
    figure.savefig(folder / "serving_memory.png", dpi=150)
    pyplot.close("all")

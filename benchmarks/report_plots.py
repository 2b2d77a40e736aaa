"""The pictures of a report, as SVG."""

import io
from collections.abc import Iterator
from statistics import mean, median
from typing import Any, NamedTuple

from compare import OURS, ours
from report_tables import METHODS, STEPS, SYSTEMS
from serving_plot import latencies

OWN, OTHERS = "#2563eb", ("#94a3b8", "#64748b", "#cbd5e1", "#475569", "#a8a29e", "#78716c")
"""ptv2 stands out."""


SHADES = {
    "ptv2": OWN, "prompt": OWN, "ptv2 packed": "#93c5fd", "bare": "#bfdbfe", "compiled": "#60a5fa",
    "stock": "#94a3b8", "stock, no attention dropout": "#cbd5e1", "peft": "#64748b",
    "adapters": "#a8a29e", "copies": "#cbd5e1", "fine-tuning": "#cbd5e1",
}  # fmt: skip


SHOWN = ("ptv2", "ptv2 packed", "stock", "stock, no attention dropout", "peft")
"""What the pictures of a training step show."""


class Picture(NamedTuple):
    """What it shows, for those who do not see it, and an SVG to stand in a page."""

    text: str
    svg: str


def color(name: str, place: int) -> str:
    """Of a bar or a line: the same in all pictures, where a name is in several."""
    return SHADES.get(name, OTHERS[place % len(OTHERS)])


def style() -> Any:
    """pyplot as all pictures want it.

    Raises:
        SystemExit: matplotlib is missing.
    """
    try:
        from matplotlib import pyplot
    except ImportError:
        raise SystemExit("the report needs matplotlib: pip install matplotlib") from None
    pyplot.switch_backend("Agg")
    pyplot.rcParams.update(
        {
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#94a3b8",
            "axes.labelcolor": "#334155",
            "xtick.color": "#334155",
            "ytick.color": "#334155",
            "legend.frameon": False,
            "svg.fonttype": "none",
            "svg.hashsalt": "ptv2",
            "figure.constrained_layout.use": True,
        }
    )
    return pyplot


def picture(text: str, figure: Any) -> Picture:
    """A figure as SVG, without its XML header; the figure is closed."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    style().close(figure)
    found = file.getvalue()
    return Picture(text, found[found.index("<svg") :])


def kernel(results: Any) -> Iterator[Picture]:
    """How many times as long as ptv2 every rival takes, a dot for each problem."""
    part = "forward + backward, warm"
    ratios: dict[str, list[float]] = {}
    for problem in results["problems"].values():
        rivals = {row["rival"]: row for row in problem["rivals"]}
        own = ours(rivals)
        for name, row in rivals.items():
            if own and "seconds" in row and not name.startswith(OURS):
                ratio = row["seconds"][part] / rivals[own]["seconds"][part]
                ratios.setdefault(name, []).append(ratio)
    if not ratios:
        return
    names = sorted(ratios, key=lambda name: -median(ratios[name]))
    figure, axes = style().subplots(figsize=(7.5, 0.36 * len(names) + 1))
    axes.barh(names, [median(ratios[name]) for name in names], color=OTHERS[0], height=0.6)
    for place, name in enumerate(names):
        axes.plot(ratios[name], [place] * len(ratios[name]), ".", color="#334155")
    axes.axvline(1, color=OWN)
    axes.set(xscale="log", xlabel="forward + backward, times as long as ptv2 (the line)")
    ticks(axes.xaxis)
    yield picture("how many times as long as ptv2 every rival of the attention takes", figure)


def training(results: Any) -> Iterator[Picture]:
    """Seconds of a step, and what it keeps, by case."""
    for what, label in (("seconds", "a step"), ("kept bytes", "kept for the backward")):
        cases = {case: found[what] for case, found in results["cases"].items()}
        names = [name for name in SHOWN if any(name in case for case in cases.values())]
        size = (7.5, 0.17 * len(names) * len(cases) + 1)
        figure, axes = style().subplots(figsize=size)
        width = 0.8 / len(names)
        for place, name in enumerate(names):
            there = {i: case for i, case in enumerate(cases.values()) if name in case}
            lengths = [case[name] / case["ptv2"] for case in there.values()]
            at = [i + width * (place - (len(names) - 1) / 2) for i in there]
            shade = color(name, place)
            bars = axes.barh(at, lengths, 0.92 * width, label=STEPS[name], color=shade)
            axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
        axes.set_yticks(range(len(cases)), cases)
        axes.invert_yaxis()
        axes.set_xlabel(f"{label} / ptv2's")
        axes.margins(x=0.08, y=0.02)
        figure.legend(ncols=3, loc="outside upper center")
        yield picture(f"{label}, by case, in terms of ptv2's", figure)


def methods(results: Any) -> Iterator[Picture]:
    """Scores and trained parameters; what a training step and a text of many tasks take."""
    found = {name: results["methods"][name] for name in METHODS if name in results["methods"]}
    found = {name: method for name, method in found.items() if "seconds" in method}
    if not found:
        return
    if not results["settings"].get("quick"):
        yield scores_and_parameters(found)
    kinds = {"training step": "a training step", "rows of many tasks": "texts of many tasks"}
    figure, both = style().subplots(1, 2, figsize=(7.5, 0.34 * len(found) + 1), sharey=True)
    for axes, (kind, label) in zip(both, kinds.items(), strict=True):
        ms = [1000 * median(method["seconds"][kind]) for method in found.values()]
        if kind != "training step":
            ms = [x / results["settings"]["rows"] for x in ms]
        shades = [color(name, 0) for name in found]
        bars = axes.barh([METHODS[name] for name in found], ms, color=shades, height=0.65)
        axes.bar_label(bars, fmt="%.3g", fontsize=8, padding=3)
        axes.set_xlabel(f"{label}, ms each")
        axes.margins(x=0.15)
    both[0].invert_yaxis()
    yield picture("milliseconds of a training step and of a text, by method", figure)


def scores_and_parameters(methods: dict[str, Any]) -> Picture:
    """A dot for every seed and a bar for their mean, by method, whose name has its parameters."""
    figure, axes = style().subplots(figsize=(7.5, 0.34 * len(methods) + 1))
    for place, (name, method) in enumerate(methods.items()):
        scores = [run["score"] for run in method["runs"].values()]
        shade = OWN if name == "ptv2" else "#475569"
        axes.plot(scores, [place] * len(scores), "o", color=shade, alpha=0.45, markersize=5)
        axes.plot(mean(scores), place, "|", color=shade, markersize=14, markeredgewidth=2)
    labels = [f"{METHODS[name]}, {x['trained parameters']:,}" for name, x in methods.items()]
    axes.set_yticks(range(len(methods)), labels)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#e2e8f0")
    axes.set_axisbelow(True)
    axes.set_xlabel("accuracy of each seed, and the mean")
    return picture("accuracy of all seeds, and trained parameters, by method", figure)


def serving(results: Any) -> Iterator[Picture]:
    """Latencies over the rate."""
    load = results["load"]
    figure, axes = style().subplots(figsize=(7.5, 3.6))
    for place, name in enumerate(load["highest rate"]):
        by_rate = latencies(load, name)
        shade = color(name, place)
        for key, line in (("p50", ":"), ("p99", "-")):
            values = [1000 * found[key] for found in by_rate.values()]
            label = SYSTEMS[name] if key == "p99" else None
            axes.plot(list(by_rate), values, line, color=shade, marker=".", label=label)
    bound = 1000 * results["settings"]["bound"]
    axes.axhline(bound, color="#dc2626", linewidth=0.8)
    axes.set(xlabel="requests a second", ylabel="latency, ms (dotted: median, solid: 99%)")
    axes.set(xscale="log", yscale="log")
    ticks(axes.xaxis)
    ticks(axes.yaxis)
    axes.legend(fontsize=8.5)
    yield picture("latency over the rate of requests, by system", figure)


def quality(results: Any) -> Iterator[Picture]:
    """A bar for the mean score of each method by data set, a dot for every seed."""
    tasks = list(dict.fromkeys(run["task"] for run in results))
    names = list(dict.fromkeys(run["method"] for run in results))
    figure, axes = style().subplots(figsize=(7.5, 3.4))
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        scores = [
            [
                r["score"]
                for r in results
                if (r["task"], r["method"]) == (task, name) and "score" in r
            ]
            for task in tasks
        ]
        at = [i + width * (place - (len(names) - 1) / 2) for i in range(len(tasks))]
        shade = color(name, place)
        heights = [mean(found) if found else 0 for found in scores]
        axes.bar(at, heights, 0.92 * width, label=name, color=shade)
        for x, found in zip(at, scores, strict=True):
            axes.plot([x] * len(found), found, ".", color="#0f172a", markersize=3)
    axes.set_xticks(range(len(tasks)), tasks, fontsize=8.5)
    axes.set_ylabel("score of the best epoch on dev")
    axes.legend(ncols=len(names), loc="upper center", bbox_to_anchor=(0.5, 1.15))
    yield picture("scores by data set and method", figure)


def ticks(axis: Any) -> None:
    """Plain numbers on a logarithmic axis."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}")
    axis.set_tick_params(which="minor", labelsize=7.5)

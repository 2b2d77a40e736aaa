"""Curves of a sweep, drawn with matplotlib, which only this file needs."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def has_matplotlib() -> bool:
    """Whether a plot can be drawn."""
    return find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """Raise an ImportError that says how to install it, unless matplotlib is there."""
    if not has_matplotlib():
        raise ImportError("plot: matplotlib is not installed; pip install 'ptv2[plot]'")


def save_plot(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the validation score and the training loss of every run over its epochs.

    Args:
        path: of the PNG file.
        rows: the runs as `sweep.json` holds them; each data set gets a line of its own.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    data_sets = sorted({row["data"] for row in rows})
    figure = Figure(figsize=(11, 4 * len(data_sets)), layout="constrained")
    axes = figure.subplots(len(data_sets), 2, squeeze=False)
    for line, data in zip(axes, data_sets, strict=True):
        shown = [row for row in rows if row["data"] == data]
        colors = colormaps["turbo"].resampled(len(shown) + 2)
        for place, row in enumerate(shown, start=1):
            epochs = [epoch["epoch"] for epoch in row["history"]]
            for axis, key in zip(line, (row["metric"], "train_loss"), strict=True):
                values = [epoch[key] for epoch in row["history"]]
                axis.plot(epochs, values, marker=".", color=colors(place), label=row["name"])
        for axis, label in zip(line, (shown[0]["metric"], "training loss"), strict=True):
            axis.set(xlabel="epoch", ylabel=label)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(alpha=0.3)
        line[1].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    unfinished = path.with_name(f".{path.name}.part")
    figure.savefig(unfinished, format="png", dpi=120)
    unfinished.replace(path)

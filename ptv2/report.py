"""What the command line shows: tables of scores, and the size of a saved prompt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

SCORES = (
    "accuracy", "micro_f1", "macro_f1", "precision", "recall", "exact_match", "f1",
    "pearson", "spearman", "mse",
)  # fmt: skip


def scores_of(measured: Mapping[str, Any]) -> dict[str, str]:
    """The scores among what was measured, without losses and times, as text."""
    return {name: f"{measured[name]:.4f}" for name in SCORES if name in measured}


def print_scores(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """A table with a row of scores for each name; all rows have the same scores."""
    shown = {name: scores_of(measured) for name, measured in rows.items()}
    table = Table("")
    for score in next(iter(shown.values())):
        table.add_column(score, justify="right")
    for name, scores in shown.items():
        table.add_row(escape(name), *scores.values())
    Console().print(table)


def print_fields(fields: Mapping[str, str]) -> None:
    """A table of names and values."""
    table = Table(show_header=False)
    for name, value in fields.items():
        table.add_row(name, escape(value))
    Console().print(table)


def print_sweep(table: Mapping[str, Any]) -> None:
    """The runs of a sweep, as `sweep.json` holds them."""
    shown = Table("run", "metric")
    for column in ("score", "epoch"):
        shown.add_column(column, justify="right")
    shown.add_column("")
    for row in table["runs"]:
        score = "" if row["score"] is None else f"{row['score']:.4f}"
        epoch = "" if row["epoch"] is None else str(row["epoch"])
        notes = ["best"] if row["name"] in table["best"] else []
        if row["diverged_at_step"] is not None:
            notes.append(f"diverged at step {row['diverged_at_step']}")
        shown.add_row(escape(row["name"]), row["metric"], score, epoch, ", ".join(notes))
    Console().print(shown)


def size_kb(directory: Path) -> float:
    """Kilobytes (1000) of a saved prompt's tensors for use, without those to resume training."""
    return (directory / "prompt.safetensors").stat().st_size / 1e3

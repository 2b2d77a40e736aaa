"""The report of a suite's results: one HTML page without other files, and Markdown tables."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import report_plots as plots
import report_tables as tables
from compare import PARTS, read_part
from report_tables import Table

HERE = Path(__file__).parent
TITLES = {
    "kernel": ("The attention by itself", "bench_kernel.py"),
    "training": ("A training step", "bench_training.py"),
    "methods": ("Ways to adapt an encoder", "bench_methods.py"),
    "serving": ("Many tasks served from one encoder", "bench_serving.py"),
    "quality": ("Scores by data set", "bench_quality.py"),
}


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Args:
        failure: why there is nothing, or not everything.
    """

    name: str
    title: str
    script: str
    text: str
    tables: list[Table]
    pictures: list[str]
    failure: str | None
    origin: dict[str, str]


def section(folder: Path, name: str, about: Any) -> Section:
    """A part's section, if there are results or not.

    Args:
        about: the part, in suite.json.
    """
    results = read_part(folder, name)
    title, script = TITLES[name]
    text, found, pictures = "", [], []
    if results is not None:
        make_tables: Callable[[Any], Any] = getattr(tables, name)
        make_pictures: Callable[[Any], Any] = getattr(plots, name)
        text = tables.headline(results) if name == "kernel" else ""
        found, pictures = list(make_tables(results)), list(make_pictures(results))
    return Section(name, title, script, text, found, pictures, about["failed"], origin(about))


def origin(source: Any) -> dict[str, str]:
    """Where a part's results come from."""
    versions = {name: x for name, x in source["versions"].items() if x}
    return {
        "device": source["device"],
        "versions": ", ".join(f"{name} {x}" for name, x in versions.items()),
        "Python": source["python"],
        "commit": source["commit"] or "unknown",
        "date": source["date"],
        "mode": source["mode"],
    }


def write_report(folder: Path) -> None:
    """Write report.html and report.md beside the results."""
    about = json.loads((folder / "suite.json").read_text())
    parts = about["parts"]
    sections = [section(folder, name, parts[name]) for name in PARTS if name in parts]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.jinja")
    (folder / "report.html").write_text(page.render(sections=sections))
    (folder / "report.md").write_text(markdown(sections))


def markdown(sections: list[Section]) -> str:
    """All tables, as GitHub shows them."""
    lines = ["# Benchmarks of ptv2"]
    for part in sections:
        lines += ["", f"## {part.title}", ""]
        lines += [f"- {name}: {value}" for name, value in part.origin.items()] + [""]
        lines += [text + "\n" for text in (part.failure, part.text) if text]
        for table in part.tables:
            lines += [f"### {table.title}", "", table.markdown(), ""]
            lines += [table.note, ""] if table.note else []
    return "\n".join(lines).rstrip() + "\n"

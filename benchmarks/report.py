"""The report of a suite's results: one HTML page without other files, and Markdown tables.

    python benchmarks/report.py benchmarks/results docs/report.md

This makes a page of the documentation of the published results (`make report`); the pictures go
into the folder pictures/report beside the page. `ptv2 bench` makes the other two by itself.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import report_plots as plots
import report_tables as tables
from compare import read_part
from report_plots import Picture
from report_tables import Table

HERE = Path(__file__).parent
PICTURES = "pictures/report"
TITLES = {
    "methods": ("Ways to adapt an encoder", "bench_methods.py"),
    "quality": ("Scores by data set", "bench_quality.py"),
    "training": ("A training step", "bench_training.py"),
    "serving": ("Many tasks served from one encoder", "bench_serving.py"),
    "kernel": ("The attention by itself", "bench_kernel.py"),
}
"""In the order of the report: what most readers want first."""


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
    pictures: list[Picture]
    failure: str | None
    origin: dict[str, str]


def section(folder: Path, name: str, about: Any) -> Section:
    """A part's section, if there are results or not.

    Args:
        about: the part, in suite.json; None if its script ran by itself.
    """
    results = read_part(folder, name)
    title, script = TITLES[name]
    text, found, pictures = "", [], []
    if results is not None:
        make_tables: Callable[[Any], Any] = getattr(tables, name)
        make_pictures: Callable[[Any], Any] = getattr(plots, name)
        text = tables.headline(results) if name == "kernel" else ""
        found, pictures = list(make_tables(results)), list(make_pictures(results))
    failure, source = (about["failed"], about) if about else (None, None)
    if source is None and isinstance(results, dict):
        source = results["provenance"]
    return Section(name, title, script, text, found, pictures, failure, origin(name, source))


def origin(name: str, source: Any) -> dict[str, str]:
    """Where a part's results come from.

    Args:
        source: None: every run says it by itself.
    """
    if source is None:
        return {"origin": f"each run in {name}.json names its own"}
    versions = {name: x for name, x in source["versions"].items() if x}
    found = {
        "device": source["device"],
        "versions": ", ".join(f"{name} {x}" for name, x in versions.items()),
        "Python": source["python"],
        "commit": source["commit"] or "unknown",
        "date": source["date"],
    }
    return found | ({"mode": source["mode"]} if "mode" in source else {})


def sections(folder: Path) -> list[Section]:
    """All that there are results of, or that failed."""
    about = (read_part(folder, "suite") or {"parts": {}})["parts"]
    there = [name for name in TITLES if name in about or read_part(folder, name) is not None]
    return [section(folder, name, about.get(name)) for name in there]


def write_report(folder: Path) -> None:
    """Write report.html and report.md beside the results."""
    found = sections(folder)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.jinja")
    (folder / "report.html").write_text(page.render(sections=found))
    (folder / "report.md").write_text(markdown(found))


def write_page(folder: Path, page: Path) -> None:
    """Write the report as Markdown whose pictures are files."""
    found = sections(folder)
    page.write_text(markdown(found, pictures=True))
    (page.parent / PICTURES).mkdir(parents=True, exist_ok=True)
    for part in found:
        for place, picture in enumerate(part.pictures):
            (page.parent / picture_path(part, place)).write_text(picture.svg)


def picture_path(part: Section, place: int) -> str:
    """Where a page has a part's picture."""
    return f"{PICTURES}/{part.name}-{place + 1}.svg"


def markdown(sections: list[Section], *, pictures: bool = False) -> str:
    """All tables, as GitHub shows them.

    Args:
        pictures: with links to them.
    """
    lines = ["# Benchmarks of ptv2"]
    for part in sections:
        lines += ["", f"## {part.title}", ""]
        lines += [f"- {name}: {value}" for name, value in part.origin.items()] + [""]
        lines += [text + "\n" for text in (part.failure, part.text) if text]
        if pictures:
            lines += [
                f"![{picture.text}]({picture_path(part, place)})\n"
                for place, picture in enumerate(part.pictures)
            ]
        for table in part.tables:
            lines += [f"### {table.title}", "", table.markdown(), ""]
            lines += [table.note, ""] if table.note else []
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of a suite's results")
    parser.add_argument("page", type=Path)
    args = parser.parse_args()
    write_page(args.folder, args.page)


if __name__ == "__main__":
    main()

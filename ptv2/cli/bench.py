"""`ptv2 bench`."""

import subprocess
import sys
from pathlib import Path

import typer

from .options import reports_errors

SCRIPT = Path("benchmarks") / "suite.py"


@reports_errors
def bench(context: typer.Context) -> None:
    """Measure ptv2 beside its rivals, with a report; `ptv2 bench --help` lists the options.

    The benchmarks are those of the source tree, which is the directory that this runs in.
    """
    if not SCRIPT.is_file():
        raise FileNotFoundError(
            f"bench: expected {SCRIPT} in {Path.cwd()}; run it in a clone of the sources"
        )
    code = subprocess.run([sys.executable, str(SCRIPT), *context.args]).returncode
    raise typer.Exit(code)

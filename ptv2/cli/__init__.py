"""The command line `ptv2`: one module for each kind of use."""

from typing import Annotated

import typer

from ..version import __version__
from .bench import bench
from .convert import convert
from .serve import serve
from .show import demo, info
from .sweep import sweep
from .train import train
from .use import evaluate_prompt, predict

app = typer.Typer(no_args_is_help=True, add_completion=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """P-Tuning v2: train, evaluate and use deep prompts on a frozen encoder."""


app.command()(train)
app.command()(sweep)
app.command("eval")(evaluate_prompt)
app.command()(predict)
app.command()(serve)
app.command()(convert)
app.command()(info)
app.command()(demo)
app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    add_help_option=False,
)(bench)


def main() -> None:
    """Entry point of the `ptv2` command."""
    app()

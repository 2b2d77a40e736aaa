"""Commands as a user gives them, run in this process."""

from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from ptv2.cli import app

SENTIMENT = ("--task", "sequence-classification")
CITIES = ("--task", "token-classification")
SHORT = ("--epochs", "2", "--prompt-length", "4", "--batch-size", "8")


def ptv2(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(*arguments: object) -> str:
    """The one line that a command prints when it refuses what it was given."""
    result = ptv2(*arguments)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return lines[0].removeprefix("error: ")


def training(work: Path, *options: object) -> tuple[object, ...]:
    files = ("--train", work / "train.jsonl", "--validation", work / "dev.jsonl")
    return ("train", "--backbone", work / "encoder", *files, *options)

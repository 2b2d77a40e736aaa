"""What the commands share: options, errors in one line, files that are not overwritten."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from ..storage import write_text
from ..tasks import TASKS

P = ParamSpec("P")
R = TypeVar("R")


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Make one line and exit code 2 of the errors that say what is wrong with the input."""

    @functools.wraps(command)
    def reported(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (ValueError, OSError, ImportError, NotImplementedError) as error:
            message = next(iter(str(error).splitlines()), type(error).__name__)
            typer.echo(f"error: {message}", err=True)
            raise typer.Exit(2) from error

    return reported


def option(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text)


DATA = "A .jsonl, .csv or .tsv file, or the NAME[:CONFIG] of a dataset."
PromptDir = Annotated[Path, option("Directory of a saved prompt.")]
Backbone = Annotated[str | None, option("Directory or name of the encoder, if not the prompt's.")]
MaxLength = Annotated[
    int | None, option("Longest input in tokens, if less than the encoder allows.")
]
TextColumn = Annotated[str | None, option("Column with the text, if not text.")]
TextPairColumn = Annotated[str | None, option("Column with the second text of a pair.")]
LabelColumn = Annotated[str | None, option("Column with the label, if not label.")]
TokensColumn = Annotated[str | None, option("Column with the words, if not tokens.")]
TagsColumn = Annotated[str | None, option("Column with the words' tags, if not tags.")]
QuestionColumn = Annotated[str | None, option("Column with the question, if not question.")]
ContextColumn = Annotated[str | None, option("Column with the context, if not context.")]
AnswersColumn = Annotated[str | None, option("Column with the answers, if not answers.")]
ChoicesColumn = Annotated[str | None, option("Column with the list of choices, if not choices.")]
Stride = Annotated[int | None, option("Tokens that the windows of a long input share.")]
Overwrite = Annotated[bool, option("Replace what --output names.", "--overwrite")]


def fields_of(kind: str, **columns: Any) -> dict[str, Any]:
    """The fields of a task that were given; one that its kind does not have is an error."""
    known = {field.name for field in fields(TASKS[kind])} if kind in TASKS else set(columns)
    given = {name: column for name, column in columns.items() if column is not None}
    for name in given:
        if name not in known:
            raise ValueError(f"{name}: {kind} has no such option, expected none")
    return given


def layer_numbers(text: str) -> tuple[int, ...]:
    """The numbers in a text such as 0,1,5."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"layers: expected numbers such as 0,1,5, got {text!r}") from None


def refuse_overwriting(output: Path | None, overwrite: bool) -> None:
    """Raise an OSError unless a file may be written there."""
    if output is None:
        return
    if not output.parent.is_dir():
        raise FileNotFoundError(f"output: the folder {output.parent} does not exist")
    if output.exists() and not overwrite:
        raise FileExistsError(f"output: {output} exists; choose another or give --overwrite")


def write_lines(lines: Sequence[str], output: Path | None) -> None:
    """Write answers to a file, or to the terminal."""
    if output is None:
        typer.echo("\n".join(lines))
    else:
        write_text(output, "\n".join(lines) + "\n")
        typer.echo(f"{len(lines)} answers in {output}")

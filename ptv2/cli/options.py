"""What the commands share: options, errors in one line, files that are not overwritten."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ParamSpec, TypeVar

import torch
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


def chosen_device(name: str | None) -> torch.device:
    """A device by its name, or the best one.

    Raises:
        ValueError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} cannot be used: {error}") from None
    return device


DATA_PANEL = "Data"
DATA = "A .jsonl, .json, .csv or .tsv file, or the NAME[:CONFIG] of a data set."
PromptDir = Annotated[Path, option("Directory of a saved prompt.")]
Backbone = Annotated[str | None, option("Directory or name of the encoder, if not the prompt's.")]
MaxLength = Annotated[
    int | None, option("Longest input in tokens, if less than the encoder allows.")
]
Device = Annotated[
    str | None, option("Where to compute: cuda, cuda:1 or cpu; a GPU if there is one.")
]
Overwrite = Annotated[bool, option("Replace what --output names.", "--overwrite")]


TASK_OPTIONS: dict[str, tuple[type, str]] = {
    "text_column": (str, "Column with the text, if not text."),
    "text_pair_column": (str, "Column with the second text of a pair."),
    "label_column": (str, "Column with the label, if not label."),
    "tokens_column": (str, "Column with the words, if not tokens."),
    "tags_column": (str, "Column with the words' tags, if not tags."),
    "question_column": (str, "Column with the question, if not question."),
    "context_column": (str, "Column with the context, if not context."),
    "answers_column": (str, "Column with the answers, if not answers."),
    "choices_column": (str, "Column with the list of choices, if not choices."),
    "image_column": (str, "Column with the path of the image, if not image."),
    "stride": (int, "Tokens that the windows of a long input share."),
}
"""The fields of tasks that a command line may set, for all kinds of task together."""
LABEL_OPTIONS = ("label_column", "tags_column", "answers_column")
TaskOptions = Mapping[str, Any]
NO_OPTIONS: TaskOptions = MappingProxyType({})


def takes_task_options(labelled: bool = True) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Replace a command's parameter `task_options` by an option for each of TASK_OPTIONS.

    The command gets those that were given, by their names.

    Args:
        labelled: whether the command reads labels; else it has no option for their columns.
    """
    taken = [name for name in TASK_OPTIONS if labelled or name not in LABEL_OPTIONS]

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(command)
        def taking(*args: Any, **kwargs: Any) -> R:
            given = {name: kwargs.pop(name) for name in taken}
            options = {name: value for name, value in given.items() if value is not None}
            return command(*args, **kwargs, task_options=options)

        own = inspect.signature(command, eval_str=True)
        parameters = []
        for parameter in own.parameters.values():
            if parameter.name != "task_options":
                parameters.append(parameter)
                continue
            for name in taken:
                kind, text = TASK_OPTIONS[name]
                declared = typer.Option(help=text, rich_help_panel=DATA_PANEL)
                annotation = Annotated[kind | None, declared]  # type: ignore[valid-type]
                parameters.append(
                    parameter.replace(name=name, default=None, annotation=annotation)
                )
        taking.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        taking.__annotations__ = {x.name: x.annotation for x in parameters}
        return taking

    return decorate


def options_of(kinds: Collection[str], given: TaskOptions) -> dict[str, dict[str, Any]]:
    """Of the given options of tasks, those that each kind of task has.

    Raises:
        ValueError: one that none of the kinds has.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        known = {field.name for field in fields(TASKS[kind])} if kind in TASKS else set(given)
        found[kind] = {name: value for name, value in given.items() if name in known}
    for name in given:
        if not any(name in own for own in found.values()):
            raise ValueError(f"{name}: {', '.join(kinds)} has no such option, expected none")
    return found


def layer_numbers(text: str) -> tuple[int, ...]:
    """The numbers in a text such as 0,1,5."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"layers: expected numbers such as 0,1,5, got {text!r}") from None


def refuse_overwriting(output: Path | None, overwrite: bool) -> None:
    """Raise an error unless a file may be written there."""
    if output is None:
        if overwrite:
            raise ValueError("overwrite: expected --output with it, got none")
        return
    if output.is_dir():
        raise IsADirectoryError(f"output: expected a file, got the folder {output}")
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

"""`ptv2 eval` and `ptv2 predict`: saved prompts at work."""

import json
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from datasets import Dataset

from ..assets import read_asset
from ..model import PromptModel
from ..predictor import Predictor
from ..report import print_scores
from ..run_directory import task_settings
from ..storage import write_json
from ..tasks import TASKS, Task, load_data
from ..training import evaluate
from .options import (
    DATA,
    NO_OPTIONS,
    Backbone,
    Device,
    MaxLength,
    Overwrite,
    PromptDir,
    TaskOptions,
    chosen_device,
    option,
    options_of,
    refuse_overwriting,
    reports_errors,
    takes_task_options,
    write_lines,
)


@reports_errors
@takes_task_options()
def evaluate_prompt(
    prompt: PromptDir,
    data: Annotated[str, option(DATA)],
    split: Annotated[str | None, option("Split of a named data set, if not test.")] = None,
    backbone: Backbone = None,
    task_options: TaskOptions = NO_OPTIONS,
    max_length: MaxLength = None,
    device: Device = None,
    output: Annotated[Path | None, option("JSON file for the scores.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Score a saved prompt on labelled data, read as in training unless told otherwise."""
    refuse_overwriting(output, overwrite)
    examples = load_data(data, split, "test")
    predictor, (name,) = load_prompts([prompt], backbone, max_length, device)
    kind = predictor.model.tasks[name].task
    own = trained_with(prompt, kind, max_length) | options_of([kind], task_options)[kind]
    reader = predictor.task(name, **own)
    scores = evaluate(predictor, name, reader, examples)
    print_scores({name: scores, "commonest answer": scores["majority"]})
    if output is not None:
        write_json(output, scores)


@reports_errors
@takes_task_options(labelled=False)
def predict(
    prompt: Annotated[list[Path], option("Directory of a saved prompt; may be repeated.")],
    text: Annotated[list[str] | None, option("A text; may be repeated.")] = None,
    text_pair: Annotated[
        list[str] | None, option("The second text of each --text; a question's context.")
    ] = None,
    data: Annotated[str | None, option("File or data set, instead of --text.")] = None,
    split: Annotated[str | None, option("Split of a named data set, if not test.")] = None,
    backbone: Backbone = None,
    task_options: TaskOptions = NO_OPTIONS,
    max_length: MaxLength = None,
    device: Device = None,
    output: Annotated[Path | None, option("JSONL file, instead of the terminal.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Answer texts with one prompt or several, all in the same forwards; a JSON line a text.

    Data is read as in each prompt's training unless told otherwise.
    """
    refuse_overwriting(output, overwrite)
    if (not text) == (data is None):
        raise ValueError("text: expected either --text or --data")
    if text_pair and len(text_pair) != len(text or []):
        raise ValueError(
            f"text_pair: expected one for each --text, {len(text or [])}, got {len(text_pair)}"
        )
    if text:
        if split is not None:
            raise ValueError(f"split: expected none with --text, got {split!r}")
        examples = typed_examples(text, text_pair)
        columns = [name for name in task_options if name.endswith("_column")]
        if columns:
            raise ValueError(f"{columns[0]}: columns are of --data, expected none with --text")
    else:
        assert data is not None
        examples = load_data(data, split, "test")
    predictor, names = load_prompts(prompt, backbone, max_length, device)
    kinds = {name: predictor.model.tasks[name].task for name in names}
    options = options_of(set(kinds.values()), task_options)
    readers = {}
    for directory, (name, kind) in zip(prompt, kinds.items(), strict=True):
        own = trained_with(directory, kind, max_length) | options[kind]
        if text:
            if own.get("text_pair_column") and not text_pair:
                raise ValueError(
                    f"text_pair: {name!r} was trained on pairs, expected one for each --text"
                )
            alone = own.get("text_pair_column", "") is None
            own = {key: own[key] for key in own if not key.endswith("_column")}
            own |= typed_columns(kind, None if alone else text_pair)
        readers[name] = predictor.task(name, **own)
    if text_pair and not any(reads_pairs(reader) for reader in readers.values()):
        raise ValueError(
            f"text_pair: expected none for {', '.join(readers)}, which reads texts alone"
        )
    features = {name: readers[name].prepare(examples, labelled=False) for name in names}
    rows = [(name, feature) for name in names for feature in features[name]]
    answers = predictor.answer(readers, rows)
    inputs = shown_inputs(readers.values())
    lines = []
    for place, example in enumerate(examples.select_columns(sorted(set(inputs.values())))):
        line: dict[str, Any] = {
            key: value
            for key, column in inputs.items()
            if isinstance(value := example[column], str | int | float | list)  # else an image
        }
        line["answers"] = {
            name: answers[place + i * len(examples)] for i, name in enumerate(names)
        }
        lines.append(json.dumps(line, ensure_ascii=False))
    write_lines(lines, output)


def shown_inputs(readers: Collection[Task]) -> dict[str, str]:
    """What a line of answers shows of its example: columns, by their part in the tasks, or by
    their own names where the tasks read several for one part."""
    shown: dict[str, str] = {}
    for part in ("text", "text_pair", "tokens", "question", "image"):
        read = (getattr(reader, f"{part}_column", None) for reader in readers)
        columns = sorted({column for column in read if column is not None})
        shown |= {part if len(columns) == 1 else column: column for column in columns}
    return shown


def typed_examples(text: list[str], text_pair: list[str] | None) -> Dataset:
    """Texts as data, in the columns that every kind of task reads unless told otherwise."""
    columns = dict.fromkeys(("text", "tokens", "question", "image"), text)
    if text_pair:
        columns |= dict.fromkeys(("text_pair", "context"), text_pair)
    return Dataset.from_dict(columns)


def typed_columns(kind: str, text_pair: list[str] | None) -> dict[str, str]:
    """The columns of `typed_examples` that a kind of task would not read by itself."""
    known = {field.name for field in fields(TASKS[kind])}
    if "choices_column" in known:
        raise ValueError(f"text: {kind} reads lists of choices, expected --data")
    if "context_column" in known and not text_pair:
        raise ValueError(f"text_pair: {kind} reads the context there, expected one a --text")
    pairs = text_pair and "text_pair_column" in known
    return {"text_pair_column": "text_pair"} if pairs else {}


def reads_pairs(reader: Task) -> bool:
    """Whether a task reads a second text."""
    pair = getattr(reader, "text_pair_column", None) or getattr(reader, "context_column", None)
    return pair is not None


def trained_with(directory: Path, kind: str, max_length: int | None) -> dict[str, Any]:
    """How the run that left a prompt read its data, if a run did: options of the kind of task.

    Args:
        max_length: that is given now, instead of the run's.
    """
    settings, task = task_settings(directory), TASKS.get(kind)
    names = set() if task is None else {field.name for field in fields(task)}
    names -= {"labels", *(task.prompt_fields if task else ())}  # the prompt has these itself
    if max_length is not None:
        names.discard("max_length")
    return {name: settings[name] for name in names & settings.keys()}


def load_prompts(
    directories: Sequence[Path],
    backbone: str | None,
    max_length: int | None,
    device: str | None = None,
) -> tuple[Predictor, list[str]]:
    """One model with all the prompts, and their names."""
    source = backbone or read_asset(directories[0]).backbone["name_or_path"]
    if not source:
        raise ValueError(f"backbone: {directories[0]} names none, expected --backbone")
    where = chosen_device(device)
    model = PromptModel.from_pretrained(source)
    names = [read_asset(directory).name for directory in directories]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ValueError(f"prompt: {directories[place]} is another task named {name!r}")
    for directory in directories:
        model.load_task(directory)
    return Predictor(model.to(where), max_length=max_length), names

"""The command line: `ptv2 train | eval | predict | info | demo`."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import transformers
import typer
from datasets import Dataset
from transformers import set_seed

from .assets import read_asset
from .config import PromptConfig
from .demo import run as run_demo
from .model import PromptModel
from .predictor import Predictor
from .report import print_fields, print_scores, scores_of
from .tasks import TASKS, SequenceClassification, load_data, make_task
from .training import METRICS, TrainConfig, evaluate, write_json, write_text
from .training import train as train_task

app = typer.Typer(
    help="P-Tuning v2: train, evaluate and use deep prompts on a frozen encoder.",
    no_args_is_help=True,
    add_completion=False,
)

P = ParamSpec("P")
R = TypeVar("R")


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Make one line and exit code 2 of the errors that say what is wrong with the input."""

    @functools.wraps(command)
    def reported(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (ValueError, OSError, NotImplementedError) as error:
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
Overwrite = Annotated[bool, option("Replace what --output names.", "--overwrite")]


@app.command()
@reports_errors
def train(
    backbone: Annotated[str, option("Directory or name of the encoder.")],
    task: Annotated[str, option(f"Kind of task: {' or '.join(TASKS)}.")],
    train: Annotated[str, option(DATA)],
    validation: Annotated[str, option("As --train; it picks the best epoch.")],
    output: Annotated[Path, option("Directory for the prompt, its settings and metrics.")],
    name: Annotated[str | None, option("Name of the task, if not that of the directory.")] = None,
    train_split: Annotated[str | None, option("Split of a named dataset: train.")] = None,
    validation_split: Annotated[
        str | None, option("Split of a named dataset: validation.")
    ] = None,
    text_column: TextColumn = None,
    text_pair_column: TextPairColumn = None,
    label_column: LabelColumn = None,
    tokens_column: TokensColumn = None,
    tags_column: TagsColumn = None,
    max_length: MaxLength = None,
    prompt_length: Annotated[int, option("Prompt keys and values in each layer.")] = (
        PromptConfig.prompt_length
    ),
    parametrization: Annotated[str, option("direct or mlp.")] = PromptConfig.parametrization,
    injection: Annotated[str, option("key-value or hidden-state.")] = PromptConfig.injection,
    layers: Annotated[str | None, option("Layers with a prompt, as 0,1,5, if not all.")] = None,
    init_std: Annotated[float, option("Spread of the prompt at the start.")] = (
        PromptConfig.init_std
    ),
    pooling: Annotated[str | None, option("mean or first, for one label a text.")] = None,
    learning_rate: Annotated[float, option("Peak of the schedule.")] = TrainConfig.learning_rate,
    head_learning_rate: Annotated[float | None, option("The head's, if another.")] = (
        TrainConfig.head_learning_rate
    ),
    epochs: Annotated[int, option("Passes over the data.")] = TrainConfig.epochs,
    batch_size: Annotated[int, option("Examples a step.")] = TrainConfig.batch_size,
    warmup_ratio: Annotated[float, option("Share of the steps.")] = TrainConfig.warmup_ratio,
    scheduler: Annotated[str, option("A schedule of transformers.")] = TrainConfig.scheduler,
    weight_decay: Annotated[float, option("Of AdamW.")] = TrainConfig.weight_decay,
    precision: Annotated[str, option("fp32, bf16 or fp16.")] = TrainConfig.precision,
    seed: Annotated[int, option("Of everything random.")] = TrainConfig.seed,
    resume: Annotated[bool, option("Go on with a run that was stopped.", "--resume")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a prompt on a frozen encoder and save it."""
    config = TrainConfig(
        learning_rate=learning_rate,
        head_learning_rate=head_learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        warmup_ratio=warmup_ratio,
        scheduler=scheduler,
        weight_decay=weight_decay,
        precision=precision,
        seed=seed,
    )
    columns = columns_of(
        task,
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=label_column,
        tokens_column=tokens_column,
        tags_column=tags_column,
    )
    parts = (
        load_data(train, train_split),
        load_data(validation, validation_split, "validation"),
    )
    predictor = Predictor(PromptModel.from_pretrained(backbone), max_length=max_length)
    reader = make_task(task, predictor.tokenizer, max_length=predictor.max_length, **columns)
    reader = reader.fit_labels(*parts)
    prompt = {
        "task": task,
        "labels": reader.labels,
        "prompt_length": prompt_length,
        "parametrization": parametrization,
        "injection": injection,
        "layers": None if layers is None else layer_numbers(layers),
        "init_std": init_std,
    }
    if pooling is not None:
        if task != SequenceClassification.kind:
            raise ValueError(f"pooling: {task} pools nothing, expected none, got {pooling!r}")
        prompt["pooling"] = pooling
    name = name or output.resolve().name
    set_seed(seed)
    predictor.model.add_task(name, PromptConfig.from_dict(prompt))
    metrics = train_task(
        predictor.model, name, reader, parts, output, config, resume=resume, overwrite=overwrite
    )
    print_scores({name: metrics["best"], "commonest answer": metrics["majority"]})
    typer.echo(f"saved in {output}")


@app.command("eval")
@reports_errors
def evaluate_prompt(
    prompt: PromptDir,
    data: Annotated[str, option(DATA)],
    split: Annotated[str | None, option("Split of a named dataset: test.")] = None,
    backbone: Backbone = None,
    text_column: TextColumn = None,
    text_pair_column: TextPairColumn = None,
    label_column: LabelColumn = None,
    tokens_column: TokensColumn = None,
    tags_column: TagsColumn = None,
    max_length: MaxLength = None,
    output: Annotated[Path | None, option("JSON file for the scores.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Score a saved prompt on labelled data."""
    refuse_overwriting(output, overwrite)
    examples = load_data(data, split, "test")
    predictor, (name,) = load_prompts([prompt], backbone, max_length)
    reader = predictor.task(
        name,
        **columns_of(
            predictor.model.tasks[name].task,
            text_column=text_column,
            text_pair_column=text_pair_column,
            label_column=label_column,
            tokens_column=tokens_column,
            tags_column=tags_column,
        ),
    )
    scores = evaluate(predictor, name, reader, examples)
    print_scores({name: scores, "commonest answer": scores["majority"]})
    if output is not None:
        write_json(output, scores)


@app.command()
@reports_errors
def predict(
    prompt: Annotated[list[Path], option("Directory of a saved prompt; may be repeated.")],
    text: Annotated[list[str] | None, option("A text; may be repeated.")] = None,
    text_pair: Annotated[list[str] | None, option("The second text of each --text.")] = None,
    data: Annotated[str | None, option("File or dataset, instead of --text.")] = None,
    split: Annotated[str | None, option("Split of a named dataset: test.")] = None,
    backbone: Backbone = None,
    text_column: TextColumn = None,
    text_pair_column: TextPairColumn = None,
    tokens_column: TokensColumn = None,
    max_length: MaxLength = None,
    output: Annotated[Path | None, option("JSONL file, instead of the terminal.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Answer texts with one prompt or several, all in the same forwards; a JSON line a text."""
    refuse_overwriting(output, overwrite)
    if (not text) == (data is None):
        raise ValueError("text: expected either --text or --data")
    if text_pair and len(text_pair) != len(text or []):
        raise ValueError(
            f"text_pair: expected one for each --text, {len(text or [])}, got {len(text_pair)}"
        )
    if text:
        fields = {"text": text, "tokens": text} | ({"text_pair": text_pair} if text_pair else {})
        examples = Dataset.from_dict(fields)
        given = (text_column, tokens_column, text_pair_column)
        if any(column is not None for column in given):
            raise ValueError("text_column: columns are of --data, expected none with --text")
        text_pair_column = "text_pair" if text_pair else None
    else:
        assert data is not None
        examples = load_data(data, split, "test")
    predictor, names = load_prompts(prompt, backbone, max_length)
    readers = {
        name: predictor.task(
            name,
            **columns_of(
                predictor.model.tasks[name].task,
                text_column=text_column,
                text_pair_column=text_pair_column,
                tokens_column=tokens_column,
            ),
        )
        for name in names
    }
    features = {name: readers[name].prepare(examples, labelled=False) for name in names}
    rows = [(name, feature) for name in names for feature in features[name]]
    answers = predictor.answer(readers, rows)
    inputs = {
        "text": text_column or "text",
        "text_pair": text_pair_column,
        "tokens": tokens_column or "tokens",
    }
    lines = []
    for place, example in enumerate(examples):
        line = {key: example[column] for key, column in inputs.items() if column in example}
        line["answers"] = {
            name: answers[place + i * len(examples)] for i, name in enumerate(names)
        }
        lines.append(json.dumps(line, ensure_ascii=False))
    write_lines(lines, output)


@app.command()
@reports_errors
def info(prompt: Annotated[Path, typer.Argument(help="Directory of a saved prompt.")]) -> None:
    """Show what a saved prompt is."""
    asset = read_asset(prompt)
    layers, _, heads, length, head_dim = asset.tensors["key_value"].shape
    head = sum(x.numel() for key, x in asset.tensors.items() if key != "key_value")
    rows = {
        "name": asset.name,
        "task": asset.config.task,
        "labels": ", ".join(asset.config.labels),
        "backbone": f"{asset.backbone['name_or_path']} ({asset.backbone['model_type']})",
        "prompt": f"{length} keys and values, {layers} layers, {heads} heads of size {head_dim}",
        "trained as": f"{asset.config.parametrization}, {asset.config.injection}",
        "parameters": f"{asset.tensors['key_value'].numel():,} prompt, {head:,} head",
        "size": f"{4 * (asset.tensors['key_value'].numel() + head) / 1000:,.0f} kB",
    }
    if (prompt / METRICS).is_file():
        best = json.loads((prompt / METRICS).read_text(encoding="utf-8"))["best"]
        rows["validation"] = ", ".join(f"{key} {value}" for key, value in scores_of(best).items())
    print_fields(rows)


@app.command()
@reports_errors
def demo(
    output: Annotated[Path | None, option("Keep the two runs in this directory.")] = None,
) -> None:
    """Train two prompts on one encoder and answer both tasks in one forward (a few minutes)."""
    transformers.logging.set_verbosity_error()  # it reports the encoder's unused pooler
    run_demo(output)


def columns_of(kind: str, **columns: str | None) -> dict[str, str]:
    """The columns that were given; one that the kind of task does not read is an error."""
    known = {field.name for field in fields(TASKS[kind])} if kind in TASKS else set(columns)
    given = {name: column for name, column in columns.items() if column is not None}
    for name in given:
        if name not in known:
            raise ValueError(f"{name}: {kind} reads no such column, expected none")
    return given


def layer_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"layers: expected numbers such as 0,1,5, got {text!r}") from None


def load_prompts(
    directories: Sequence[Path], backbone: str | None, max_length: int | None
) -> tuple[Predictor, list[str]]:
    """One model with all the prompts, and their names."""
    source = backbone or read_asset(directories[0]).backbone["name_or_path"]
    if not source:
        raise ValueError(f"backbone: {directories[0]} names none, expected --backbone")
    model = PromptModel.from_pretrained(source)
    names = [read_asset(directory).name for directory in directories]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ValueError(f"prompt: {directories[place]} is another task named {name!r}")
    for directory in directories:
        model.load_task(directory)
    return Predictor(model, max_length=max_length), names


def refuse_overwriting(output: Path | None, overwrite: bool) -> None:
    if output is None:
        return
    if not output.parent.is_dir():
        raise FileNotFoundError(f"output: the folder {output.parent} does not exist")
    if output.exists() and not overwrite:
        raise FileExistsError(f"output: {output} exists; choose another or give --overwrite")


def write_lines(lines: Sequence[str], output: Path | None) -> None:
    if output is None:
        typer.echo("\n".join(lines))
    else:
        write_text(output, "\n".join(lines) + "\n")
        typer.echo(f"{len(lines)} answers in {output}")


def main() -> None:
    """Entry point of the `ptv2` command."""
    app()

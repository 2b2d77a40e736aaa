"""`ptv2 sweep`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..model import PromptModel
from ..predictor import Predictor
from ..report import print_sweep
from ..schedules import SCHEDULES
from ..sweep import has_matplotlib, read_plan, runs_of_plan
from ..sweep import sweep as train_runs
from ..tasks import TASKS
from .options import (
    DATA,
    NO_OPTIONS,
    MaxLength,
    Overwrite,
    TaskOptions,
    layer_numbers,
    option,
    options_of,
    reports_errors,
    takes_task_options,
)

Texts = list[str] | None
Numbers = list[float] | None
Counts = list[int] | None


@reports_errors
@takes_task_options()
def sweep(
    backbone: Annotated[str, option("Directory or name of the encoder.")],
    output: Annotated[Path, option("Directory for the prompts, the table and the plot.")],
    plan: Annotated[
        Path | None, option("TOML file with a table for each data set, instead of the options.")
    ] = None,
    task: Annotated[str | None, option(f"Kind of task: {' or '.join(TASKS)}.")] = None,
    train: Annotated[str | None, option(DATA)] = None,
    validation: Annotated[str | None, option("As --train; it picks the best epoch.")] = None,
    train_split: Annotated[str | None, option("Split of a named dataset: train.")] = None,
    validation_split: Annotated[
        str | None, option("Split of a named dataset: validation.")
    ] = None,
    task_options: TaskOptions = NO_OPTIONS,
    max_length: MaxLength = None,
    prompt_length: Annotated[Counts, option("Prompt keys and values in each layer.")] = None,
    parametrization: Annotated[Texts, option("direct, mlp or lstm.")] = None,
    injection: Annotated[Texts, option("key-value or hidden-state.")] = None,
    network_size: Annotated[Counts, option("Width of the network of mlp or lstm.")] = None,
    layers: Annotated[Texts, option("Layers with a prompt, as 0,1,5, if not all.")] = None,
    gate: Annotated[
        bool, option("Learned gates, closed at the start, for all.", "--gate")
    ] = False,
    init_std: Annotated[Numbers, option("Spread of the prompt at the start.")] = None,
    prompt_dropout: Annotated[Numbers, option("On the prompt, one mask a step.")] = None,
    head_dropout: Annotated[Numbers, option("Before each linear layer of the head.")] = None,
    pooling: Annotated[Texts, option("mean, first or last, for one label a text.")] = None,
    head_activation: Annotated[
        Texts, option("tanh or gelu of a hidden layer in the head, if it has one.")
    ] = None,
    position_offset: Annotated[
        Counts, option("Position of the first token; for PEFT, the prompt's length.")
    ] = None,
    token_types: Annotated[
        bool | None, option("Tell the second text of a pair apart, for all.")
    ] = None,
    learning_rate: Annotated[Numbers, option("Peak of the schedule.")] = None,
    head_learning_rate: Annotated[Numbers, option("The head's, if another.")] = None,
    epochs: Annotated[Counts, option("Passes over the data.")] = None,
    batch_size: Annotated[Counts, option("Examples a step.")] = None,
    token_budget: Annotated[Counts, option("Tokens a step at most, instead.")] = None,
    warmup_ratio: Annotated[Numbers, option("Share of the steps.")] = None,
    scheduler: Annotated[Texts, option(f"{', '.join(SCHEDULES[:-1])} or {SCHEDULES[-1]}.")] = None,
    weight_decay: Annotated[Numbers, option("Of AdamW.")] = None,
    seed: Annotated[Counts, option("Of everything random.")] = None,
    precision: Annotated[str | None, option("fp32 or bf16, for all.")] = None,
    backbone_dropout: Annotated[
        bool | None, option("The frozen encoder's own dropout, for all.")
    ] = None,
    checkpointing: Annotated[
        str | None,
        option("none, layers or selective, for all: what the backward computes again."),
    ] = None,
    plot: Annotated[
        bool | None, option("Draw the curves; done if matplotlib is installed.")
    ] = None,
    resume: Annotated[bool, option("Go on with a sweep that was stopped.", "--resume")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train many prompts at once on one encoder: every combination of repeated options, or a plan.

    In the plan, a list of values is what a repeated option is here.
    """
    settings = {
        "prompt_length": prompt_length,
        "parametrization": parametrization,
        "injection": injection,
        "network_size": network_size,
        "layers": [layer_numbers(text) for text in layers or []],
        "init_std": init_std,
        "prompt_dropout": prompt_dropout,
        "head_dropout": head_dropout,
        "pooling": pooling,
        "head_activation": head_activation,
        "position_offset": position_offset,
        "learning_rate": learning_rate,
        "head_learning_rate": head_learning_rate,
        "epochs": epochs,
        "batch_size": batch_size,
        "token_budget": token_budget,
        "warmup_ratio": warmup_ratio,
        "scheduler": scheduler,
        "weight_decay": weight_decay,
        "seed": seed,
    }
    entry: dict[str, Any] = {
        "task": task,
        "train": train,
        "validation": validation,
        "train_split": train_split,
        "validation_split": validation_split,
        "gate": gate or None,
        "token_types": token_types,
        "precision": precision,
        "backbone_dropout": backbone_dropout,
        "checkpointing": checkpointing,
        **{name: _one_or_all(given) for name, given in settings.items() if given},
        **task_options,
    }
    entry = {name: given for name, given in entry.items() if given is not None}
    if plan is not None and entry:
        raise ValueError(f"{next(iter(entry))}: the plan says it, expected none with --plan")
    if plan is None:
        for name in ("task", "train", "validation"):
            if name not in entry:
                raise ValueError(f"{name}: expected --{name} or a --plan")
        options_of([entry["task"]], task_options)
    entries = {"": entry} if plan is None else read_plan(plan)
    predictor = Predictor(PromptModel.from_pretrained(backbone), max_length=max_length)
    runs = runs_of_plan(predictor, entries)
    drawn = has_matplotlib() if plot is None else plot
    table = train_runs(
        predictor.model, runs, output, resume=resume, overwrite=overwrite, plot=drawn
    )
    print_sweep(table)
    if plot is None and not drawn:
        typer.echo("no plot: pip install 'ptv2[plot]'")
    typer.echo(f"saved in {output}")


def _one_or_all(values: list[Any]) -> Any:
    """A setting that is given once is no axis of the grid."""
    return values[0] if len(values) == 1 else values

"""`ptv2 sweep`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..model import PromptModel
from ..predictor import Predictor
from ..report import print_sweep
from ..sweep import has_matplotlib, read_plan, runs_of_plan
from ..sweep import sweep as train_runs
from .options import (
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
from .panels import SWEPT, setting

Texts = list[str] | None
Numbers = list[float] | None
Counts = list[int] | None
FOR_ALL = "The same for all runs."


@reports_errors
@takes_task_options()
def sweep(
    backbone: Annotated[str, option("Directory or name of the encoder.")],
    output: Annotated[Path, option("Directory for the prompts, the table and the plot.")],
    plan: Annotated[
        Path | None, option("TOML file with a table for each data set, instead of the options.")
    ] = None,
    task: Annotated[str | None, option(f"Kind of task: {', '.join(SWEPT)}.")] = None,
    train: Annotated[str | None, setting("train")] = None,
    validation: Annotated[str | None, setting("validation")] = None,
    train_split: Annotated[str | None, setting("train_split")] = None,
    validation_split: Annotated[str | None, setting("validation_split")] = None,
    task_options: TaskOptions = NO_OPTIONS,
    max_length: MaxLength = None,
    prompt_length: Annotated[Counts, setting("prompt_length")] = None,
    parametrization: Annotated[Texts, setting("parametrization")] = None,
    network_size: Annotated[Counts, setting("network_size")] = None,
    injection: Annotated[Texts, setting("injection")] = None,
    layers: Annotated[Texts, setting("layers")] = None,
    gate: Annotated[bool, setting("gate", "--gate", note=FOR_ALL)] = False,
    init_std: Annotated[Numbers, setting("init_std")] = None,
    prompt_dropout: Annotated[Numbers, setting("prompt_dropout")] = None,
    head_dropout: Annotated[Numbers, setting("head_dropout")] = None,
    pooling: Annotated[Texts, setting("pooling")] = None,
    head_activation: Annotated[Texts, setting("head_activation")] = None,
    position_offset: Annotated[Counts, setting("position_offset")] = None,
    token_types: Annotated[bool | None, setting("token_types", note=FOR_ALL)] = None,
    learning_rate: Annotated[Numbers, setting("learning_rate")] = None,
    head_learning_rate: Annotated[Numbers, setting("head_learning_rate")] = None,
    scheduler: Annotated[Texts, setting("scheduler")] = None,
    warmup_ratio: Annotated[Numbers, setting("warmup_ratio")] = None,
    weight_decay: Annotated[Numbers, setting("weight_decay")] = None,
    epochs: Annotated[Counts, setting("epochs")] = None,
    batch_size: Annotated[Counts, setting("batch_size")] = None,
    token_budget: Annotated[Counts, setting("token_budget")] = None,
    precision: Annotated[str | None, setting("precision", note=f"No fp16 here. {FOR_ALL}")] = None,
    backbone_dropout: Annotated[bool | None, setting("backbone_dropout", note=FOR_ALL)] = None,
    checkpointing: Annotated[str | None, setting("checkpointing", note=FOR_ALL)] = None,
    seed: Annotated[Counts, setting("seed")] = None,
    plot: Annotated[
        bool | None, option("Draw the curves; done if matplotlib is installed.")
    ] = None,
    resume: Annotated[bool, option("Go on with a sweep that was stopped.", "--resume")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train many prompts at once on one encoder: every combination of repeated options, or a plan.

    In the plan, a list of values is what a repeated option is here. What is not given is as in
    `ptv2 train`.
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

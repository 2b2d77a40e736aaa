"""`ptv2 train`."""

from pathlib import Path
from typing import Annotated

import typer
from transformers import set_seed

from ..config import PromptConfig
from ..heads import POOLED
from ..memory import describe, device_memory, parse_bytes, plan
from ..model import PromptModel
from ..predictor import Predictor
from ..processes import is_main
from ..recipes import recipe as read_recipe
from ..report import print_fields, print_scores
from ..settings import UNREAD, reads, require_room
from ..tasks import load_data, make_task
from ..train_config import TrainConfig
from ..training import prepare_module
from ..training import train as train_task
from .options import (
    NO_OPTIONS,
    MaxLength,
    Overwrite,
    TaskOptions,
    chosen_device,
    layer_numbers,
    option,
    options_of,
    reports_errors,
    takes_task_options,
)
from .panels import TRAINED, setting


def _use_recipe(context: typer.Context, name: str | None) -> str | None:
    """Make a recipe's settings the defaults of the other options."""
    if name is not None:
        try:
            context.default_map = read_recipe(name)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    return name


def _given(context: typer.Context) -> set[str]:
    """The options on the command line itself, without those of a recipe."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, x in sources.items() if x is not None and x.name == "COMMANDLINE"}


def _check_given(given: set[str]) -> None:
    """Raise a ValueError for options of which one makes another useless."""
    if {"resume", "overwrite"} <= given:
        raise ValueError("overwrite: expected either --resume or --overwrite, got both")
    if "memory" in given and "dry_run" not in given:
        raise ValueError("memory: expected --dry-run with it")
    if {"init_std", "start_from_text"} <= given:
        raise ValueError(UNREAD["init_std"])
    for name in ("save_steps", "resume", "overwrite"):
        if {name, "dry_run"} <= given:
            raise ValueError(f"{name}: a dry run trains nothing, expected none with --dry-run")


@reports_errors
@takes_task_options()
def train(
    context: typer.Context,
    backbone: Annotated[str, option("Directory or name of the encoder.")],
    task: Annotated[str, option(f"Kind of task: {', '.join(TRAINED)}.")],
    train: Annotated[str, setting("train")],
    validation: Annotated[str, setting("validation")],
    output: Annotated[Path, option("Directory for the prompt, its settings and metrics.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Settings of the official code for a data set and an encoder, as "
            "rte-roberta-large; other options change them.",
            is_eager=True,
            callback=_use_recipe,
        ),
    ] = None,
    name: Annotated[str | None, option("Name of the task, if not that of the directory.")] = None,
    train_split: Annotated[str | None, setting("train_split")] = None,
    validation_split: Annotated[str | None, setting("validation_split")] = None,
    task_options: TaskOptions = NO_OPTIONS,
    max_length: MaxLength = None,
    prompt_length: Annotated[int, setting("prompt_length")] = PromptConfig.prompt_length,
    parametrization: Annotated[str, setting("parametrization")] = PromptConfig.parametrization,
    network_size: Annotated[int, setting("network_size")] = PromptConfig.network_size,
    injection: Annotated[str, setting("injection")] = PromptConfig.injection,
    depth: Annotated[str, setting("depth")] = PromptConfig.depth,
    layers: Annotated[str | None, setting("layers")] = None,
    gate: Annotated[bool, setting("gate", "--gate")] = PromptConfig.gate,
    start_from: Annotated[Path | None, setting("start_from")] = None,
    start_from_text: Annotated[str | None, setting("start_from_text")] = None,
    init_std: Annotated[float, setting("init_std")] = PromptConfig.init_std,
    prompt_dropout: Annotated[float, setting("prompt_dropout")] = PromptConfig.prompt_dropout,
    head_dropout: Annotated[float, setting("head_dropout")] = PromptConfig.head_dropout,
    pooling: Annotated[str | None, setting("pooling")] = None,
    head_activation: Annotated[str | None, setting("head_activation")] = None,
    position_offset: Annotated[int, setting("position_offset")] = PromptConfig.position_offset,
    token_types: Annotated[bool, setting("token_types")] = PromptConfig.token_types,
    learning_rate: Annotated[float, setting("learning_rate")] = TrainConfig.learning_rate,
    head_learning_rate: Annotated[float | None, setting("head_learning_rate")] = None,
    scheduler: Annotated[str, setting("scheduler")] = TrainConfig.scheduler,
    warmup_ratio: Annotated[float, setting("warmup_ratio")] = TrainConfig.warmup_ratio,
    weight_decay: Annotated[float, setting("weight_decay")] = TrainConfig.weight_decay,
    epochs: Annotated[int, setting("epochs")] = TrainConfig.epochs,
    batch_size: Annotated[int, setting("batch_size")] = TrainConfig.batch_size,
    token_budget: Annotated[int | None, setting("token_budget")] = None,
    packing: Annotated[bool, setting("packing", "--packing")] = False,
    precision: Annotated[str, setting("precision")] = TrainConfig.precision,
    backbone_dropout: Annotated[bool, setting("backbone_dropout")] = TrainConfig.backbone_dropout,
    checkpointing: Annotated[str, setting("checkpointing")] = TrainConfig.checkpointing,
    compile: Annotated[bool, setting("compile", "--compile")] = False,
    seed: Annotated[int, setting("seed")] = TrainConfig.seed,
    save_steps: Annotated[
        int | None, option("A checkpoint every so many steps, besides those of the epochs.")
    ] = None,
    dry_run: Annotated[
        bool, option("Train nothing; say what a step needs in memory.", "--dry-run")
    ] = False,
    memory: Annotated[
        str | None, option("With --dry-run: how much there is, as 8GB; a GPU's own if not given.")
    ] = None,
    resume: Annotated[bool, option("Go on with a run that was stopped.", "--resume")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a prompt on a frozen encoder and save it."""
    given = _given(context)
    _check_given(given)
    available = None if memory is None else parse_bytes(memory)
    if token_budget is not None and "batch_size" not in given:
        batch_size = TrainConfig.batch_size  # instead of a recipe's
    config = TrainConfig(
        learning_rate=learning_rate,
        head_learning_rate=head_learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        token_budget=token_budget,
        packing=packing,
        warmup_ratio=warmup_ratio,
        scheduler=scheduler,
        weight_decay=weight_decay,
        precision=precision,
        backbone_dropout=backbone_dropout,
        checkpointing=checkpointing,
        compile=compile,
        save_steps=save_steps,
        seed=seed,
    )
    own = options_of([task], task_options)[task]
    parts = (
        load_data(train, train_split),
        load_data(validation, validation_split, "validation"),
    )
    predictor = Predictor(PromptModel.from_pretrained(backbone), max_length=max_length)
    taken = (
        ("prompt_length", prompt_length)
        if depth == "input"
        else ("position_offset", position_offset)
    )
    require_room(predictor, *taken)
    longest = predictor.length_beside(taken[1])
    reader = make_task(task, predictor.tokenizer, max_length=longest, **own)
    reader = reader.fit_labels(*parts)
    prompt = {
        "task": task,
        "labels": reader.labels,
        "prompt_length": prompt_length,
        "parametrization": parametrization,
        "injection": injection,
        "depth": depth,
        "layers": None if layers is None else layer_numbers(layers),
        "init_std": init_std,
        "network_size": network_size,
        "gate": gate,
        "prompt_dropout": prompt_dropout,
        "head_dropout": head_dropout,
        "head_activation": head_activation,
        "position_offset": position_offset,
        "token_types": token_types,
        **{field: getattr(reader, field) for field in reader.prompt_fields},
    }
    if pooling is not None:
        if task not in POOLED:
            raise ValueError(f"pooling: {task} pools nothing, expected none, got {pooling!r}")
        prompt["pooling"] = pooling
    name = name or output.resolve().name
    set_seed(seed)
    text = None if start_from_text is None else predictor.tokenizer(start_from_text)["input_ids"]
    prompt_config = PromptConfig.from_dict(prompt)
    for unread in given & UNREAD.keys():
        if not reads(unread, prompt_config, start_from):
            raise ValueError(UNREAD[unread])
    predictor.model.add_task(name, prompt_config, start_from=start_from, start_from_text=text)
    if dry_run:
        predictor.model.to(chosen_device(None))
        module = prepare_module(predictor.model, name, config)
        if available is None:
            available = device_memory(predictor.model.device)
        features = reader.prepare(parts[0])
        print_fields(
            describe(module, plan(module, reader, features, config, available), available)
        )
        return
    metrics = train_task(
        predictor.model, name, reader, parts, output, config, resume=resume, overwrite=overwrite
    )
    if is_main():
        print_scores({name: metrics["best"], "commonest answer": metrics["majority"]})
        typer.echo(f"saved in {output}")

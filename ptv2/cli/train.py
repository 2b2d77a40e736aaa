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
from ..schedules import SCHEDULES
from ..settings import UNREAD, reads, require_room
from ..tasks import TASKS, load_data, make_task
from ..train_config import TrainConfig
from ..training import prepare_module
from ..training import train as train_task
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
    task: Annotated[str, option(f"Kind of task: {' or '.join(TASKS)}.")],
    train: Annotated[str, option(DATA)],
    validation: Annotated[str, option("As --train; it picks the best epoch.")],
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
    train_split: Annotated[str | None, option("Split of a named dataset: train.")] = None,
    validation_split: Annotated[
        str | None, option("Split of a named dataset: validation.")
    ] = None,
    task_options: TaskOptions = NO_OPTIONS,
    max_length: MaxLength = None,
    prompt_length: Annotated[int, option("Prompt keys and values in each layer.")] = (
        PromptConfig.prompt_length
    ),
    parametrization: Annotated[str, option("direct, mlp or lstm.")] = PromptConfig.parametrization,
    injection: Annotated[str, option("key-value or hidden-state.")] = PromptConfig.injection,
    network_size: Annotated[int, option("Width of the network of mlp or lstm.")] = (
        PromptConfig.network_size
    ),
    gate: Annotated[
        bool,
        option("Learned gates, closed at the start: it begins as the bare encoder.", "--gate"),
    ] = PromptConfig.gate,
    start_from: Annotated[
        Path | None, option("Directory of a saved prompt whose values it starts with.")
    ] = None,
    start_from_text: Annotated[
        str | None, option("A text whose keys and values it starts with.")
    ] = None,
    depth: Annotated[
        str, option("layers; or input, for comparison with prompt tuning and P-tuning.")
    ] = PromptConfig.depth,
    layers: Annotated[str | None, option("Layers with a prompt, as 0,1,5, if not all.")] = None,
    init_std: Annotated[float, option("Spread of the prompt at the start.")] = (
        PromptConfig.init_std
    ),
    prompt_dropout: Annotated[float, option("On the prompt, one mask a step.")] = (
        PromptConfig.prompt_dropout
    ),
    head_dropout: Annotated[float, option("Before each linear layer of the head.")] = (
        PromptConfig.head_dropout
    ),
    pooling: Annotated[str | None, option("mean, first or last, for one label a text.")] = None,
    head_activation: Annotated[
        str | None, option("tanh or gelu of a hidden layer in the head, if it has one.")
    ] = PromptConfig.head_activation,
    position_offset: Annotated[
        int, option("Position of the first token; for PEFT, the prompt's length.")
    ] = PromptConfig.position_offset,
    token_types: Annotated[bool, option("Tell the second text of a pair apart.")] = (
        PromptConfig.token_types
    ),
    learning_rate: Annotated[float, option("Peak of the schedule.")] = TrainConfig.learning_rate,
    head_learning_rate: Annotated[float | None, option("The head's, if another.")] = (
        TrainConfig.head_learning_rate
    ),
    epochs: Annotated[int, option("Passes over the data.")] = TrainConfig.epochs,
    batch_size: Annotated[int, option("Examples a step.")] = TrainConfig.batch_size,
    token_budget: Annotated[int | None, option("Tokens a step at most, instead.")] = None,
    packing: Annotated[bool, option("Batches without a padding token.", "--packing")] = False,
    warmup_ratio: Annotated[float, option("Share of the steps.")] = TrainConfig.warmup_ratio,
    scheduler: Annotated[str, option(f"{', '.join(SCHEDULES[:-1])} or {SCHEDULES[-1]}.")] = (
        TrainConfig.scheduler
    ),
    weight_decay: Annotated[float, option("Of AdamW.")] = TrainConfig.weight_decay,
    precision: Annotated[str, option("fp32, bf16 or fp16.")] = TrainConfig.precision,
    backbone_dropout: Annotated[bool, option("The frozen encoder's own dropout.")] = (
        TrainConfig.backbone_dropout
    ),
    checkpointing: Annotated[
        str, option("none, layers or selective: what the backward computes again to save memory.")
    ] = TrainConfig.checkpointing,
    compile: Annotated[bool, option("With torch.compile.", "--compile")] = False,
    save_steps: Annotated[
        int | None, option("A checkpoint every so many steps, besides those of the epochs.")
    ] = None,
    seed: Annotated[int, option("Of everything random.")] = TrainConfig.seed,
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
    for setting in given & UNREAD.keys():
        if not reads(setting, prompt_config, start_from):
            raise ValueError(UNREAD[setting])
    predictor.model.add_task(name, prompt_config, start_from=start_from, start_from_text=text)
    if dry_run:
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

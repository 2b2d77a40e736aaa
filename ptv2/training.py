"""Training and evaluation of a prompt, on the transformers `Trainer`.

A run's directory holds the saved prompt, `run_config.json` and `metrics.json`, written when
the run is done, and `checkpoints/`, from which a run that was stopped goes on.
"""

import logging
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainingArguments

from .checkpoints import newest
from .model import PromptModel
from .predictor import Predictor
from .processes import is_main, on_main, require_everywhere
from .run_directory import (
    CHECKPOINTS,
    RUN_CONFIG,
    describe_run,
    open_run,
    save_run,
    surroundings,
)
from .task_model import TaskModel
from .tasks import Task
from .tasks.data import data_sha256
from .train_config import TrainConfig
from .trainer import Diverged, PromptTrainer

logger = logging.getLogger(__name__)


def train(
    model: PromptModel,
    name: str,
    task: Task,
    data: tuple[Dataset, Dataset],
    output_dir: str | Path,
    config: TrainConfig | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a task of the model; the best epoch stays in the model and is saved.

    Args:
        name: of the task in the model.
        task: how the data is read; its labels, and what else a prompt's configuration keeps of
            the data, are those of the model's task.
        data: training and validation examples.
        output_dir: the run's directory.
        resume: go on from the last checkpoint there, to bitwise the same end as without a stop.
        overwrite: replace the run that is there; it is kept until the new one is done.

    Returns:
        What `metrics.json` holds: `best`, `majority`, `history`, seconds, versions.

    Raises:
        FileExistsError: the directory is not empty, and neither resume nor overwrite is given.
        FileNotFoundError: there is no run to resume.
        UnknownTaskError: the model has no task of that name.
        ValueError: the data does not fit the task, the run to resume has other settings or data,
            or it is to be both resumed and overwritten; or the directory is not one that all
            processes share.
        Diverged: the loss was not finite after the first epoch.
    """
    if resume and overwrite:
        raise ValueError("overwrite: expected either resume or overwrite, got both")
    config = config or TrainConfig()
    kept = model.task_config(name)
    found = {"task": task.kind, **{x: getattr(task, x) for x in ("labels", *task.prompt_fields)}}
    for field, got in found.items():
        if (expected := getattr(kept, field)) != got:
            raise ValueError(f"{field}: expected {expected}, got {got}")
    for part, examples in zip(("training", "validation"), data, strict=True):
        if not len(examples):
            raise ValueError(f"data: expected {part} examples, got none")
    output_dir = Path(output_dir).resolve()
    features = task.prepare(data[0]), task.prepare(data[1])
    references = task.references(data[1])
    run = describe_run(model, name, task, config, data, [data_sha256(part) for part in data])
    module = prepare_module(model, name, config)
    lock = on_main(partial(open_run, output_dir, run, resume, overwrite))
    checkpoints = output_dir / CHECKPOINTS
    try:
        require_everywhere(
            (checkpoints / RUN_CONFIG).is_file(),
            f"output: expected a directory that all machines share, got {output_dir}",
        )
        metrics = fit(module, task, features, references, checkpoints, config, resume)
        metrics |= surroundings(model, name, task, references)
        on_main(partial(save_run, model, name, output_dir, run, metrics))
    finally:
        if lock is not None:
            os.close(lock)
    return metrics


def prepare_module(model: PromptModel, name: str, config: TrainConfig) -> TaskModel:
    """The module that `fit` trains: one task of the model, with the config's dropout,
    checkpointing and compilation."""
    module = model.for_task(name, config.backbone_dropout)
    if config.checkpointing == "none":
        module.activation_checkpointing_disable()  # of a run before
    else:
        module.activation_checkpointing_enable(keep_attention=config.checkpointing == "selective")
    if config.compile:
        module.compile()
    return module


def fit(
    module: nn.Module,
    task: Task,
    features: tuple[Dataset, Dataset],
    references: Sequence[Any],
    output_dir: Path,
    config: TrainConfig,
    resume: bool = False,
) -> dict[str, Any]:
    """Train the parameters of a module that require a gradient, and leave its best epoch in it.

    The module returns a transformers output with loss and logits. Checkpoints go to
    `output_dir`, one an epoch; the best and the last are kept.

    Args:
        features: of training and validation examples, from `task.prepare`.
        references: of the validation examples, from `task.references`.

    Returns:
        `best`, the epoch with the best `task.best_metric`; `history`, every epoch's mean
        training loss and validation scores; `steps` in all; `diverged_at_step`, mostly None;
        `train_seconds`.

    Raises:
        Diverged: the loss was not finite after the first epoch; after a later one the training
            ends, and the epochs before it count.
    """
    arguments = _arguments(task, output_dir, config)
    module.to(arguments.device)  # before the optimizer takes its parameters
    trainer = PromptTrainer(
        module,
        task,
        arguments,
        *features,
        references,
        make_optimizer(module, config),
        config.scheduler,
        packing=config.packing,
        token_budget=config.token_budget,
        save_steps=config.save_steps,
    )
    start = time.perf_counter()
    last = newest(output_dir) if resume else None
    diverged = None
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    except Diverged as error:
        if trainer.state.best_global_step is None:
            raise
        diverged = trainer.state.global_step
        if is_main():
            logger.warning("%s; the epochs before it count", error)
    trainer.load_best()
    history = _history(trainer.state.log_history)
    return {
        "best": max(history, key=lambda epoch: epoch[task.best_metric]),
        "history": history,
        "steps": trainer.state.global_step,
        "diverged_at_step": diverged,
        "train_seconds": round(time.perf_counter() - start, 1),
    }


def _arguments(task: Task, output_dir: Path, config: TrainConfig) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=4 * config.batch_size,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_ratio,  # below 1: a share of all steps
        max_grad_norm=config.max_grad_norm,
        use_cpu=not torch.accelerator.is_available(),  # else it takes bf16 for a GPU's
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        ddp_find_unused_parameters=False,  # prompt and head have a gradient in every step
        seed=config.seed,
        accelerator_config={"even_batches": False},  # a batch's size may vary
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,  # a loss that is not finite is shown
        metric_for_best_model=task.best_metric,
        greater_is_better=True,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a process for each GPU, never DataParallel
    return arguments


def make_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; the head may have a learning rate of its own, and biases do not decay."""
    of_head = config.head_learning_rate
    rates = {
        False: config.learning_rate,
        True: config.learning_rate if of_head is None else of_head,
    }
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            key = (name.startswith("head."), parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": rates[of_head],
                "weight_decay": config.weight_decay if is_matrix else 0.0,
            }
            for (of_head, is_matrix), parameters in groups.items()
        ],
        fused=True,
    )


def _history(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every epoch's scores, with the mean loss of its steps, which may be logged in parts."""
    history, losses, done = [], [], 0
    for entry in log:
        if "loss" in entry:
            losses.append((entry["loss"], entry["step"] - done))
            done = entry["step"]
        elif "eval_loss" in entry:
            mean = sum(loss * steps for loss, steps in losses) / sum(n for _, n in losses)
            scores = {k.removeprefix("eval_"): v for k, v in entry.items() if "eval_" in k}
            history.append({"epoch": entry["epoch"], "train_loss": mean, **scores})
            losses = []
    return history


def evaluate(predictor: Predictor, name: str, task: Task, data: Dataset) -> dict[str, Any]:
    """Score a task of the predictor's model on labelled examples.

    Returns:
        The scores, `majority` (the scores of always giving the commonest answer) and
        `examples`.

    Raises:
        ValueError: a column is missing, a label is unknown, or there is no example.
    """
    if not len(data):
        raise ValueError("data: expected at least one example, got none")
    features = task.prepare(data, labelled=False)
    references = task.references(data)
    answers = predictor.answer({name: task}, [(name, feature) for feature in features])
    return {
        **task.score(answers, references),
        "majority": task.majority(references),
        "examples": len(answers),
    }

"""Training and evaluation of a prompt, on the unchanged transformers `Trainer`.

A run's directory holds the saved prompt, `run_config.json` and `metrics.json`, written when
the run is done, and `checkpoints/`, from which a run that was stopped goes on.
"""

import json
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import SchedulerType, TrainingArguments

from .assets import CARD, is_asset
from .model import PromptModel
from .predictor import Predictor
from .tasks import Task
from .trainer import PromptTrainer

CHECKPOINTS, RUN_CONFIG, METRICS = "checkpoints", "run_config.json", "metrics.json"


@dataclass(frozen=True)
class TrainConfig:
    """How a prompt is trained; the defaults were chosen by measurement (docs/defaults.md).

    Args:
        learning_rate: peak of the schedule.
        head_learning_rate: the head's own peak. None: the same.
        epochs: passes over the training data.
        batch_size: examples a step, unless there is a token budget.
        token_budget: tokens a step at most, instead of a number of examples.
        packing: lay the examples of a batch one after another, without a padding token.
        warmup_ratio: share of the steps over which the learning rate rises.
        scheduler: name of a transformers schedule, such as "linear" or "cosine".
        weight_decay: of AdamW, for everything but biases.
        max_grad_norm: the gradient is scaled down to this norm.
        precision: "fp32", "bf16" or "fp16", by autocast.
        seed: of dropout and of the order of the examples.
        backbone_dropout: the frozen backbone's own dropout, while the prompt and head train.

    Raises:
        ValueError: a field has a value outside of its range.
    """

    learning_rate: float = 2e-2
    head_learning_rate: float | None = None
    epochs: int = 8
    batch_size: int = 32
    token_budget: int | None = None
    packing: bool = False
    warmup_ratio: float = 0.06
    scheduler: str = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "fp32"
    seed: int = 0
    backbone_dropout: bool = True

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epochs", "batch_size", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.token_budget is not None and self.token_budget < 1:
            raise ValueError(f"token_budget: expected a positive number, got {self.token_budget}")
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"warmup_ratio: expected a value in [0, 1), got {self.warmup_ratio}")
        if self.scheduler not in list(SchedulerType):
            names = ", ".join(SchedulerType)
            raise ValueError(f"scheduler: expected one of {names}, got {self.scheduler!r}")
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise ValueError(f"precision: expected fp32, bf16 or fp16, got {self.precision!r}")


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
        task: how the data is read; its labels are the task's.
        data: training and validation examples.
        output_dir: the run's directory.
        resume: go on from the last checkpoint there, to bitwise the same end as without a stop.
        overwrite: replace the run that is there; it is kept until the new one is done.

    Returns:
        What `metrics.json` holds: `best`, `majority`, `history`, seconds, versions.

    Raises:
        FileExistsError: the directory is not empty, and neither resume nor overwrite is given.
        FileNotFoundError: there is no run to resume.
        ValueError: the data does not fit the task, or the run to resume has other settings.
    """
    config = config or TrainConfig()
    if model.tasks[name].labels != task.labels:
        raise ValueError(f"labels: expected {model.tasks[name].labels}, got {task.labels}")
    output_dir = Path(output_dir).resolve()
    features = task.prepare(data[0]), task.prepare(data[1])
    references = task.references(data[1])
    run = {
        "name": name,
        "backbone": model.identity.describe(),
        "task": task.settings(),
        "prompt": model.tasks[name].to_dict(),
        "train": asdict(config),
        "examples": {"train": len(data[0]), "validation": len(data[1])},
    }
    checkpoints = output_dir / CHECKPOINTS
    open_run(output_dir, run, resume, overwrite)

    module = model.for_task(name, backbone_dropout=config.backbone_dropout)
    metrics = fit(module, task, features, references, checkpoints, config, resume)
    metrics |= {
        "majority": task.majority(references),
        "trained_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "environment": environment(),
    }
    model.save_task(name, output_dir)
    write_json(output_dir / RUN_CONFIG, run)
    write_json(output_dir / METRICS, metrics)
    return metrics


def open_run(output_dir: Path, run: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Make the run's directory, or check that it may be continued or replaced."""
    started = output_dir / CHECKPOINTS / RUN_CONFIG
    if resume:
        if not started.is_file():
            raise FileNotFoundError(f"resume: there is no run in {output_dir}")
        _check_same_run(json.loads(started.read_text()), json.loads(json.dumps(run)))
        return
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        if not overwrite:
            hint = "resume it or overwrite it" if started.is_file() else "overwrite it"
            raise FileExistsError(f"output: {output_dir} is not empty; choose another, or {hint}")
        for name, ours in ((CHECKPOINTS, started.is_file()), (CARD, is_asset(output_dir))):
            if (output_dir / name).exists() and not ours:
                raise FileExistsError(f"output: {output_dir} has a {name} that is not of a run")
        shutil.rmtree(output_dir / CHECKPOINTS, ignore_errors=True)
    started.parent.mkdir(parents=True)
    write_json(started, run)


def _check_same_run(before: dict[str, Any], now: dict[str, Any], path: str = "") -> None:
    for key in before | now:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            _check_same_run(old, new, f"{path}{key}.")
        elif old != new:
            raise ValueError(f"resume: the run was started with {path}{key} = {old}, got {new}")


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
        training loss and validation scores; `train_seconds`.
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
        packing=config.packing,
        token_budget=config.token_budget,
    )
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=_last_checkpoint(output_dir) if resume else None)
    history = _history(trainer.state.log_history)
    return {
        "best": max(history, key=lambda epoch: epoch[task.best_metric]),
        "history": history,
        "train_seconds": round(time.perf_counter() - start, 1),
    }


def _arguments(task: Task, output_dir: Path, config: TrainConfig) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=4 * config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.scheduler,
        warmup_steps=config.warmup_ratio,  # below 1: a share of all steps
        max_grad_norm=config.max_grad_norm,
        use_cpu=not torch.accelerator.is_available(),  # else it takes bf16 for a GPU's
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        seed=config.seed,
        accelerator_config={"even_batches": False},  # a batch's size may vary
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=task.best_metric,
        greater_is_better=True,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
    )


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


def _last_checkpoint(directory: Path) -> str | None:
    """The newest checkpoint that is complete: the Trainer writes its state last."""
    complete = [state.parent for state in directory.glob("checkpoint-*/trainer_state.json")]
    newest = max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return None if newest is None else str(newest)


def _history(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    losses = {entry["epoch"]: entry["loss"] for entry in log if "loss" in entry}
    return [
        {"epoch": entry["epoch"], "train_loss": losses.get(entry["epoch"])}
        | {name.removeprefix("eval_"): value for name, value in entry.items() if "eval_" in name}
        for entry in log
        if "eval_loss" in entry
    ]


def evaluate(predictor: Predictor, name: str, task: Task, data: Dataset) -> dict[str, Any]:
    """Score a task of the predictor's model on labelled examples.

    Returns:
        The scores, `majority` (the scores of always giving the commonest answer) and
        `examples`.

    Raises:
        ValueError: a column is missing, or a label is unknown.
    """
    features = task.prepare(data, labelled=False)
    references = task.references(data)
    answers = predictor.answer({name: task}, [(name, feature) for feature in features])
    return {
        **task.score(answers, references),
        "majority": task.majority(references),
        "examples": len(answers),
    }


def environment() -> dict[str, Any]:
    """What a result depends on beside its settings."""
    from . import __version__

    return {
        "ptv2": __version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "datasets")},
    }


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as `write_text` does."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: the old content stays until the new one is whole."""
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)

"""Short runs of training on the tiny encoder."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, set_seed

from ptv2 import PromptConfig, PromptModel
from ptv2.predictor import Predictor
from ptv2.tasks import make_task
from ptv2.train_config import TrainConfig
from tests.encoder import examples

CONFIG = TrainConfig(learning_rate=3e-2, epochs=3, batch_size=8)
DATA = Dataset.from_list(examples(48)), Dataset.from_list(examples(24, seed=1))


def new(encoder: Path, kind: str = "sequence-classification", **columns: Any) -> tuple:
    """A predictor with a fresh task "t", and its reader."""
    predictor = Predictor(PromptModel.from_pretrained(encoder))
    task = make_task(kind, predictor.tokenizer, **columns).fit_labels(*DATA)
    set_seed(0)
    predictor.model.add_task(
        "t", PromptConfig.from_dict({"task": kind, "labels": task.labels, "prompt_length": 4})
    )
    return predictor, task


def weights(predictor: Predictor) -> dict[str, torch.Tensor]:
    return predictor.model.state_dict()


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("checkpoint-*"))


def stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Let the Trainer die before a step, as a kill would."""
    training_step, taken = Trainer.training_step, itertools.count()

    def dying_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        if next(taken) == step:
            raise KeyboardInterrupt
        return training_step(*args, **kwargs)

    patch.setattr(Trainer, "training_step", dying_step)

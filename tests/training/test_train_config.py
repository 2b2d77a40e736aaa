"""How a prompt is trained: what the settings do, and their ranges."""

from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptv2.train_config import TrainConfig
from ptv2.training import train
from tests.training.runs import DATA, new, weights


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rate", 0, "learning_rate: expected a finite number above 0, got 0"),
        ("learning_rate", inf, "learning_rate: expected a finite number above 0, got inf"),
        ("learning_rate", "1", "learning_rate: expected a finite number above 0, got '1'"),
        ("learning_rate", None, "learning_rate: expected a finite number above 0, got None"),
        ("head_learning_rate", -1, "head_learning_rate: expected a finite number above 0, got -1"),
        ("max_grad_norm", nan, "max_grad_norm: expected a finite number above 0, got nan"),
        ("max_grad_norm", True, "max_grad_norm: expected a finite number above 0, got True"),
        ("weight_decay", -1, "weight_decay: expected a finite number >= 0, got -1"),
        ("weight_decay", nan, "weight_decay: expected a finite number >= 0, got nan"),
        ("warmup_ratio", 1.0, r"warmup_ratio: expected a number in \[0, 1\), got 1.0"),
        ("warmup_ratio", False, r"warmup_ratio: expected a number in \[0, 1\), got False"),
        ("epochs", -1, "epochs: expected an int of at least 1, got -1"),
        ("epochs", 2.5, "epochs: expected an int of at least 1, got 2.5"),
        ("epochs", True, "epochs: expected an int of at least 1, got True"),
        ("epochs", None, "epochs: expected an int of at least 1, got None"),
        ("batch_size", 2.5, "batch_size: expected an int of at least 1, got 2.5"),
        ("batch_size", np.int64(2), r"batch_size: expected an int of at least 1, got np.int64\(2"),
        ("token_budget", 0, "token_budget: expected an int of at least 1, got 0"),
        ("save_steps", "7", "save_steps: expected an int of at least 1, got '7'"),
        ("seed", 1.5, r"seed: expected an int in \[0, 2\*\*32\), got 1.5"),
        ("seed", -1, r"seed: expected an int in \[0, 2\*\*32\), got -1"),
        ("seed", 2**32, r"seed: expected an int in \[0, 2\*\*32\), got 4294967296"),
        ("packing", "no", "packing: expected True or False, got 'no'"),
        ("backbone_dropout", 1, "backbone_dropout: expected True or False, got 1"),
        ("compile", None, "compile: expected True or False, got None"),
        (
            "checkpointing",
            "all",
            "checkpointing: expected one of none, layers, selective, got 'al",
        ),
        ("precision", "int8", "precision: expected one of fp32, bf16, fp16, got 'int8'"),
        *(
            ("scheduler", name, "scheduler: expected one of linear, .*, exponential, got ")
            for name in (
                "reduce_lr_on_plateau",
                "greedy",
                "warmup_stable_decay",
                "cosine_with_min_lr",
                "cosine_warmup_with_min_lr",
                None,
            )
        ),
    ],
)
def test_config_errors(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{field: value})


def test_a_constant_rate_has_no_warmup() -> None:
    for ratio in (0, 0.0, TrainConfig.warmup_ratio):
        TrainConfig(scheduler="constant", warmup_ratio=ratio)
    message = "warmup_ratio: .* has no warm-up, expected 0 or 'constant_with_warmup', got 0.5"
    with pytest.raises(ValueError, match=message):
        TrainConfig(scheduler="constant", warmup_ratio=0.5)


def test_a_token_budget_takes_the_batch_sizes_place() -> None:
    assert TrainConfig(token_budget=100, batch_size=32).token_budget == 100
    message = "batch_size: a token budget takes its place, expected no other than 32, got 8"
    with pytest.raises(ValueError, match=message):
        TrainConfig(token_budget=100, batch_size=8)


def test_the_largest_seed_trains(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    config = TrainConfig(seed=2**32 - 1, epochs=1, batch_size=24)
    assert train(predictor.model, "t", task, DATA, tmp_path / "run", config)["steps"] == 2


def test_a_run_of_one_step_trains(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    before = {name: x.clone() for name, x in weights(predictor).items()}
    config = TrainConfig(epochs=1, batch_size=48)
    assert train(predictor.model, "t", task, DATA, tmp_path / "run", config)["steps"] == 1
    assert not any(torch.equal(x, before[name]) for name, x in weights(predictor).items())


def test_the_head_may_have_its_own_learning_rate(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    before = {name: x.clone() for name, x in predictor.model.state_dict().items()}
    config = TrainConfig(learning_rate=1e-2, head_learning_rate=1e-12, epochs=1)
    train(predictor.model, "t", task, DATA, tmp_path / "run", config)
    moved = {
        name: (x - before[name]).abs().max() > 1e-6
        for name, x in predictor.model.state_dict().items()
    }
    assert {name.split(".")[0]: bool(value) for name, value in moved.items()} == {
        "prompts": True,
        "heads": False,
    }

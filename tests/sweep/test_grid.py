"""Grids of settings."""

from math import nan
from typing import Any

import pytest

from ptv2 import PromptConfig
from ptv2.sweep import grid
from ptv2.train_config import TrainConfig


def test_grids() -> None:
    prompt = PromptConfig(task="sequence-classification", labels=("a", "b"))
    found = grid(
        prompt,
        TrainConfig(),
        learning_rate=(0.02, 0.015, 1.0),
        prompt_length=(0, 32),
        seed=[0],
    )
    assert list(found) == [
        "lr2e-2-len0-seed0",
        "lr2e-2-len32-seed0",
        "lr15e-3-len0-seed0",
        "lr15e-3-len32-seed0",
        "lr1-len0-seed0",
        "lr1-len32-seed0",
    ]
    assert found["lr15e-3-len32-seed0"] == (prompt, TrainConfig(learning_rate=0.015))
    others = grid(
        prompt, TrainConfig(), layers=(None, (0, 11)), scheduler=("cosine",), packing=(True,)
    )
    assert list(others) == [
        "layers-none-scheduler-cosine-packing-true",
        "layers-0-11-scheduler-cosine-packing-true",
    ]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, "axes: expected at least one setting"),
        ({"rate": (1, 2)}, "axes: expected some of .*backbone_dropout, .* got 'rate'"),
        ({"labels": (("a",),)}, "axes: expected some of .* got 'labels'"),
        ({"seed": ()}, r"seed: expected a list of distinct values, got \(\)"),
        ({"seed": (1, 1)}, r"seed: expected a list of distinct values, got \(1, 1\)"),
        ({"scheduler": "linear"}, "scheduler: expected a list of distinct values, got 'linear'"),
        ({"epochs": (1, 0)}, "epochs: expected an int of at least 1, got 0"),
        (
            {"learning_rate": (nan, 1e-2)},
            "learning_rate: expected a finite number above 0, got nan",
        ),
        ({"weight_decay": (0.1, -0.1)}, "weight_decay: expected a finite number >= 0, got -0.1"),
        ({"layers": ([0], (0,))}, "axes: expected values that differ, got 'layers-0' twice"),
    ],
)
def test_grids_that_are_none(axes: dict[str, Any], message: str) -> None:
    prompt = PromptConfig(task="sequence-classification", labels=("a", "b"))
    with pytest.raises(ValueError, match=message):
        grid(prompt, TrainConfig(), **axes)

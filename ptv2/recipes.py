"""Named settings of `ptv2 train`: the hyper-parameters of the official P-Tuning v2 code."""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

_COMMON = {
    "max_length": 128,
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "init_std": 0.02,
    "network_size": 512,
}
"""What the official scripts leave to defaults, theirs or those of their transformers."""
_BY_TASK: dict[str, dict[str, Any]] = {
    "sequence-classification": {"scheduler": "linear", "pooling": "first"},
    "multiple-choice": {"scheduler": "linear", "pooling": "first"},
    "token-classification": {"scheduler": "exponential"},
    "question-answering": {"scheduler": "exponential", "stride": 128},
}
_DROPOUT = 0.1
"""Of the prompt and before the head."""


@cache
def recipe_names() -> tuple[str, ...]:
    """The recipes there are."""
    return tuple(_read())


def recipe(name: str) -> dict[str, Any]:
    """Options of `ptv2 train` by their names.

    Raises:
        ValueError: there is no such recipe.
    """
    recipes = _read()
    if name not in recipes:
        raise ValueError(f"recipe: expected one of {', '.join(recipes)}, got {name!r}")
    own = dict(recipes[name])
    dropout = own.pop("dropout", _DROPOUT)
    of_task = _BY_TASK[own["task"]]
    return {**_COMMON, **of_task, "prompt_dropout": dropout, "head_dropout": dropout, **own}


@cache
def _read() -> dict[str, dict[str, Any]]:
    return tomllib.loads((files("ptv2") / "data" / "recipes.toml").read_text(encoding="utf-8"))

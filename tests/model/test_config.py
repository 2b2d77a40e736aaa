"""PromptConfig: what it accepts."""

import numpy as np
import pytest

from ptv2 import PromptConfig
from tests.model.configs import CLASSIFY

BAD_CONFIGS = {
    "task": dict(task="summarize"),
    "labels": dict(labels=()),
    "distinct": dict(labels=("a", "a")),
    "strings": dict(labels=(0, 1)),
    "parametrization": dict(parametrization="lora"),
    "injection": dict(injection="input"),
    "pooling": dict(pooling="max"),
    "prompt_length": dict(prompt_length=-1),
    "init_std": dict(init_std=float("nan")),
    "prompt_dropout": dict(prompt_dropout=1.0),
    "head_dropout": dict(head_dropout=-0.1),
    "layers": dict(layers=(2, 1)),
    "network_size": dict(network_size=0),
    "multi_label": dict(multi_label="yes"),
    "no_answer": dict(no_answer=True),
}


@pytest.mark.parametrize("field", BAD_CONFIGS)
def test_bad_config(field):
    with pytest.raises(ValueError, match="expected"):
        PromptConfig(**CLASSIFY.to_dict() | BAD_CONFIGS[field])


def test_config_round_trips():
    assert PromptConfig.from_dict(CLASSIFY.to_dict()) == CLASSIFY
    with pytest.raises(ValueError, match="unknown fields"):
        PromptConfig.from_dict(CLASSIFY.to_dict() | {"new": 1})


def test_ambiguous_config_values():
    with pytest.raises(ValueError, match="labels: expected a tuple"):
        PromptConfig(task="sequence-classification", labels="score")
    with pytest.raises(ValueError, match="layers: expected ascending"):
        PromptConfig(task="feature-extraction", layers=(0.5,))
    with pytest.raises(ValueError, match="prompt_length: expected an int"):
        PromptConfig(task="feature-extraction", prompt_length=2.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("init_std", "1"), ("prompt_dropout", None), ("head_dropout", True), ("layers", 3),
     ("labels", None), ("labels", {"a", "b"})],
)  # fmt: skip
def test_types_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field}: expected a .*, got "):
        PromptConfig(**{"task": "sequence-classification", "labels": ("a", "b")} | {field: value})


def test_what_else_counts_as_a_number_or_a_list():
    values = {"init_std": np.float64(0.5), "layers": range(2), "labels": ["a", "b"]}
    config = PromptConfig("sequence-classification", **values)
    assert (config.init_std, config.layers, config.labels) == (0.5, (0, 1), ("a", "b"))

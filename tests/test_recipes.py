"""The official hyper-parameters."""

import inspect
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from ptv2 import PromptConfig
from ptv2.cli import app, train
from ptv2.recipes import recipe, recipe_names
from ptv2.tasks import TASKS
from ptv2.train_config import TrainConfig


@pytest.mark.parametrize("name", recipe_names())
def test_every_setting_is_an_option_and_in_its_range(name):
    settings = recipe(name)
    options = inspect.signature(train).parameters
    assert set(settings) <= set(options)
    of_train = {key: x for key, x in settings.items() if hasattr(TrainConfig, key)}
    TrainConfig(**of_train)
    labels = ("a", "b") if settings["task"].endswith("classification") else ()
    of_prompt = {key: x for key, x in settings.items() if hasattr(PromptConfig, key)}
    PromptConfig(**of_prompt | {"task": settings["task"], "labels": labels})
    of_task = {"task", "backbone", "max_length", "stride"}
    assert set(settings) == {*of_train, *of_prompt, *of_task} & set(settings)
    assert settings["task"] in TASKS


def test_values_of_the_official_scripts():
    """run_script/run_rte_roberta.sh and run_squad_v2_roberta.sh."""
    rte, squad = recipe("rte-roberta-large"), recipe("squad2-roberta-large")
    assert (rte["batch_size"], rte["learning_rate"], rte["epochs"]) == (32, 5e-3, 100)
    assert (rte["prompt_length"], rte["max_length"], rte["scheduler"]) == (128, 128, "linear")
    assert (squad["prompt_length"], squad["max_length"], squad["stride"]) == (8, 384, 128)
    assert (squad["prompt_dropout"], squad["scheduler"]) == (0.2, "exponential")


def test_classifiers_see_the_first_token_and_the_command_takes_it(seen, minilm_path, tmp_path):
    assert {recipe(name)["pooling"] for name in recipe_names() if "pooling" in recipe(name)} == {
        "first"
    }
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "a", "choices": ["b", "c"], "label": 0}\n' * 2)
    command = ["train", "--recipe", "copa-bert-large", "--backbone", str(minilm_path)]
    command += ["--train", str(data), "--validation", str(data), "--output", str(tmp_path / "x")]
    assert CliRunner().invoke(app, command).stderr.endswith("error: far enough\n")
    assert (seen.prompt["task"], seen.prompt["pooling"]) == ("multiple-choice", "first")


@pytest.fixture
def seen(monkeypatch):
    """The settings that a command would train with."""
    found = SimpleNamespace(train=None, prompt=None)

    def stop(config):
        found.prompt = config
        raise ValueError("far enough")

    def note(self):
        found.train = self

    monkeypatch.setattr(PromptConfig, "from_dict", stop)
    monkeypatch.setattr(TrainConfig, "__post_init__", note)
    return found


def test_a_recipe_sets_what_is_not_given(seen, minilm_path, tmp_path):
    data = tmp_path / "data.csv"
    data.write_text("text,label\nfine,good\nbad,bad\n")
    command = ["train", "--recipe", "rte-roberta-large", "--backbone", str(minilm_path)]
    command += ["--train", str(data), "--validation", str(data), "--output", str(tmp_path / "x")]
    result = CliRunner().invoke(app, [*command, "--epochs", "3"])
    assert result.stderr.endswith("error: far enough\n")
    assert seen.train.epochs == 3
    assert (seen.train.learning_rate, seen.train.warmup_ratio, seen.train.seed) == (5e-3, 0.0, 11)
    assert (seen.prompt["prompt_length"], seen.prompt["init_std"]) == (128, 0.02)
    assert (seen.prompt["pooling"], seen.prompt["prompt_dropout"]) == ("first", 0.1)


def test_an_unknown_recipe_is_named():
    result = CliRunner().invoke(app, ["train", "--recipe", "rte"])
    assert result.exit_code == 2
    assert "rte-roberta-large" in result.stderr

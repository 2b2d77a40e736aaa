"""The quality benchmark: all methods, results at once, and only what is missing."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from ptv2 import PromptConfig
from ptv2.tasks import SequenceClassification
from ptv2.train_config import TrainConfig
from tests.encoder import examples, save_encoder, write_jsonl

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench_quality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, with a tiny encoder."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench_quality
    import quality_models

    encoder = save_encoder(tmp_path / "encoder")
    for module in (bench_quality, quality_models):
        monkeypatch.setattr(module, "encoder_directory", lambda: encoder)
    return bench_quality


def test_runs_are_written_at_once_and_not_repeated(
    bench_quality: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, output = tmp_path / "snips", tmp_path / "results.json"
    data.mkdir()
    write_jsonl(data / "train.jsonl", examples(16))
    write_jsonl(data / "dev.jsonl", examples(8))

    def bench(*seeds: str) -> list[dict]:
        options = ["--data", str(tmp_path), "--output", str(output), "--set", '{"epochs": 1}']
        options += ["--tasks", "snips-intent", "snips-slots", "--seeds", *seeds]
        options += ["--methods", "prompt", "fine-tuning"]
        monkeypatch.setattr("sys.argv", ["bench_quality", *options])
        bench_quality.main()
        return json.loads(output.read_text())

    first = bench("0")
    assert [(run["task"], run["method"]) for run in first] == [
        ("snips-intent", "prompt"),
        ("snips-intent", "fine-tuning"),
        ("snips-slots", "prompt"),
        ("snips-slots", "fine-tuning"),
    ]
    assert first[0]["trained_parameters"] < first[1]["trained_parameters"]
    assert [run["train"]["precision"] for run in first] == ["bf16", "fp32"] * 2
    assert {run["train"]["epochs"] for run in first} == {1}
    assert all({"commit", "torch", "cpu"} <= run["environment"].keys() for run in first)
    again = bench("0", "1")
    assert again[:4] == first
    assert [run["seed"] for run in again[4:]] == [1] * 4
    assert "± " in capsys.readouterr().out


def test_published_runs_have_the_settings_of_the_script(bench_quality: Any) -> None:
    """So that the plain command gives them again; a search's are recorded with it."""
    runs = json.loads((BENCHMARKS / "results" / "quality.json").read_text())
    for run in (run for run in runs if "refused" not in run):
        problem, method = bench_quality.PROBLEMS[run["task"]], run["method"]
        config = asdict(bench_quality.METHODS[method][1])
        config |= {"epochs": problem.epochs.get(method, problem.epochs["prompt"])}
        config |= problem.settings.get(method, {})
        length = problem.prompt_length
        if method == "peft":
            best = max(run["search"], key=lambda found: found["score"])
            config["learning_rate"], length = best["learning_rate"], best["prompt_length"]
        for name in ("epochs", "learning_rate", "weight_decay", "precision", "packing"):
            assert run["train"].get(name, config[name]) == config[name], (run["task"], name)
        assert method == "fine-tuning" or run["prompt"]["prompt_length"] == length


def test_a_prompt_is_trained_as_settings_say(
    bench_quality: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import quality_models

    config = PromptConfig("sequence-classification", ("a", "b"))
    for train in (TrainConfig(), TrainConfig(backbone_dropout=False, checkpointing="layers")):
        module = quality_models.prompted(SequenceClassification(None), config, train).train()
        assert module.backbone.training == train.backbone_dropout
        layer = module.backbone.encoder.layer[0]
        assert layer.gradient_checkpointing == (train.checkpointing == "layers")


def test_questions_and_choices_too(
    bench_quality: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "results.json"
    answers = {"text": ["rome"], "answer_start": [10]}
    rows = {
        "squadshifts_wiki": {"question": "a", "context": "a film in rome", "answers": answers},
        "codah": {"question": "a film", "choices": ["fine", "in", "dull"], "label": 1},
    }
    for folder, row in rows.items():
        (tmp_path / folder).mkdir()
        for part in ("train", "dev"):
            write_jsonl(tmp_path / folder / f"{part}.jsonl", [row] * 4)
    monkeypatch.setattr(bench_quality, "MAX_LENGTH", 32)
    options = ["--data", str(tmp_path), "--output", str(output), "--set", '{"epochs": 1}']
    options += ["--tasks", "squadshifts", "codah", "--seeds", "0"]
    options += ["--methods", "prompt", "fine-tuning"]
    monkeypatch.setattr("sys.argv", ["bench_quality", *options])
    bench_quality.main()
    runs = json.loads(output.read_text())
    assert [run["task"] for run in runs] == ["squadshifts"] * 2 + ["codah"] * 2
    assert all(0 <= run["score"] <= 1 for run in runs)


def test_what_peft_refuses_and_its_search_are_recorded(
    bench_quality: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a stand-in for PEFT that trains the head alone, and names as few tasks as PEFT does."""

    def get_peft_model(model: nn.Module, config: dict) -> nn.Module:
        if config["task_type"] is None:
            raise KeyError(None)
        model.base_model.requires_grad_(False)
        return model

    peft = SimpleNamespace(PrefixTuningConfig=dict, get_peft_model=get_peft_model)
    monkeypatch.setitem(sys.modules, "peft", peft)
    grid = {"learning_rate": (1e-3, 1e-2), "prompt_length": (2,)}
    monkeypatch.setattr(bench_quality, "SEARCH", grid)
    choice = {"question": "a film", "choices": ["fine", "dull"], "label": 1}
    for folder, rows in {"snips": examples(12), "codah": [choice] * 4}.items():
        (tmp_path / folder).mkdir()
        for part in ("train", "dev"):
            write_jsonl(tmp_path / folder / f"{part}.jsonl", rows)
    output = tmp_path / "results.json"

    def bench(*options: str) -> list[dict]:
        always = ("--data", str(tmp_path), "--output", str(output), "--tasks", "snips-intent")
        always += ("codah", "--methods", "peft", "--seeds", "0", "1")
        monkeypatch.setattr("sys.argv", ["bench_quality", *always, *options])
        bench_quality.main()
        return json.loads(output.read_text())

    settings = ("--set", '{"epochs": 1}', "--examples", "8")
    first, refused, second, _ = bench("--search", *settings)
    assert [found["learning_rate"] for found in first["search"]] == [1e-3, 1e-2]
    assert second["search"] == first["search"]
    best = max(first["search"], key=lambda found: found["score"])
    for run in (first, second):
        assert run["train"]["learning_rate"] == best["learning_rate"]
        assert run["prompt"]["prompt_length"] == 2
        assert run["examples"] == 8
        assert run["trained_parameters"] == 2 * 16 + 2
    assert refused["refused"] == "PEFT, multiple-choice: KeyError: None"
    assert capsys.readouterr().out.splitlines()[-1].split() == ["codah", "-", "-", "refused"]
    assert bench("--search", *settings) == [first, refused, second, _]
    for options, message in (
        (settings, "search True, expected False"),
        (("--search", *settings[:2]), "examples 8, expected None"),
        (("--search", "--set", '{"prompt_length": 3}'), "would overwrite prompt_length"),
        (("--set", '{"packing": true}'), "have no packing"),
        (("--set", '{"backbone_dropout": false}'), "have no backbone_dropout"),
        (("--set", '{"compile": true}'), "have no compile"),
    ):
        with pytest.raises(SystemExit):
            bench(*options)
        assert message in capsys.readouterr().err
    ours = bench("--search", *settings, "--methods", "prompt", "--tasks", "snips-intent")[4:]
    assert [run["method"] for run in ours] == ["prompt", "prompt"]
    assert ours[0]["search"] == ours[1]["search"]
    assert "snips-intent prompt search" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SystemExit):
        bench(*settings)
    assert "pip install peft" in capsys.readouterr().err


def test_a_plot_of_results(
    bench_quality: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib").use("agg")
    output, picture = tmp_path / "results.json", tmp_path / "plot.png"
    options = ["--data", str(tmp_path), "--output", str(output), "--plot", str(picture)]
    monkeypatch.setattr("sys.argv", ["bench_quality", *options])
    with pytest.raises(SystemExit):
        bench_quality.main()
    runs = [{"task": "sst2", "method": "prompt", "seed": i, "score": 0.5 + i / 9} for i in (0, 1)]
    output.write_text(json.dumps([*runs, {"task": "codah", "method": "peft", "refused": "no"}]))
    bench_quality.main()
    assert picture.read_bytes().startswith(b"\x89PNG")

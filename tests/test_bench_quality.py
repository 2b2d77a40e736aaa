"""The quality benchmark: both methods, results at once, and only what is missing."""

import json
from pathlib import Path

import pytest

from benchmarks import bench_quality
from tests.encoder import examples, save_encoder, write_jsonl


def test_runs_are_written_at_once_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, data, output = tmp_path / "encoder", tmp_path / "snips", tmp_path / "results.json"
    save_encoder(encoder)
    data.mkdir()
    write_jsonl(data / "train.jsonl", examples(16))
    write_jsonl(data / "dev.jsonl", examples(8))
    monkeypatch.setattr(bench_quality, "encoder_directory", lambda: encoder)

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
    assert all({"commit", "torch", "cpu"} <= run["environment"].keys() for run in first)
    again = bench("0", "1")
    assert again[:4] == first
    assert [run["seed"] for run in again[4:]] == [1] * 4
    assert "± " in capsys.readouterr().out


def test_questions_and_choices_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, output = tmp_path / "encoder", tmp_path / "results.json"
    save_encoder(encoder)
    answers = {"text": ["rome"], "answer_start": [10]}
    rows = {
        "squadshifts_wiki": {"question": "a", "context": "a film in rome", "answers": answers},
        "codah": {"question": "a film", "choices": ["fine", "in", "dull"], "label": 1},
    }
    for folder, row in rows.items():
        (tmp_path / folder).mkdir()
        for part in ("train", "dev"):
            write_jsonl(tmp_path / folder / f"{part}.jsonl", [row] * 4)
    monkeypatch.setattr(bench_quality, "encoder_directory", lambda: encoder)
    monkeypatch.setattr(bench_quality, "MAX_LENGTH", 32)
    options = ["--data", str(tmp_path), "--output", str(output), "--set", '{"epochs": 1}']
    options += ["--tasks", "squadshifts", "codah", "--seeds", "0", "--methods"]
    for methods in (("prompt", "fine-tuning"), ("peft",)):
        tasks = options if len(methods) > 1 else [x for x in options if x != "squadshifts"]
        monkeypatch.setattr("sys.argv", ["bench_quality", *tasks, *methods])
        bench_quality.main()
    runs = json.loads(output.read_text())
    assert [run["task"] for run in runs] == ["squadshifts"] * 2 + ["codah"] * 3
    assert all(0 <= run["score"] <= 1 for run in runs[:4])
    assert "PEFT has no task type for multiple-choice" in runs[4]["refused"]

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

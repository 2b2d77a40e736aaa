"""The demo from end to end, on the tiny encoder."""

from pathlib import Path

import pytest

from ptv2 import demo
from ptv2.tasks import TokenClassification
from tests.encoder import examples, save_encoder, write_jsonl


def test_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = save_encoder(tmp_path / "encoder")
    write_jsonl(tmp_path / "train.jsonl", examples(16))
    write_jsonl(tmp_path / "dev.jsonl", examples(8))
    monkeypatch.setattr(demo, "DATA", tmp_path)
    monkeypatch.setattr(demo, "EPOCHS", {"intent": 1, "slots": 1})
    monkeypatch.setattr(demo, "encoder_directory", lambda: encoder)
    demo.run(tmp_path / "out")
    shown = capsys.readouterr().out
    for expected in ("accuracy", "f1", "commonest answer", "kB on disk", "one forward"):
        assert expected in shown
    assert (tmp_path / "out" / "slots" / "prompt.safetensors").exists()


def test_the_data_and_the_encoder_are_there(minilm_path: Path) -> None:
    assert demo.encoder_directory() == minilm_path
    assert {path.name for path in demo.DATA.glob("*.jsonl")} == {"train.jsonl", "dev.jsonl"}


def test_entities() -> None:
    tags = ["O", "B-city", "I-city", "O", "I-city", None]
    reader = TokenClassification(None, ("B-city", "I-city", "O"))
    assert demo.entities(reader, "to new york or rome please", tags) == [
        ("city", "new york"),
        ("city", "rome"),
    ]

"""The directory of a sweep: what is replaced, resumed and started from."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ptv2.sweep import Run, sweep
from tests.sweep.runs import new, stop_at


def saved_in(directory: Path) -> set[str]:
    return {path.parent.name for path in directory.glob("*/prompt.safetensors")}


def test_what_an_older_sweep_has_left_goes(
    encoder: Path, tmp_path: Path, make: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep(new(encoder), [make("a", epochs=1), make("b", epochs=1, seed=1)], tmp_path)
    bad = make("a", epochs=1, learning_rate=1e38)
    table = sweep(new(encoder), [bad, make("c", epochs=1)], tmp_path, overwrite=True)
    assert table["runs"][0]["score"] is None
    assert saved_in(tmp_path) == {"c", "best"}

    runs = [make("short", epochs=1), make("long", epochs=2)]
    with monkeypatch.context() as patch:
        stop_at(6, patch)  # when the short run is done
        with pytest.raises(KeyboardInterrupt):
            sweep(new(encoder), runs, tmp_path, overwrite=True)
    assert "short" in saved_in(tmp_path)
    sweep(new(encoder), [make("d", epochs=1)], tmp_path, overwrite=True)
    assert saved_in(tmp_path) == {"d", "best"}

    (tmp_path / "sweep.json").write_text('{"rows": []}')
    before = (tmp_path / "d" / "metrics.json").read_bytes()
    with pytest.raises(
        FileExistsError, match=r"output: .*sweep\.json is not of a sweep, expected"
    ):
        sweep(new(encoder), [make("d", epochs=2)], tmp_path, overwrite=True)
    assert (tmp_path / "d" / "metrics.json").read_bytes() == before


def test_runs_in_another_order_are_not_resumed(
    encoder: Path, tmp_path: Path, make: Callable[..., Run]
) -> None:
    runs = [make("a", epochs=1), make("b", epochs=1, seed=1)]
    sweep(new(encoder), runs, tmp_path)
    with pytest.raises(ValueError, match=r"with order = \['a', 'b'\], got \['b', 'a'\]"):
        sweep(new(encoder), runs[::-1], tmp_path, resume=True)


def test_a_run_starts_from_a_folder_and_never_from_another_run(
    encoder: Path, tmp_path: Path, make: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = new(encoder)
    model.add_task("saved", make("mood").prompt)
    model.save_task("saved", "mood")
    runs = [make("mood", epochs=1), make("b", epochs=1, start_from="mood", learning_rate=1e-12)]
    sweep(model, runs, "sweep")
    torch.testing.assert_close(model.key_value("b"), model.key_value("saved"))
    run = json.loads(Path("sweep/b/run_config.json").read_text())
    assert run["start_from"] == str(tmp_path / "mood")
    shutil.rmtree("mood")
    with pytest.raises(FileNotFoundError, match="mood"):
        sweep(new(encoder), runs, "again")

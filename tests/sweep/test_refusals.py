"""What a sweep refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptv2.sweep import Run, sweep
from tests.sweep.runs import DATA, new


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "best"}, "name: expected a name of its own for every run, other than best"),
        ({"name": "a"}, "name: expected a name of its own .* got 'a'"),
        ({"name": "a/b"}, "name: expected letters, digits"),
        (
            {"labels": ("x", "y")},
            r"prompt: expected sequence-classification with the labels \('bad",
        ),
        ({"precision": "bf16"}, "precision: expected one value .* 'fp32' for 'a' and 'bf16' for"),
        ({"precision": "fp16"}, "precision: a sweep scales no losses, expected fp32 or bf16"),
        ({"backbone_dropout": True}, "backbone_dropout: expected one value for runs that train"),
        ({"compile": True}, "compile: a sweep's forward is not compiled"),
        ({"data": (DATA[0], DATA[1].select([]))}, "data: expected validation examples for 'b'"),
        (
            {"token_budget": 3, "batch_size": 32},
            "token_budget: expected at least the longest example's",
        ),
        ({"layers": (5,)}, "layers: expected numbers below 2"),
        ({"shared": "group", "epochs": 1}, "epochs: expected one value for runs that train"),
        (
            {"shared": "group", "prompt_length": 9},
            "share_prompt_with: expected a prompt with prom",
        ),
    ],
)
def test_what_is_refused_writes_nothing(
    encoder: Path,
    tmp_path: Path,
    make: Callable[..., Run],
    change: dict[str, Any],
    message: str,
) -> None:
    runs = [make("a", shared=change.get("shared")), make(**{"name": "b", **change})]
    model = new(encoder)
    with pytest.raises(ValueError, match=message):
        sweep(model, runs, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()
    assert model.tasks == {}


def test_other_refusals(encoder: Path, tmp_path: Path, make: Callable[..., Run]) -> None:
    model = new(encoder)
    with pytest.raises(ValueError, match="runs: expected at least one, got none"):
        sweep(model, [], tmp_path / "sweep")
    with pytest.raises(FileNotFoundError, match="resume: there is no run"):
        sweep(model, [make("a")], tmp_path / "sweep", resume=True)
    assert not (tmp_path / "sweep").exists()
    (tmp_path / "mine" / "a").mkdir(parents=True)
    (tmp_path / "mine" / "a" / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match="a is not a saved prompt"):
        sweep(model, [make("a")], tmp_path / "mine", overwrite=True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["a"]


def test_a_sweep_is_one_process(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Run]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(NotImplementedError, match="sweep: expected one process, got several"):
        sweep(new(encoder), [make("a")], tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()

"""What a sweep prepares and writes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from matplotlib.figure import Figure

from ptv2.sweep import Run, grid, sweep
from tests.sweep.runs import DATA, metrics_of, new


def test_what_is_written(encoder: Path, tmp_path: Path, make: Callable[..., Run]) -> None:
    base = make("base", epochs=1)
    settings = grid(base.prompt, base.train, learning_rate=(1e-3, 3e-2), prompt_length=(0, 3))
    runs = [Run(name, base.task, DATA, *chosen) for name, chosen in settings.items()]
    table = sweep(new(encoder), runs, tmp_path)
    assert [row["name"] for row in table["runs"]] == list(settings)
    assert table["runs"][1]["settings"] == {"prompt_length": 3, "learning_rate": 1e-3}
    assert table["runs"][1]["history"] == metrics_of(tmp_path / "lr1e-3-len3")["history"]
    (best,) = table["best"]
    assert (
        max(row["score"] for row in table["runs"])
        == metrics_of(tmp_path / best)["best"]["accuracy"]
    )
    fresh = new(encoder)
    assert fresh.load_task(tmp_path / "best") == best
    assert metrics_of(tmp_path / "best") == metrics_of(tmp_path / best)

    with pytest.raises(FileExistsError, match="resume it or overwrite it"):
        sweep(new(encoder), runs, tmp_path)
    with pytest.raises(ValueError, match="resume: the run was started with order"):
        sweep(new(encoder), runs[:2], tmp_path, resume=True)
    turned = DATA[0], DATA[1].select(range(len(DATA[1]) - 1, -1, -1))
    changed = [*runs[:-1], replace(runs[-1], data=turned)]
    message = rf"runs\.{runs[-1].name}\.data_sha256\.validation = \w+, got"
    with pytest.raises(ValueError, match=message):
        sweep(new(encoder), changed, tmp_path, resume=True)
    (tmp_path / "notes.txt").write_text("mine")
    other = make("tags", "tags", epochs=1)
    table = sweep(new(encoder), [runs[0], other], tmp_path, overwrite=True)
    assert table["best"] == [runs[0].name, "tags"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoints", "notes.txt", "sweep.json", runs[0].name, "tags",
    }  # fmt: skip


def test_features_of_the_same_data_are_prepared_once(
    encoder: Path, tmp_path: Path, make: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make("a", epochs=1), make("b", seed=1, epochs=1), make("c", "tags", epochs=1)]
    prepared = []
    for kind in {type(run.task) for run in runs}:

        def counted(self: Any, data: Dataset, *args: Any, prepare: Any = kind.prepare) -> Dataset:
            prepared.append((type(self).kind, len(data)))
            return prepare(self, data, *args)

        monkeypatch.setattr(kind, "prepare", counted)
    sweep(new(encoder), runs, tmp_path / "sweep")
    assert sorted(prepared) == [
        ("sequence-classification", 20),
        ("sequence-classification", 40),
        ("token-classification", 20),
        ("token-classification", 40),
    ]


def test_a_plot_needs_matplotlib(
    encoder: Path, tmp_path: Path, make: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptv2.sweep.plot.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"plot: matplotlib is not installed; pip install"):
        sweep(new(encoder), [make("a")], tmp_path / "sweep", plot=True)
    assert not (tmp_path / "sweep").exists()


def test_the_plot(
    encoder: Path, tmp_path: Path, make: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig

    def saved(self: Figure, *args: Any, **kwargs: Any) -> None:
        drawn.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", saved)
    runs = [make("a"), make("b", seed=1), make("tags", "tags")]
    table = sweep(new(encoder), runs, tmp_path / "sweep", plot=True)
    assert (tmp_path / "sweep" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    axes = drawn[0].axes
    assert [x.get_ylabel() for x in axes] == ["accuracy", "training loss", "f1", "training loss"]
    curves = {line.get_label(): line for axis in axes[::2] for line in axis.lines}
    for row in table["runs"]:
        scores = [epoch[row["metric"]] for epoch in row["history"]]
        assert curves[row["name"]].get_ydata().tolist() == scores

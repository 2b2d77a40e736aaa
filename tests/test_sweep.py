"""Many prompts at once: each as if alone, stopping and going on, what is written and refused."""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer, set_seed

from ptv2 import PromptConfig, PromptModel
from ptv2.sweep import Run, grid, sweep
from ptv2.sweep.learner import Learner
from ptv2.sweep.loop import Loop
from ptv2.tasks import make_task
from ptv2.train_config import TrainConfig
from ptv2.training import train
from tests.encoder import examples, save_encoder

TRAIN = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=8, backbone_dropout=False)
DROPOUT = {"head_dropout": 0.1, "prompt_dropout": 0.2}
KINDS = {
    "text": ("sequence-classification", {}),
    "pair": ("sequence-classification", {"text_pair_column": "text_pair", "label_column": "same"}),
    "tags": ("token-classification", {}),
    "answer": ("question-answering", {"stride": 2}),
    "choose": ("multiple-choice", {"label_column": "right"}),
}


def data_of(count: int, seed: int) -> Dataset:
    rows = examples(count, seed)
    for row in rows:
        city = row["tokens"][4]
        right = row["label"] == "good"
        row |= {
            "question": f"a {row['text_pair']} film",
            "context": row["text"],
            "answers": {"text": [city], "answer_start": [row["text"].index(city)]},
            "choices": [f"{row['text']} awful", f"{row['text']} great"],
            "right": int(right),
        }
    return Dataset.from_list(rows)


DATA = data_of(40, seed=0), data_of(20, seed=1)
SMALL = data_of(17, seed=2), DATA[1]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def tasks(encoder: Path) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    return {
        name: make_task(kind, tokenizer, max_length=20, **columns).fit_labels(*DATA)
        for name, (kind, columns) in KINDS.items()
    }


@pytest.fixture
def make(tasks: dict[str, Any]) -> Callable[..., Run]:
    """``make(name, kind, data, **settings)``: a run; settings of Run, prompt and training."""

    def run(
        name: str,
        kind: str = "text",
        data: tuple[Dataset, Dataset] = DATA,
        shared: str | None = None,
        start_from: Path | None = None,
        **settings: Any,
    ) -> Run:
        task = tasks[kind]
        own = {key: settings.pop(key) for key in list(settings) if hasattr(PromptConfig, key)}
        prompt = {"prompt_length": 4, "head_dropout": 0.0, "labels": task.labels, **own}
        prompt = PromptConfig(task=task.kind, **prompt)
        return Run(name, task, data, prompt, replace(TRAIN, **settings), shared, start_from)

    return run


def new(encoder: Path) -> PromptModel:
    return PromptModel.from_pretrained(encoder)


def values(model: PromptModel, name: str) -> dict[str, Tensor]:
    return model.for_task(name).state_dict()


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-5)


def metrics_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "metrics.json").read_text())


def train_alone(encoder: Path, run: Run, output: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    model = new(encoder)
    set_seed(run.train.seed)
    model.add_task(run.name, run.prompt)
    metrics = train(model, run.name, run.task, run.data, output, run.train)
    return metrics, values(model, run.name)


def test_each_run_learns_what_it_would_alone(
    encoder: Path, tmp_path: Path, make: Callable[..., Run]
) -> None:
    runs = [
        make("plain"),
        make("long", prompt_length=9, seed=3, scheduler="cosine", batch_size=5, epochs=3),
        make("pair", "pair", SMALL, injection="hidden-state", warmup_ratio=0.3, layers=(1,)),
        make("tags", "tags", parametrization="mlp", learning_rate=1e-3, weight_decay=0.1),
        make("answer", "answer", SMALL, head_learning_rate=1e-3, max_grad_norm=0.1),
        make("choose", "choose", token_budget=120, packing=True, seed=1),
        make("head", prompt_length=0, pooling="first"),
    ]
    model = new(encoder)
    table = sweep(model, runs, tmp_path / "sweep")
    rows = {row["name"]: row for row in table["runs"]}
    for run in runs:
        alone, expected = train_alone(encoder, run, tmp_path / run.name)
        got = values(model, run.name)
        if run.task.kind in ("question-answering", "multiple-choice"):
            # the softmax runs over tokens or choices, so this bias has no gradient but rounding
            del got["head.linear.bias"], expected["head.linear.bias"]
        assert_close(got, expected)
        metrics = metrics_of(tmp_path / "sweep" / run.name)
        assert metrics["best"]["epoch"] == alone["best"]["epoch"] == rows[run.name]["epoch"]
        assert metrics["trained_parameters"] == alone["trained_parameters"]
        assert metrics["majority"] == alone["majority"]
        for epoch, other in zip(metrics["history"], alone["history"], strict=True):
            assert epoch == pytest.approx(other, rel=0, abs=1e-5)
        config = json.loads((tmp_path / "sweep" / run.name / "run_config.json").read_text())
        of_alone = json.loads((tmp_path / run.name / "run_config.json").read_text())
        assert of_alone.items() <= config.items()
        fresh = new(encoder)
        fresh.load_task(tmp_path / "sweep" / run.name)
        assert torch.equal(fresh.key_value(run.name), model.key_value(run.name))


def break_run(name: str, step: int, patch: pytest.MonkeyPatch) -> None:
    """Put a NaN into a run's prompt before a step."""
    next_batch = Learner.next_batch

    def broken(self: Learner) -> Any:
        if self.step == step and name in self.batches:
            with torch.no_grad():
                self.parts["prompt"].embedding.view(-1)[0] = math.nan
        return next_batch(self)

    patch.setattr(Learner, "next_batch", broken)


@pytest.mark.parametrize("step", [2, 7], ids=["before its best epoch", "after it"])
def test_a_run_that_diverges_does_no_harm(
    encoder: Path,
    tmp_path: Path,
    make: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    runs = [make("a", seed=1), make("bad", prompt_length=7), make("tags", "tags", epochs=3)]
    expected = new(encoder)
    sweep(expected, [runs[0], runs[2]], tmp_path / "without")

    break_run("bad", step, monkeypatch)
    model = new(encoder)
    table = sweep(model, runs, tmp_path / "with")
    for name in ("a", "tags"):
        assert_close(values(model, name), values(expected, name))
    rows = {row["name"]: row for row in table["runs"]}
    assert {name: row["diverged_at_step"] for name, row in rows.items()} == {
        "a": None,
        "bad": step + 1,
        "tags": None,
    }
    assert json.loads((tmp_path / "with" / "sweep.json").read_text()) == table
    kept = step > 5  # an epoch has 5 steps
    assert (rows["bad"]["score"] is not None) == kept
    assert ("bad" in model.tasks) == kept
    assert (tmp_path / "with" / "bad" / "prompt.safetensors").exists() == kept
    assert not kept or torch.isfinite(model.key_value("bad")).all()


def test_a_rate_beyond_all_bounds_diverges(
    encoder: Path, tmp_path: Path, make: Callable[..., Run]
) -> None:
    model = new(encoder)
    table = sweep(model, [make("wild", learning_rate=1e38)], tmp_path / "sweep")
    assert table["best"] == []
    assert table["runs"][0]["diverged_at_step"] is not None
    assert model.tasks == {}
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"checkpoints", "sweep.json"}


def stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    taken = itertools.count()
    take = Loop._step

    def dying(self: Loop, learners: Sequence[Learner]) -> None:
        if next(taken) == step:
            raise KeyboardInterrupt
        take(self, learners)

    patch.setattr(Loop, "_step", dying)


@pytest.mark.parametrize("step", [2, 8, 12], ids=["no checkpoint yet", "mid-epoch", "one is done"])
def test_resuming_is_bitwise_the_same_as_not_stopping(
    encoder: Path,
    tmp_path: Path,
    make: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    noisy = {"backbone_dropout": True, "save_steps": 7, **DROPOUT}
    runs = [
        make("a", **noisy),
        make("tags", "tags", SMALL, epochs=5, **noisy),
        make("b", shared="both", seed=4, **noisy),
        make("pair", "pair", SMALL, shared="both", seed=4, **noisy),
    ]
    whole = new(encoder)
    expected = sweep(whole, runs, tmp_path / "whole")

    stopped = new(encoder)
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            sweep(stopped, runs, tmp_path / "run")
    assert not stopped.tasks
    assert not (tmp_path / "run" / "sweep.json").exists()

    table = sweep(stopped, runs, tmp_path / "run", resume=True)
    assert table["runs"] == expected["runs"]
    assert table["best"] == expected["best"]
    for run in runs:
        got, wanted = values(stopped, run.name), values(whole, run.name)
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)


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
    with pytest.raises(ValueError, match="resume: the run was started with runs"):
        sweep(new(encoder), runs[:2], tmp_path, resume=True)
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


def test_runs_that_share_a_prompt(encoder: Path, tmp_path: Path, make: Callable[..., Run]) -> None:
    runs = [
        make("mood", shared="both", epochs=3),
        make("tags", "tags", SMALL, shared="both", epochs=3, batch_size=3),
    ]
    model = new(encoder)
    table = sweep(model, runs, tmp_path / "shared")
    assert model.prompts["mood"] is model.prompts["tags"]
    first, second = table["runs"]
    assert len(first["history"]) == len(second["history"]) == 3  # of the longer data
    assert first["epoch"] == second["epoch"]
    scores = [
        (a["accuracy"] + b["f1"]) / 2
        for a, b in zip(first["history"], second["history"], strict=True)
    ]
    assert first["epoch"] == scores.index(max(scores)) + 1
    fresh = new(encoder)
    for name in ("mood", "tags"):
        fresh.load_task(tmp_path / "shared" / name)
        assert torch.equal(fresh.key_value(name), model.key_value("mood"))

    special = make("special", start_from=tmp_path / "shared" / "mood", learning_rate=1e-12)
    sweep(model, [special], tmp_path / "special")
    assert model.prompts["special"] is not model.prompts["mood"]
    torch.testing.assert_close(model.key_value("special"), model.key_value("mood"))


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
        ({"scheduler": "reduce_lr_on_plateau"}, "scheduler: expected one by the number of steps"),
        ({"data": (DATA[0], DATA[1].select([]))}, "data: expected validation examples for 'b'"),
        ({"token_budget": 3}, "token_budget: expected at least the longest example's"),
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


def test_a_plot_needs_matplotlib(
    encoder: Path, tmp_path: Path, make: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptv2.sweep.plot.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"plot: matplotlib is not installed; pip install"):
        sweep(new(encoder), [make("a")], tmp_path / "sweep", plot=True)
    assert not (tmp_path / "sweep").exists()


def test_the_plot(encoder: Path, tmp_path: Path, make: Callable[..., Run]) -> None:
    runs = [make("a"), make("b", seed=1), make("tags", "tags")]
    sweep(new(encoder), runs, tmp_path / "sweep", plot=True)
    assert (tmp_path / "sweep" / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_grids() -> None:
    prompt = PromptConfig(task="sequence-classification", labels=("a", "b"))
    found = grid(
        prompt,
        TrainConfig(),
        learning_rate=(0.02, 0.015, 1.0),
        prompt_length=(0, 32),
        seed=[0],
    )
    assert list(found) == [
        "lr2e-2-len0-seed0",
        "lr2e-2-len32-seed0",
        "lr15e-3-len0-seed0",
        "lr15e-3-len32-seed0",
        "lr1-len0-seed0",
        "lr1-len32-seed0",
    ]
    assert found["lr15e-3-len32-seed0"] == (prompt, TrainConfig(learning_rate=0.015))
    others = grid(
        prompt, TrainConfig(), layers=(None, (0, 11)), scheduler=("cosine",), packing=(True,)
    )
    assert list(others) == [
        "layers-none-scheduler-cosine-packing-true",
        "layers-0-11-scheduler-cosine-packing-true",
    ]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, "axes: expected at least one setting"),
        ({"rate": (1, 2)}, "axes: expected some of .*backbone_dropout, .* got 'rate'"),
        ({"labels": (("a",),)}, "axes: expected some of .* got 'labels'"),
        ({"seed": ()}, r"seed: expected a list of distinct values, got \(\)"),
        ({"seed": (1, 1)}, r"seed: expected a list of distinct values, got \(1, 1\)"),
        ({"scheduler": "linear"}, "scheduler: expected a list of distinct values, got 'linear'"),
        ({"epochs": (1, 0)}, "epochs: expected a positive number, got 0"),
    ],
)
def test_grids_that_are_none(axes: dict[str, Any], message: str) -> None:
    prompt = PromptConfig(task="sequence-classification", labels=("a", "b"))
    with pytest.raises(ValueError, match=message):
        grid(prompt, TrainConfig(), **axes)


def test_a_sweep_is_one_process(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Run]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(NotImplementedError, match="sweep: expected one process, got several"):
        sweep(new(encoder), [make("a")], tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()

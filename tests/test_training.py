"""Training on the Trainer: what a run writes, stopping and going on, what it refuses."""

import itertools
import json
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments, set_seed

from ptv2 import PromptConfig, PromptModel
from ptv2.batches import Batches
from ptv2.predictor import Predictor
from ptv2.tasks import make_task
from ptv2.train_config import TrainConfig
from ptv2.trainer import Diverged, PromptTrainer
from ptv2.training import evaluate, train
from tests.encoder import examples, save_encoder

CONFIG = TrainConfig(learning_rate=3e-2, epochs=3, batch_size=8)
DATA = Dataset.from_list(examples(48)), Dataset.from_list(examples(24, seed=1))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


def new(encoder: Path, kind: str = "sequence-classification", **columns: Any) -> tuple:
    """A predictor with a fresh task "t", and its reader."""
    predictor = Predictor(PromptModel.from_pretrained(encoder))
    task = make_task(kind, predictor.tokenizer, **columns).fit_labels(*DATA)
    set_seed(0)
    predictor.model.add_task(
        "t", PromptConfig.from_dict({"task": kind, "labels": task.labels, "prompt_length": 4})
    )
    return predictor, task


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("sequence-classification", {}),
        ("sequence-classification", {"text_pair_column": "text_pair", "label_column": "same"}),
        ("token-classification", {}),
    ],
    ids=["text", "pair", "tokens"],
)
def test_a_run(encoder: Path, tmp_path: Path, kind: str, columns: dict[str, str]) -> None:
    predictor, task = new(encoder, kind, **columns)
    before = {name: x.clone() for name, x in predictor.model.backbone.named_parameters()}
    metrics = train(predictor.model, "t", task, DATA, tmp_path / "run", CONFIG)

    scores = evaluate(predictor, "t", task, DATA[1])
    assert scores[task.best_metric] == metrics["best"][task.best_metric]
    assert [epoch["epoch"] for epoch in metrics["history"]] == [1, 2, 3]
    assert metrics["best"] in metrics["history"]
    assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    run = json.loads((tmp_path / "run" / "run_config.json").read_text())
    assert run["train"]["learning_rate"] == CONFIG.learning_rate
    assert run["prompt"]["labels"] == list(task.labels)
    assert all(
        torch.equal(x, before[name]) for name, x in predictor.model.backbone.named_parameters()
    )

    fresh = PromptModel.from_pretrained(encoder)
    assert fresh.load_task(tmp_path / "run") == "t"
    again = evaluate(Predictor(fresh), "t", task, DATA[1])
    assert again == scores


def numbered(count: int, seed: int) -> Dataset:
    """Texts with a number, with several labels, and with two choices."""
    rows = examples(count, seed)
    for row in rows:
        good = row["label"] == "good"
        row["number"] = len(row["tokens"]) / 4 + good
        row["several"] = [row["label"]] * (len(row["tokens"]) > 5) + ["city"] * good
        row["question"], row["choices"] = row["text"], ["great", "dull"]
        row["right"] = 0 if good else 1
    return Dataset.from_list(rows)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(
    ("kind", "columns", "score"),
    [
        ("sequence-classification", {"label_column": "number"}, "pearson"),
        ("sequence-classification", {"label_column": "several"}, "micro_f1"),
        ("multiple-choice", {"label_column": "right"}, "accuracy"),
    ],
    ids=["number", "several labels", "choice"],
)
def test_a_run_of_other_kinds(
    encoder: Path, tmp_path: Path, kind: str, columns: dict, score: str, packing: bool
) -> None:
    data = numbered(24, 0), numbered(12, 1)
    predictor = Predictor(PromptModel.from_pretrained(encoder))
    task = make_task(kind, predictor.tokenizer, **columns).fit_labels(*data)
    assert task.best_metric == score
    kept = {name: getattr(task, name) for name in task.prompt_fields}
    config = PromptConfig.from_dict(
        {"task": kind, "labels": task.labels, "prompt_length": 4} | kept
    )
    predictor.model.add_task("t", config)
    # long enough for answers that differ: a correlation of near constants is all rounding
    own = replace(CONFIG, packing=packing, epochs=10)
    metrics = train(predictor.model, "t", task, data, tmp_path / "run", own)
    fresh = PromptModel.from_pretrained(encoder)
    fresh.load_task(tmp_path / "run")
    again = Predictor(fresh)
    scores = evaluate(again, "t", again.task("t", **columns), data[1])
    assert scores[score] == pytest.approx(metrics["best"][score], abs=1e-6)
    assert scores["majority"][score] == metrics["majority"][score]
    row = data[1][0]
    request = (row["question"], row["choices"]) if kind == "multiple-choice" else row["text"]
    (answer,) = again.predict([("t", request)])
    assert set(answer) & {"value", "labels", "choice"}


def weights(predictor: Predictor) -> dict[str, torch.Tensor]:
    return predictor.model.state_dict()


def test_packed_training_equals_padded(encoder: Path, tmp_path: Path) -> None:
    """The same batches, so the same losses, scores and weights; without dropout."""
    for kind in ("sequence-classification", "token-classification"):
        found = []
        for packing in (False, True):
            predictor, task = new(encoder, kind)
            predictor.model.heads["t"].dropout.p = 0.0
            config = replace(CONFIG, packing=packing, backbone_dropout=False)
            output = tmp_path / f"{kind}-{packing}"
            found.append((train(predictor.model, "t", task, DATA, output, config), predictor))
        (padded, one), (packed, other) = found
        for a, b in zip(padded["history"], packed["history"], strict=True):
            assert b == pytest.approx(a, abs=1e-5)
        for name, x in weights(one).items():
            torch.testing.assert_close(weights(other)[name], x, rtol=0, atol=1e-5)


def test_training_on_windows(encoder: Path, tmp_path: Path) -> None:
    """Padded and packed alike, and scored by sentence."""
    data = DATA[0].select(range(12)), DATA[1].select(range(6))
    found = []
    for packing in (False, True):
        predictor, task = new(encoder, "token-classification", max_length=6, stride=1)
        assert len(task.prepare(data[0])) > len(data[0])
        predictor.model.heads["t"].dropout.p = 0.0
        config = replace(CONFIG, epochs=1, packing=packing, backbone_dropout=False)
        metrics = train(predictor.model, "t", task, data, tmp_path / str(packing), config)
        found.append(metrics["history"][0])
        assert evaluate(predictor, "t", task, data[1])["f1"] == metrics["history"][0]["f1"]
    assert found[1] == pytest.approx(found[0], abs=1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_a_token_budget(
    encoder: Path, tmp_path: Path, packing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, task = new(encoder)
    config = TrainConfig(epochs=2, token_budget=40, packing=packing)
    validated: list[list[int]] = []
    forward = PromptTrainer._forward

    def watched(self: PromptTrainer, features: Any, module: Any) -> Any:
        validated.append([len(feature["input_ids"]) for feature in features])
        return forward(self, features, module)

    monkeypatch.setattr(PromptTrainer, "_forward", watched)
    metrics = train(predictor.model, "t", task, DATA, tmp_path / "run", config)
    lengths = [len(f["input_ids"]) for f in task.prepare(DATA[0])]
    assert metrics["steps"] == 2 * len(Batches(lengths, 32, 40, packing))
    assert [epoch["epoch"] for epoch in metrics["history"]] == [1, 2]
    tokens = [sum(batch) if packing else len(batch) * max(batch) for batch in validated]
    assert max(tokens) <= 4 * 40 < sum(tokens) / 2  # an epoch's


@pytest.mark.parametrize("checkpointing", ["layers", "selective"])
def test_checkpointing_changes_nothing(encoder: Path, tmp_path: Path, checkpointing: str) -> None:
    found = []
    for kind in ("none", checkpointing):
        predictor, task = new(encoder)
        config = replace(CONFIG, checkpointing=kind, epochs=1)
        train(predictor.model, "t", task, DATA, tmp_path / kind, config)
        found.append(weights(predictor))
    assert all(torch.equal(x, found[1][name]) for name, x in found[0].items())


def test_a_prompt_learns(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    config = replace(CONFIG, epochs=8)
    metrics = train(predictor.model, "t", task, DATA, tmp_path / "run", config)
    assert metrics["best"]["accuracy"] > metrics["majority"]["accuracy"] + 0.1


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("checkpoint-*"))


def test_the_trainer_scores_its_own_validation_data_alone(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    features = task.prepare(DATA[0]), task.prepare(DATA[1])
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    module = predictor.model.for_task("t")
    optimizer = torch.optim.AdamW(module.prompt.parameters())
    references = task.references(DATA[1])
    trainer = PromptTrainer(module, task, arguments, *features, references, optimizer)
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1
    with pytest.raises(ValueError, match="eval_dataset: expected None, got Dataset"):
        trainer.evaluate(features[0])


def test_a_checkpoint_holds_prompt_and_head_only(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    train(predictor.model, "t", task, DATA, tmp_path / "run", CONFIG)
    for checkpoint in checkpoints(tmp_path / "run"):
        assert set(load_file(checkpoint / "model.safetensors")) == {
            "prompt.embedding", "head.linear.weight", "head.linear.bias",
        }  # fmt: skip
        assert not list(checkpoint.glob("tokenizer*"))


def test_without_backbone_dropout_only_prompt_and_head_have_any(
    family: str, tiny_backbone: Any
) -> None:
    model = PromptModel(tiny_backbone(family))
    model.add_task("t", PromptConfig("feature-extraction", prompt_length=3))
    ids = torch.randint(4, 100, (2, 9))
    expected = model.eval()(input_ids=ids, task="t").last_hidden_state
    module = model.for_task("t", backbone_dropout=False).train()
    assert module.prompt.training
    assert torch.equal(module(input_ids=ids).last_hidden_state, expected)
    again = model.for_task("t").train()(input_ids=ids).last_hidden_state
    none_by_default = ("albert", "clip_text_model", "eurobert", "modernbert", "nomic_bert")
    drops = family not in none_by_default
    assert torch.equal(again, expected) != drops


def stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Let the Trainer die before a step, as a kill would."""
    training_step, taken = Trainer.training_step, itertools.count()

    def dying_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        if next(taken) == step:
            raise KeyboardInterrupt
        return training_step(*args, **kwargs)

    patch.setattr(Trainer, "training_step", dying_step)


@pytest.mark.parametrize("step", [3, 6, 14], ids=["no checkpoint yet", "epoch end", "mid-epoch"])
def test_resuming_is_bitwise_the_same_as_not_stopping(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    predictor, task = new(encoder)
    whole = train(predictor.model, "t", task, DATA, tmp_path / "whole", CONFIG)

    stopped, task = new(encoder)
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            train(stopped.model, "t", task, DATA, tmp_path / "run", CONFIG)
    assert not (tmp_path / "run" / "prompt.safetensors").exists()

    resumed, task = new(encoder)
    metrics = train(resumed.model, "t", task, DATA, tmp_path / "run", CONFIG, resume=True)
    ends = [checkpoints(tmp_path / run)[-1] / "model.safetensors" for run in ("whole", "run")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    assert [epoch["accuracy"] for epoch in metrics["history"]] == [
        epoch["accuracy"] for epoch in whole["history"]
    ]
    expected, got = (p.model.state_dict() for p in (predictor, resumed))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_run_is_resumed_only_with_its_settings(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    short = TrainConfig(epochs=1, batch_size=24)
    with pytest.raises(FileNotFoundError, match="resume: there is no run in"):
        train(predictor.model, "t", task, DATA, tmp_path / "run", short, resume=True)
    assert not (tmp_path / "run").exists()
    train(predictor.model, "t", task, DATA, tmp_path / "run", short)
    other = TrainConfig(epochs=1, batch_size=12)
    message = r"resume: the run was started with train\.batch_size = 24, got 12"
    with pytest.raises(ValueError, match=message):
        train(predictor.model, "t", task, DATA, tmp_path / "run", other, resume=True)


def test_a_run_says_what_its_prompt_started_from(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    model, config = predictor.model, replace(CONFIG, epochs=1, batch_size=24)
    model.save_task("t", tmp_path / "other")
    saved = tmp_path / "other"
    starts = {
        "random": ({}, {"start_from": None}),
        "text": ({"start_from_text": [5, 6]}, {"start_from_text": [5, 6, 5, 6]}),
        "saved": ({"start_from": saved / ".." / "other"}, {"start_from": str(saved)}),
        "own": ({"start_from": "t"}, {"start_from": "t"}),
    }
    for name, (start, expected) in starts.items():
        model.add_task(name, model.tasks["t"], **start)
        train(model, name, task, DATA, tmp_path / name, config)
        run = json.loads((tmp_path / name / "run_config.json").read_text())
        assert expected.items() <= run.items()
    model.remove_task("text")
    model.add_task("text", model.tasks["t"])
    message = r"resume: the run was started with start_from_text = \[5, 6, 5, 6\], got None"
    with pytest.raises(ValueError, match=message):
        train(model, "text", task, DATA, tmp_path / "text", config, resume=True)


def test_nothing_is_overwritten_unasked(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    (tmp_path / "notes.txt").write_text("mine")
    short = TrainConfig(epochs=1, batch_size=24)
    with pytest.raises(FileExistsError, match=r"output: .* is not empty; choose another, or over"):
        train(predictor.model, "t", task, DATA, tmp_path, short)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    first = train(predictor.model, "t", task, DATA, tmp_path, short, overwrite=True)
    with pytest.raises(FileExistsError, match="resume it or overwrite it"):
        train(predictor.model, "t", task, DATA, tmp_path, short)
    with pytest.raises(ValueError, match="overwrite: expected either resume or overwrite, got b"):
        train(predictor.model, "t", task, DATA, tmp_path, short, resume=True, overwrite=True)
    second = train(predictor.model, "t", task, DATA, tmp_path, short, overwrite=True)
    assert second["history"] != first["history"]  # the prompt went on from where it was
    assert (tmp_path / "notes.txt").read_text() == "mine"


def diverge_after(epochs: int, patch: pytest.MonkeyPatch) -> None:
    """Make the loss on the validation data NaN once so many epochs are done."""
    whole = PromptTrainer._forward_all

    def broken(self: PromptTrainer, features: Any) -> tuple[float, Any]:
        loss, logits = whole(self, features)
        done = self.state.epoch is not None and self.state.epoch > epochs
        return (float("nan") if done else loss), logits

    patch.setattr(PromptTrainer, "_forward_all", broken)


def test_the_epochs_before_a_divergence_count(
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    predictor, task = new(encoder)
    diverge_after(1, monkeypatch)
    metrics = train(predictor.model, "t", task, DATA, tmp_path / "run", CONFIG)
    assert metrics["diverged_at_step"] == 12  # an epoch has 6 steps
    assert [epoch["epoch"] for epoch in metrics["history"]] == [1]
    assert metrics["best"] == metrics["history"][0]
    message = (
        "the loss on the validation data is nan at step 12, expected a rate smaller than 0.03"
    )
    assert message in caplog.text
    assert "the epochs before it count" in caplog.text
    scores = evaluate(predictor, "t", task, DATA[1])
    assert scores["accuracy"] == metrics["best"]["accuracy"]


def test_a_run_that_kept_nothing_is_replaced(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    with pytest.raises(Diverged, match=r"learning_rate: the loss .* is nan at step 6, expected"):
        train(predictor.model, "t", task, DATA, tmp_path, replace(CONFIG, learning_rate=1e38))
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"run_config.json"}
    predictor, task = new(encoder)
    metrics = train(predictor.model, "t", task, DATA, tmp_path, replace(CONFIG, epochs=1))
    assert metrics["diverged_at_step"] is None


def test_bad_data_writes_nothing(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    for part, data in (("training", (DATA[0].select([]), DATA[1])), ("validation", (DATA[0], []))):
        with pytest.raises(ValueError, match=f"data: expected {part} examples, got none"):
            train(predictor.model, "t", task, data, tmp_path / "run", CONFIG)
    unlabelled = DATA[1].remove_columns("label")
    with pytest.raises(ValueError, match="label_column: expected one of the data's columns"):
        train(predictor.model, "t", task, (DATA[0], unlabelled), tmp_path / "run", CONFIG)
    other = make_task(task.kind, task.tokenizer, labels=("a", "b"))
    with pytest.raises(ValueError, match=r"labels: expected \('bad', 'good'\), got \('a', 'b'\)"):
        train(predictor.model, "t", other, DATA, tmp_path / "run", CONFIG)
    several = replace(task, multi_label=True)
    with pytest.raises(ValueError, match="multi_label: expected False, got True"):
        train(predictor.model, "t", several, DATA, tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rate", 0, "learning_rate: expected a finite number above 0, got 0"),
        ("learning_rate", inf, "learning_rate: expected a finite number above 0, got inf"),
        ("learning_rate", "1", "learning_rate: expected a finite number above 0, got '1'"),
        ("learning_rate", None, "learning_rate: expected a finite number above 0, got None"),
        ("head_learning_rate", -1, "head_learning_rate: expected a finite number above 0, got -1"),
        ("max_grad_norm", nan, "max_grad_norm: expected a finite number above 0, got nan"),
        ("max_grad_norm", True, "max_grad_norm: expected a finite number above 0, got True"),
        ("weight_decay", -1, "weight_decay: expected a finite number >= 0, got -1"),
        ("weight_decay", nan, "weight_decay: expected a finite number >= 0, got nan"),
        ("warmup_ratio", 1.0, r"warmup_ratio: expected a number in \[0, 1\), got 1.0"),
        ("warmup_ratio", False, r"warmup_ratio: expected a number in \[0, 1\), got False"),
        ("epochs", -1, "epochs: expected an int of at least 1, got -1"),
        ("epochs", 2.5, "epochs: expected an int of at least 1, got 2.5"),
        ("epochs", True, "epochs: expected an int of at least 1, got True"),
        ("epochs", None, "epochs: expected an int of at least 1, got None"),
        ("batch_size", 2.5, "batch_size: expected an int of at least 1, got 2.5"),
        ("batch_size", np.int64(2), r"batch_size: expected an int of at least 1, got np.int64\(2"),
        ("token_budget", 0, "token_budget: expected an int of at least 1, got 0"),
        ("save_steps", "7", "save_steps: expected an int of at least 1, got '7'"),
        ("seed", 1.5, r"seed: expected an int in \[0, 2\*\*32\), got 1.5"),
        ("seed", -1, r"seed: expected an int in \[0, 2\*\*32\), got -1"),
        ("seed", 2**32, r"seed: expected an int in \[0, 2\*\*32\), got 4294967296"),
        ("packing", "no", "packing: expected True or False, got 'no'"),
        ("backbone_dropout", 1, "backbone_dropout: expected True or False, got 1"),
        ("compile", None, "compile: expected True or False, got None"),
        (
            "checkpointing",
            "all",
            "checkpointing: expected one of none, layers, selective, got 'al",
        ),
        ("precision", "int8", "precision: expected one of fp32, bf16, fp16, got 'int8'"),
        *(
            ("scheduler", name, "scheduler: expected one of linear, .*, exponential, got ")
            for name in (
                "reduce_lr_on_plateau",
                "greedy",
                "warmup_stable_decay",
                "cosine_with_min_lr",
                "cosine_warmup_with_min_lr",
                None,
            )
        ),
    ],
)
def test_config_errors(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{field: value})


def test_a_constant_rate_has_no_warmup() -> None:
    for ratio in (0, 0.0, TrainConfig.warmup_ratio):
        TrainConfig(scheduler="constant", warmup_ratio=ratio)
    message = "warmup_ratio: .* has no warm-up, expected 0 or 'constant_with_warmup', got 0.5"
    with pytest.raises(ValueError, match=message):
        TrainConfig(scheduler="constant", warmup_ratio=0.5)


def test_the_largest_seed_trains(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    config = TrainConfig(seed=2**32 - 1, epochs=1, batch_size=24)
    assert train(predictor.model, "t", task, DATA, tmp_path / "run", config)["steps"] == 2


def test_a_run_of_one_step_trains(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    before = {name: x.clone() for name, x in weights(predictor).items()}
    config = TrainConfig(epochs=1, batch_size=48)
    assert train(predictor.model, "t", task, DATA, tmp_path / "run", config)["steps"] == 1
    assert not any(torch.equal(x, before[name]) for name, x in weights(predictor).items())


def test_the_head_may_have_its_own_learning_rate(encoder: Path, tmp_path: Path) -> None:
    predictor, task = new(encoder)
    before = {name: x.clone() for name, x in predictor.model.state_dict().items()}
    config = TrainConfig(learning_rate=1e-2, head_learning_rate=1e-12, epochs=1)
    train(predictor.model, "t", task, DATA, tmp_path / "run", config)
    moved = {
        name: (x - before[name]).abs().max() > 1e-6
        for name, x in predictor.model.state_dict().items()
    }
    assert {name.split(".")[0]: bool(value) for name, value in moved.items()} == {
        "prompts": True,
        "heads": False,
    }


def test_mixed_answers_equal_separate_ones(encoder: Path) -> None:
    predictor, _ = new(encoder)
    labels = ("O", "B-city")
    predictor.model.add_task(
        "tags", PromptConfig(task="token-classification", labels=labels, prompt_length=3)
    )
    texts = ["a fine film", "a film in rome", "dull"]
    requests = [(name, text) for text in texts for name in ("t", "tags")]
    mixed = predictor.predict(requests)
    assert mixed == [predictor.predict([request])[0] for request in requests]
    assert [len(answer["tags"]) for answer in mixed[1::2]] == [3, 4, 1]
    with pytest.raises(ValueError, match="task: 'x' is unknown; the model's tasks are"):
        predictor.predict([("x", "a film")])

"""Training on the Trainer: every kind of task, packed or not, and what a prompt learns."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainingArguments

from ptv2 import PromptConfig, PromptModel
from ptv2.batches import Batches
from ptv2.predictor import Predictor
from ptv2.tasks import make_task
from ptv2.train_config import TrainConfig
from ptv2.trainer import PromptTrainer
from ptv2.training import evaluate, train
from tests.encoder import examples
from tests.training.runs import CONFIG, DATA, checkpoints, new, weights


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
    with pytest.raises(ValueError, match="data: expected at least one example, got none"):
        evaluate(predictor, "t", task, DATA[1].select([]))
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

"""Question answering from training to saved prompts, in Python and on the command line."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import set_seed
from typer.testing import CliRunner

from ptv2 import PromptConfig, PromptModel
from ptv2.cli import app
from ptv2.predictor import Predictor
from ptv2.tasks import QuestionAnswering, make_task
from ptv2.train_config import TrainConfig
from ptv2.training import evaluate, train
from tests.encoder import NAMES, save_encoder, write_jsonl

CONFIG = TrainConfig(learning_rate=3e-2, epochs=2, batch_size=8)


def questions(count: int, seed: int = 0, unanswered: bool = False) -> list[dict[str, Any]]:
    """Where is the film? Contexts of one window of 32 tokens and of two."""
    draw = random.Random(seed)
    rows = []
    for place in range(count):
        city = draw.choice(NAMES)
        before = " ".join(["walking"] * draw.randint(0, 12))
        has = not unanswered or place % 3 > 0
        context = f"{before} a film in {city if has else 'a'} walks"
        answers = {
            "text": [city] if has else [],
            "answer_start": [context.index(city)] if has else [],
        }
        rows.append({"question": "in film", "context": context, "answers": answers})
    return rows


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


def parts(unanswered: bool = False) -> tuple[Dataset, Dataset]:
    return (
        Dataset.from_list(questions(24, unanswered=unanswered)),
        Dataset.from_list(questions(12, seed=1, unanswered=unanswered)),
    )


def new(encoder: Path, data: tuple[Dataset, Dataset]) -> tuple[Predictor, Any]:
    """A predictor with a fresh task "t", and its reader."""
    predictor = Predictor(PromptModel.from_pretrained(encoder))
    task = make_task("question-answering", predictor.tokenizer).fit_labels(*data)
    set_seed(0)
    predictor.model.add_task(
        "t", PromptConfig("question-answering", prompt_length=4, no_answer=task.no_answer)
    )
    return predictor, task


def test_padded_and_packed_runs(encoder: Path, tmp_path: Path) -> None:
    data = parts()
    found = []
    for packing in (False, True):
        predictor, task = new(encoder, data)
        assert len(task.prepare(data[1])) > len(data[1])  # some contexts have windows
        predictor.model.heads["t"].dropout.p = 0.0
        config = replace(CONFIG, packing=packing, backbone_dropout=False)
        output = tmp_path / str(packing)
        metrics = train(predictor.model, "t", task, data, output, config)
        found.append(metrics)
        scores = evaluate(predictor, "t", task, data[1])
        for score in ("exact_match", "f1"):
            assert scores[score] == metrics["best"][score]
        assert scores["majority"] == metrics["majority"]
        fresh = PromptModel.from_pretrained(encoder)
        fresh.load_task(output)
        again = Predictor(fresh)
        assert evaluate(again, "t", again.task("t"), data[1]) == scores
    for a, b in zip(found[0]["history"], found[1]["history"], strict=True):
        assert b == pytest.approx(a, abs=1e-5)


def test_a_prompt_learns_where_answers_are(encoder: Path, tmp_path: Path) -> None:
    data = parts()
    predictor, task = new(encoder, data)
    config = replace(CONFIG, learning_rate=0.1, epochs=3)
    metrics = train(predictor.model, "t", task, data, tmp_path / "run", config)
    assert metrics["best"]["f1"] > metrics["majority"]["f1"] + 0.2


def test_no_answer_is_kept_with_the_prompt(encoder: Path, tmp_path: Path) -> None:
    data = parts(unanswered=True)
    predictor, task = new(encoder, data)
    config = replace(CONFIG, epochs=1)
    metrics = train(predictor.model, "t", task, data, tmp_path / "run", config)
    assert {"has_answer_f1", "no_answer_f1"} <= set(metrics["best"])
    assert metrics["best"]["best_f1"] >= metrics["best"]["f1"]
    fresh = PromptModel.from_pretrained(encoder)
    fresh.load_task(tmp_path / "run")
    assert fresh.tasks["t"].no_answer
    reader = Predictor(fresh).task("t")
    assert isinstance(reader, QuestionAnswering)
    assert reader.no_answer
    other = replace(task, no_answer=False)
    with pytest.raises(ValueError, match="no_answer: expected True, got False"):
        train(predictor.model, "t", other, parts(), tmp_path / "other", CONFIG)


def test_windows_among_other_tasks_in_a_batch(encoder: Path) -> None:
    predictor, _ = new(encoder, parts())
    predictor.model.add_task(
        "s", PromptConfig("sequence-classification", labels=("bad", "good"), prompt_length=3)
    )
    rows = questions(4, seed=3)
    long = rows[0]["context"] + " walking" * 40
    requests = [("t", ("in film", long)), ("s", "a fine film"), ("t", ("in", rows[1]["context"]))]
    answers = predictor.predict(requests)
    assert answers[1]["label"] in ("bad", "good")
    for answer, context in ((answers[0], long), (answers[2], rows[1]["context"])):
        assert answer["answer"] == context[answer["start"] : answer["end"]] != ""
    assert answers[0] == pytest.approx(predictor.predict(requests[:1])[0], abs=1e-3)


def ptv2(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands(encoder: Path, tmp_path: Path) -> None:
    def renamed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"q": r["question"], "c": r["context"], "a": r["answers"]} for r in rows]

    data = write_jsonl(tmp_path / "train.jsonl", renamed(questions(16, unanswered=True)))
    rows = questions(8, seed=1, unanswered=True)
    dev = write_jsonl(tmp_path / "dev.jsonl", renamed(rows))
    inputs = ("--question-column", "q", "--context-column", "c")
    columns = (*inputs, "--answers-column", "a")
    run, out = tmp_path / "run", tmp_path / "out.json"
    result = ptv2(
        "train", "--backbone", encoder, "--task", "question-answering", "--train", data,
        "--validation", dev, "--output", run, "--epochs", 1, "--prompt-length", 4, *columns,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "exact_match" in result.stdout
    config = json.loads((run / "prompt_config.json").read_text())["config"]
    assert (config["no_answer"], config["labels"]) == (True, [])

    result = ptv2("eval", "--prompt", run, "--data", dev, "--output", out, *columns)
    assert result.exit_code == 0, result.output
    best = json.loads((run / "metrics.json").read_text())["best"]
    assert json.loads(out.read_text())["f1"] == best["f1"]

    result = ptv2("predict", "--prompt", run, "--data", dev, *inputs)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [set(line) for line in lines] == [{"question", "answers"}] * 8
    assert all(
        line["answers"]["run"]["answer"] in row["context"]
        for line, row in zip(lines, rows, strict=True)
    )
    text = ("predict", "--prompt", run, "--text", "in film")
    result = ptv2(*text, "--text-pair", "a film in rome")
    assert json.loads(result.stdout)["question"] == "in film"
    assert "text_pair: question-answering reads the context there" in ptv2(*text).stderr
    result = ptv2("eval", "--prompt", run, "--data", dev, "--tags-column", "a", *columns)
    assert "tags_column: question-answering has no such option" in result.stderr

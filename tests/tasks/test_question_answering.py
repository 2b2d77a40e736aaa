"""Questions and contexts to windows; logits to spans of text; SQuAD's scores."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

from ptv2 import PromptConfig, PromptModel
from ptv2.predictor import Predictor
from ptv2.tasks import Collator, QuestionAnswering, squad
from ptv2.tasks.task import decode_all
from ptv2.train_config import TrainConfig
from ptv2.training import evaluate, train
from tests.encoder import save_encoder

LONG = "a film in rome " + "walking in a film " * 9 + "in paris"


def example(question: str, context: str, *texts: str) -> dict[str, Any]:
    starts = [context.index(text) for text in texts]
    return {
        "question": question,
        "context": context,
        "answers": {"text": list(texts), "answer_start": starts},
    }


DATA = Dataset.from_list(
    [
        example(" in a", LONG, "rome"),
        example("a", LONG, "in paris", "paris"),
        example("dull", "a great film in paris", "great film"),
        example("film", "rome", "rome"),
    ]
)
NULL = Dataset.from_list([*DATA, example("a", "a dull film")])


def perfect(features: Dataset) -> list[torch.Tensor]:
    """Logits that mark each window's label."""
    rows = []
    for feature in features:
        row = torch.zeros(len(feature["input_ids"]), 2)
        row[feature["start_positions"], 0] = row[feature["end_positions"], 1] = 9.0
        rows.append(row)
    return rows


def test_windows_share_their_stride_and_hold_the_whole_context(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    task = QuestionAnswering(tokenizer, max_length=16, stride=4)
    features = task.prepare(DATA)
    first = [row for row in features if row["example"] == 0]
    assert len(first) > 3
    seen: set[int] = set()
    for row in first:
        assert len(row["input_ids"]) == len(row["offsets"]) <= 16
        inside = [(start, end) for start, end in row["offsets"] if start >= 0]
        assert len(set(inside) & seen) == (4 if seen else 0)
        seen |= set(inside)
        types = [
            kind
            for kind, (start, _) in zip(row["token_type_ids"], row["offsets"], strict=True)
            if start >= 0
        ]
        assert set(types) == {1}
    assert " ".join(LONG[start:end] for start, end in sorted(seen)) == " ".join(
        LONG.replace("walking", "walk ing").split()
    )
    assert [row["start_positions"] > 0 for row in first].count(True) == 1  # rome comes once
    assert features["example"][:] == sorted(features["example"])


@pytest.mark.parametrize("max_length", [None, 16, 9])
def test_perfect_logits_give_the_answers(
    tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> None:
    task = QuestionAnswering(tokenizer, max_length=max_length, stride=4).fit_labels(DATA)
    features = task.prepare(DATA)
    answers = decode_all(task, features, perfect(features))
    assert [answer["answer"] for answer in answers] == ["rome", "in paris", "great film", "rome"]
    for row, answer in zip(DATA, answers, strict=True):
        assert row["context"][answer["start"] : answer["end"]] == answer["answer"]
    assert task.score(answers, task.references(DATA)) == {"exact_match": 1.0, "f1": 1.0}
    assert not task.no_answer


def test_spans_are_in_order_not_too_long_and_of_the_context(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    task = QuestionAnswering(tokenizer, max_answer_length=2)
    (feature,) = task.prepare_inputs([("a film", "rome in paris walking")])
    row = torch.zeros(len(feature["input_ids"]), 2)
    row[1, :] = 50.0  # of the question
    row[6, 0], row[4, 1] = 5.0, 5.0  # starts at "paris", ends at "rome": no span
    row[5, 1] = 3.0
    answer = task.decode([row], [feature])
    assert answer["answer"] in ("rome", "paris")
    every = {"rome", "rome in", "in", "in paris", "paris", "paris walk", "walk", "walking", "ing"}
    for seed in range(20):
        torch.manual_seed(seed)
        assert task.decode([torch.randn_like(row)], [feature])["answer"] in every


def test_the_best_of_all_windows_wins(tokenizer: PreTrainedTokenizerBase) -> None:
    task = QuestionAnswering(tokenizer, max_length=16, stride=4)
    features = list(task.prepare_inputs([("a", LONG)]))
    rows = [torch.zeros(len(row["input_ids"]), 2) for row in features]
    for place, row in enumerate(rows):
        row[5, :] = float(place)
    answer = task.decode(rows, features)
    assert (answer["start"], answer["end"]) == tuple(features[-1]["offsets"][5])
    assert 1 / task.n_best < answer["score"] < 1


def test_no_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    task = QuestionAnswering(tokenizer).fit_labels(DATA, NULL)
    assert task.no_answer
    features = task.prepare(NULL)
    assert features[-1]["start_positions"] == features[-1]["end_positions"] == 0
    answers = decode_all(task, features, perfect(features))
    assert [answer["answer"] for answer in answers] == [
        "rome",
        "in paris",
        "great film",
        "rome",
        "",
    ]
    assert answers[-1]["start"] is None
    assert answers[-1]["null"] == 18.0
    assert task.score(answers, task.references(NULL))["unanswerable_exact_match"] == 1.0
    strict = dataclasses.replace(task, null_threshold=20.0)
    assert decode_all(strict, features, perfect(features))[-1]["answer"] != ""
    without = dataclasses.replace(task, no_answer=False)
    assert decode_all(without, features, perfect(features))[-1]["answer"] != ""


def test_characters_are_not_bytes(tokenizer: PreTrainedTokenizerBase) -> None:
    row = example("in", "é😀 film in 東京 rome", "rome")
    task = QuestionAnswering(tokenizer)
    features = task.prepare(Dataset.from_list([row]))
    assert decode_all(task, features, perfect(features))[0]["answer"] == "rome"


@pytest.mark.parametrize(
    ("given", "references", "exact", "overlap"),
    [
        ("the Cat", ["cat"], 1, 1),
        ("cat.", ["A cat!"], 1, 1),
        ("a big black cat", ["black cat"], 0, 0.8),
        ("cat cat", ["cat"], 0, 2 / 3),
        ("dog", ["cat", "dog "], 1, 1),
        ("dog", ["cat"], 0, 0),
        ("co-operate", ["cooperate"], 1, 1),
        ("l\u2019été", ["l'été"], 0, 0),  # only ASCII punctuation is taken out
        ("10 %", ["10"], 1, 1),
        ("", ["cat"], 0, 0),
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("the", ["an"], 1, 1),  # nothing remains of either
        ("x  y\tz", ["x y z"], 1, 1),
        ("anthem", ["them"], 0, 0),
    ],
)
def test_scores_are_those_of_the_official_scripts(
    given: str, references: list[str], exact: float, overlap: float
) -> None:
    found = squad.scores([given], [references])
    assert found == {"exact_match": exact, "f1": pytest.approx(overlap)}


def test_scores_of_questions_with_and_without_answers() -> None:
    found = squad.scores(["rome", "x", ""], [["rome"], [], []])
    assert found == pytest.approx(
        {
            "exact_match": 2 / 3, "f1": 2 / 3,
            "answerable_exact_match": 1, "answerable_f1": 1,
            "unanswerable_exact_match": 0.5, "unanswerable_f1": 0.5,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"answers": {"text": ["rome"], "answer_start": [1]}},
            "the answer 'rome' of example 0 at",
        ),
        ({"answers": {"text": [""], "answer_start": [0]}}, "the answer '' of example 0 at char"),
        ({"answers": {"text": ["a"], "answer_start": []}}, "one answer_start a text, got 0 and 1"),
        ({"answers": "rome"}, 'answers_column: expected {"text":'),
        ({"question": "a film " * 8}, "question_column: example 0 has 16 tokens, which leave no"),
        ({"context": None}, "context_column: example 0 has no 'context'"),
    ],
)
def test_errors(tokenizer: PreTrainedTokenizerBase, row: dict, message: str) -> None:
    data = Dataset.from_list([example("a", "rome in paris", "rome") | row])
    with pytest.raises(ValueError, match=message):
        QuestionAnswering(tokenizer, max_length=16).prepare(data)


def test_options_and_inputs_are_checked(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="n_best: expected at least 1, got 0"):
        QuestionAnswering(tokenizer, n_best=0)
    with pytest.raises(ValueError, match="inputs: expected pairs of a question and a context"):
        QuestionAnswering(tokenizer).prepare_inputs(["a film"])  # type: ignore[list-item]


@pytest.mark.parametrize("packing", [False, True])
def test_a_run(tmp_path: Path, packing: bool) -> None:
    encoder = save_encoder(tmp_path / "encoder")
    predictor = Predictor(PromptModel.from_pretrained(encoder), max_length=16)
    task = QuestionAnswering(predictor.tokenizer, max_length=16, stride=4).fit_labels(NULL)
    set_seed(0)
    config = PromptConfig(task.kind, prompt_length=4, no_answer=task.no_answer)
    predictor.model.add_task("t", config)
    setting = TrainConfig(epochs=2, batch_size=4, packing=packing)
    metrics = train(predictor.model, "t", task, (NULL, NULL), tmp_path / "run", setting)
    assert evaluate(predictor, "t", task, NULL)["f1"] == metrics["best"]["f1"]

    fresh = PromptModel.from_pretrained(encoder)
    fresh.load_task(tmp_path / "run")
    again = Predictor(fresh, max_length=16)
    reader = again.task("t", stride=4)
    assert isinstance(reader, QuestionAnswering)
    assert reader.no_answer
    features = [("t", feature) for feature in reader.prepare(NULL, labelled=False)]
    given = [answer["answer"] for answer in again.answer({"t": reader}, features)]
    assert squad.scores(given, task.references(NULL))["f1"] == metrics["best"]["f1"]
    pairs = [(row["question"], row["context"]) for row in NULL]
    assert len(again.predict([("t", pair) for pair in pairs])) == len(NULL)
    batch = Collator(task, packing)(list(task.prepare(NULL))[:3])
    assert batch["start_positions"].shape == (3,)

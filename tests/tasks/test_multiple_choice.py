"""Questions with choices to features, and back to the choice."""

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ptv2.tasks import Collator, MultipleChoice
from ptv2.tasks.task import decode_all

DATA = Dataset.from_dict(
    {
        "question": ["a film in", "in"],
        "choices": [["rome", "a great film", "dull"], ["paris", "walkings", "a"]],
        "label": [2, 0],
    }
)


def test_a_feature_has_every_choice(tokenizer: PreTrainedTokenizerBase) -> None:
    task = MultipleChoice(tokenizer)
    features = list(task.prepare(DATA))
    assert [feature["labels"] for feature in features] == [2, 0]
    first = task.sequences(features[0])
    assert [tokenizer.decode(choice["input_ids"]) for choice in first] == [
        "[CLS] a film in [SEP] rome [SEP]",
        "[CLS] a film in [SEP] a great film [SEP]",
        "[CLS] a film in [SEP] dull [SEP]",
    ]
    padded = Collator(task)(features)
    assert padded["input_ids"].shape == (2, 3, 9)
    packed = Collator(task, packing=True)(features)
    assert packed["input_ids"].shape == (1, 7 + 9 + 7 + 5 + 7 + 5)
    assert packed["choices"] == 3
    assert len(packed["cu_seqlens"]) == 7
    assert "attention_mask" not in packed
    assert "labels" not in task.prepare(DATA, labelled=False).column_names


def test_answers_and_scores(tokenizer: PreTrainedTokenizerBase) -> None:
    task = MultipleChoice(tokenizer)
    features = task.prepare(DATA)
    logits = [torch.tensor([x]) for x in (0.0, 0.0, 9.0, 0.0, 1.0, 0.0)]
    answers = decode_all(task, features, logits)
    assert answers[0] == {"choice": 2, "text": "dull", "score": 0.9998}
    assert answers[1]["text"] == "walkings"
    assert task.score(answers, task.references(DATA)) == {"accuracy": 0.5}
    assert task.majority([0, 0, 1]) == {"accuracy": pytest.approx(2 / 3)}
    pairs = list(zip(DATA["question"], DATA["choices"], strict=True))
    assert [row["input_ids"] for row in task.prepare_inputs(pairs)] == features["input_ids"][:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"choices": [["a", "film"], ["a"]]},
            r"expected 2 texts as before, got \['a'\] in example 1",
        ),
        (
            {"choices": [["a"], ["a"]]},
            r"choices_column: expected a list of at least 2 texts, got \['a'\]",
        ),
        ({"choices": ["a", "b"]}, "expected a list of at least 2 texts, got 'a' in example 0"),
        (
            {"label": [0, 3]},
            "label_column: expected the number of one of the 3 choices of example 1",
        ),
        ({"label": [-1, 0]}, "of example 0, counted from 0, got -1"),
        ({"label": ["a", "b"]}, "of example 0, counted from 0, got 'a'"),
        ({"label": [True, False]}, "of example 0, counted from 0, got True"),
        ({"label": [1.0, 0.0]}, "of example 0, counted from 0, got 1.0"),
        ({"label": ["1", "3"]}, "of example 1, counted from 0, got '3'"),
        ({"choices": [["a", None], ["a", "b"]]}, r"got \['a', None\] in example 0"),
        (
            {"choices": [[["a"], ["b"]], [["a"], ["b"]]]},
            r"2 texts, got \[\['a'\], \['b'\]\] in ex",
        ),
        ({"question": ["a", None]}, "question_column: example 1 has no 'question'"),
        (
            {"question": [["a"], ["b"]]},
            r"question_column: expected a text, got \['a'\] in example",
        ),
    ],
)
def test_errors(tokenizer: PreTrainedTokenizerBase, change: dict, message: str) -> None:
    data = Dataset.from_dict(DATA.to_dict() | change)
    with pytest.raises(ValueError, match=message):
        MultipleChoice(tokenizer).prepare(data)
    with pytest.raises(ValueError, match="inputs: expected pairs of a question and its choices"):
        MultipleChoice(tokenizer).prepare_inputs(["a film"])  # type: ignore[list-item]


def test_inputs_that_are_no_question(tokenizer: PreTrainedTokenizerBase) -> None:
    task = MultipleChoice(tokenizer)
    for inputs in ([5], ["ab"], [("a",)], [(1, ["a", "film"])]):
        with pytest.raises(ValueError, match="inputs: expected pairs of a question and its choic"):
            task.prepare_inputs(inputs)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choices_column: expected a list of at least 2 texts"):
        task.prepare_inputs([("a", "film")])
    assert len(task.prepare_inputs([])) == 0


def test_numbers_as_text(tokenizer: PreTrainedTokenizerBase) -> None:
    """As in HellaSwag, whose labels are digits."""
    data = Dataset.from_dict(DATA.to_dict() | {"label": ["2", "0"], "choices": [[1, 2, 3]] * 2})
    task = MultipleChoice(tokenizer)
    assert task.references(data) == [2, 0]
    assert task.prepare(data)["choices"][0] == ["1", "2", "3"]

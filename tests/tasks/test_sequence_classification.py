"""Texts and pairs to features; logits to labels; scores."""

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ptv2.tasks import Collator, SequenceClassification

DATA = Dataset.from_dict(
    {"text": ["a film", "a great film"], "other": ["fine", "dull"], "label": ["y", "x"]}
)


def test_features_and_labels(tokenizer: PreTrainedTokenizerBase) -> None:
    task = SequenceClassification(tokenizer).fit_labels(DATA)
    features = task.prepare(DATA)
    assert task.labels == ("x", "y")
    assert features["labels"][:] == [1, 0]
    assert tokenizer.convert_ids_to_tokens(features[0]["input_ids"]) == [
        "[CLS]", "a", "film", "[SEP]",
    ]  # fmt: skip
    batch = Collator(task)(features.to_list())
    assert batch["input_ids"].shape == (2, 5)
    assert "labels" not in task.prepare(DATA, labelled=False).column_names


def test_pairs(tokenizer: PreTrainedTokenizerBase) -> None:
    task = SequenceClassification(tokenizer, text_pair_column="other")
    features = task.prepare(DATA, labelled=False)
    assert features[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert task.prepare_inputs([("a film", "fine")])[0] == features[0]


def test_inputs_are_all_texts_or_all_pairs(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="inputs: expected texts, or pairs of texts"):
        SequenceClassification(tokenizer).prepare_inputs(["a", ("a", "film")])


def test_truncation_is_said(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    task = SequenceClassification(tokenizer, max_length=4)
    with caplog.at_level(logging.WARNING):
        features = task.prepare(DATA, labelled=False)
    assert [len(row) for row in features["input_ids"]] == [4, 4]
    assert caplog.messages == ["1 of 2 examples were cut to 4 tokens"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text_column": "texts"},
            "text_column: expected one of the data's columns, text, other,",
        ),
        ({"text_pair_column": "b"}, "text_pair_column: expected one of the data's .* got 'b'"),
        ({"label_column": "c"}, "label_column: expected one of the data's .* got 'c'"),
        ({"labels": ("x", "z")}, "label: expected one of the task's labels, x, z, got 'y'"),
    ],
)
def test_errors(tokenizer: PreTrainedTokenizerBase, columns: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceClassification(tokenizer, **columns).prepare(DATA)


def test_missing_value(tokenizer: PreTrainedTokenizerBase) -> None:
    data = Dataset.from_dict({"text": ["a", None], "label": ["x", "y"]})
    with pytest.raises(ValueError, match="text_column: example 1 has no 'text'"):
        SequenceClassification(tokenizer, ("x", "y")).prepare(data)


def test_answers_and_scores(tokenizer: PreTrainedTokenizerBase) -> None:
    task = SequenceClassification(tokenizer, labels=("x", "y"))
    answer = task.decode([torch.tensor([0.0, np.log(3.0)])], [{}])
    assert answer == {"label": "y", "score": 0.75}
    references = ["x", "x", "x", "y"]
    given = [{"label": label} for label in "xxyy"]
    assert task.score(given, references) == {
        "accuracy": 0.75,
        "macro_f1": pytest.approx((0.8 + 2 / 3) / 2),
    }
    assert task.majority(references)["accuracy"] == 0.75
    assert task.references(Dataset.from_dict({"label": ["y", "x"]})) == ["y", "x"]

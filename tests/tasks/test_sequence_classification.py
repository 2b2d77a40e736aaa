"""Texts and pairs to features; logits to labels; scores."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.metrics import f1_score
from transformers import PreTrainedTokenizerBase

from ptv2.tasks import Collator, SequenceClassification, load_data
from tests.encoder import write_csv

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
    assert caplog.messages == ["1 of 2 inputs were cut to 4 tokens"]


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


NUMBERS = Dataset.from_dict({"text": ["a", "a film", "dull"], "label": [0.5, 2.0, -1.0]})
SETS = Dataset.from_dict({"text": ["a", "film", "in"], "label": [["y", "x"], [], ["x"]]})


def test_numbers_are_a_regression(tokenizer: PreTrainedTokenizerBase) -> None:
    task = SequenceClassification(tokenizer).fit_labels(NUMBERS)
    assert (task.labels, task.best_metric, task.regression) == (("label",), "pearson", True)
    batch = Collator(task)(list(task.prepare(NUMBERS)))
    assert batch["labels"].tolist() == [0.5, 2.0, -1.0]
    assert batch["labels"].dtype == torch.float32
    assert task.decode([torch.tensor([1.25])], [{}]) == {"value": 1.25}
    given = [{"value": value} for value in (1.0, 4.0, -2.0)]
    scores = task.score(given, task.references(NUMBERS))
    assert scores == {"pearson": pytest.approx(1.0), "spearman": 1.0, "mse": (0.25 + 4 + 1) / 3}
    assert task.majority([1.0, 3.0]) == {"pearson": 0.0, "spearman": 0.0, "mse": 1.0}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_is_finite(tokenizer: PreTrainedTokenizerBase, value: float) -> None:
    data = Dataset.from_dict({"text": ["a", "b"], "label": [0.5, value]})
    task = SequenceClassification(tokenizer).fit_labels(data)
    with pytest.raises(ValueError, match="label: expected a finite number in example 1, got"):
        task.prepare(data)


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ([[0.5, 1.5], [1, 2]], True),
        ([[1.0, 2.0]], True),
        ([["4.75", "3", "-1e-2"]], True),
        ([["4.75", "3"], [1.5]], True),
        ([["1.0", "2.0"]], False),
        ([["1", "2"], [1, 2]], False),
        ([["nan", "5"]], False),
        ([["1.5", "two"]], False),
        ([["1_0.5", "2"]], False),
        ([[True, False]], False),
    ],
)
def test_which_labels_are_numbers(
    tokenizer: PreTrainedTokenizerBase, parts: list, found: bool
) -> None:
    data = [Dataset.from_dict({"label": part}) for part in parts]
    task = SequenceClassification(tokenizer).fit_labels(*data)
    assert task.regression == found
    if found:
        assert task.references(data[0]) == [float(value) for value in parts[0]]
    else:
        assert task.labels == tuple(sorted({str(value) for part in parts for value in part}))


@pytest.mark.parametrize(
    "missing",
    ["nan", "-NaN", "inf", " -Infinity", "1e400", "N/A", "#N/A", "NA", "null", "None", ""],
)
def test_no_number_is_missing_in_a_regression(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, missing: str
) -> None:
    rows = [{"text": str(number), "label": number} for number in (0.5, 1.5, 2)]
    whole = load_data(write_csv(tmp_path / "whole.csv", rows))
    rows[1]["label"] = missing
    part = load_data(write_csv(tmp_path / "part.csv", rows))
    for data in ([part], [whole, part]):
        message = (
            rf"label: expected a finite number in .*\(line 3 of part\.csv\).*, got {missing!r}"
        )
        with pytest.raises(ValueError, match=message):
            SequenceClassification(tokenizer).fit_labels(*data)
    chosen = SequenceClassification(tokenizer, labels=("0.5", "1.5", "nan"))
    data = Dataset.from_dict({"label": ["nan", "0.5"]})
    assert chosen.fit_labels(data).references(data) == ["nan", "0.5"]


def test_correlations_are_numbers(tokenizer: PreTrainedTokenizerBase) -> None:
    task = SequenceClassification(tokenizer, labels=("y",))
    wanted = [1.0, 2.0, 4.0, 3.0]
    scores = task.score([{"value": x} for x in (0.1, 0.2, 0.3, 0.4)], wanted)
    assert scores["pearson"] == pytest.approx(0.8)
    assert scores["spearman"] == pytest.approx(0.8)
    for odd in ([0.1] * 4, [float("nan"), 1, 2, 3], [float("inf"), 1, 2, 3]):
        scores = task.score([{"value": value} for value in odd], wanted)
        assert scores["pearson"] == 0
    scores = task.score([{"value": 1 + i * 1e-15} for i in range(4)], wanted)
    assert scores["spearman"] == pytest.approx(0.8)
    assert task.score([{"value": 2.0}], [1.0]) == {"pearson": 0, "spearman": 0, "mse": 1}


def test_given_labels_are_kept(tokenizer: PreTrainedTokenizerBase) -> None:
    data = Dataset.from_dict({"text": ["a", "b"], "label": ["1", "2"]})
    task = SequenceClassification(tokenizer, labels=("2", "1", "3")).fit_labels(data)
    assert task.labels == ("2", "1", "3")
    assert task.prepare(data)["labels"][:] == [1, 0]
    number = SequenceClassification(tokenizer, labels=("score",)).fit_labels(data)
    assert number.regression
    assert number.prepare(data)["labels"][:] == [1.0, 2.0]
    with pytest.raises(ValueError, match="label: expected one of the task's labels, 1, got '2'"):
        SequenceClassification(tokenizer, ("1",), multi_label=True).fit_labels(
            Dataset.from_dict({"label": [["1"], ["2"]]})
        )
    with pytest.raises(ValueError, match="label: expected a list of labels, got '1' in example 0"):
        SequenceClassification(tokenizer, multi_label=True).fit_labels(data)


def test_lists_are_several_labels(tokenizer: PreTrainedTokenizerBase) -> None:
    task = SequenceClassification(tokenizer).fit_labels(SETS)
    assert (task.labels, task.best_metric, task.multi_label) == (("x", "y"), "micro_f1", True)
    batch = Collator(task)(list(task.prepare(SETS)))
    assert batch["labels"].tolist() == [[1, 1], [0, 0], [1, 0]]
    answer = task.decode([torch.tensor([0.0, 2.0])], [{}])
    assert answer == {"labels": ["y"], "scores": {"x": 0.5, "y": 0.8808}}
    references = task.references(SETS)
    assert references == [["x", "y"], [], ["x"]]
    given = [{"labels": labels} for labels in (["x"], ["y"], ["x"])]
    scores = task.score(given, references)
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["micro_f1"] == pytest.approx(2 / 3)  # 2 right of 3 given and 3 wanted
    assert scores["macro_f1"] == pytest.approx(0.5)
    assert task.majority([["x"], ["x"], []])["accuracy"] == pytest.approx(2 / 3)


def test_odd_labels(tokenizer: PreTrainedTokenizerBase) -> None:
    task = SequenceClassification(tokenizer).fit_labels(SETS)
    other = Dataset.from_dict({"text": ["a"], "label": ["x"]})
    with pytest.raises(ValueError, match="label: expected a list of labels, got 'x' in example 0"):
        task.prepare(other)
    unknown = Dataset.from_dict({"text": ["a"], "label": [["z"]]})
    with pytest.raises(ValueError, match="label: expected one of the task's labels, x, y, got"):
        task.prepare(unknown)
    with pytest.raises(ValueError, match="label_column: expected at least two labels, got"):
        SequenceClassification(tokenizer).fit_labels(Dataset.from_dict({"label": [1, 1]}))
    for labels, message in (
        ([["x"], ["x", "x"]], r"label: expected a list of distinct labels, .* got \['x', 'x'\]"),
        ([["x"], ["y", None]], "label_column: expected names .* got None in example 1"),
        ([[0.0], [1.0]], "label_column: expected names .* got 0.0 in example 0"),
        (["x", ""], "label_column: expected names .* got '' in example 1"),
        ([0, -1], "label_column: expected names .* got -1 in example 1"),
    ):
        with pytest.raises(ValueError, match=message):
            SequenceClassification(tokenizer).fit_labels(Dataset.from_dict({"label": labels}))


def test_scores_of_sets(tokenizer: PreTrainedTokenizerBase) -> None:
    draw = np.random.default_rng(0)
    for names in (("x",), ("x", "y", "z")):
        task = SequenceClassification(tokenizer, names, multi_label=True)
        wanted, given = draw.random((2, 9, len(names))) < 0.4
        rows = [
            [[n for n, one in zip(names, row, strict=True) if one] for row in x]
            for x in (wanted, given)
        ]
        scores = task.score([{"labels": row} for row in rows[1]], rows[0])
        of_each = [f1_score(wanted[:, i], given[:, i]) for i in range(len(names))]
        assert scores == {
            "accuracy": pytest.approx(np.mean([a == b for a, b in zip(*rows, strict=True)])),
            "macro_f1": pytest.approx(np.mean(of_each)),
            "micro_f1": pytest.approx(f1_score(wanted.ravel(), given.ravel())),
        }
        assert task.score([{"labels": []}], [[]]) == {"accuracy": 1, "macro_f1": 0, "micro_f1": 0}


@pytest.mark.parametrize("value", [["a"], {"a": 1}])
def test_what_is_no_text(tokenizer: PreTrainedTokenizerBase, value: object) -> None:
    data = Dataset.from_dict({"text": [value], "other": ["a"], "number": [1.5]})
    for columns in ({}, {"text_column": "other", "text_pair_column": "text"}):
        with pytest.raises(
            ValueError, match=r"text_(pair_)?column: expected a text, got .* in exa"
        ):
            SequenceClassification(tokenizer, **columns).prepare(data, labelled=False)
    numbers = SequenceClassification(tokenizer, text_column="number")
    assert len(numbers.prepare(data, labelled=False)) == 1
    for inputs in ([value], [5], [("a", 5)], [("a", "b", "c")]):
        with pytest.raises(ValueError, match="inputs: expected texts, or pairs of texts"):
            SequenceClassification(tokenizer).prepare_inputs(inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("cell", ["-", "?", "missing", "1,234.5", "\u22121.5"])
def test_what_is_no_number_in_a_regression(tmp_path: Path, cell: str) -> None:
    rows = [{"text": str(number), "label": number} for number in (0.5, 1.5, 2)]
    rows.append({"text": "x", "label": cell})
    data = load_data(write_csv(tmp_path / "a.csv", rows))
    message = r"label: expected a finite number in example 3 \(line 5 of a\.csv\)"
    with pytest.raises(ValueError, match=rf"{message}.* got {re.escape(repr(cell))}"):
        SequenceClassification(None).fit_labels(data)  # type: ignore[arg-type]


def test_a_0_or_1_for_each_of_two_labels() -> None:
    data = Dataset.from_dict({"label": [[0, 1], [1, 0], [0, 1]]})
    with pytest.raises(ValueError, match="label_column: expected lists of labels, not a 0 or 1"):
        SequenceClassification(None).fit_labels(data)  # type: ignore[arg-type]
    lists = Dataset.from_dict({"label": [[0, 1], [1], []]})
    assert SequenceClassification(None).fit_labels(lists).labels == ("0", "1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="label_column: expected at least two labels, got"):
        SequenceClassification(None).fit_labels(data.select([]))  # type: ignore[arg-type]

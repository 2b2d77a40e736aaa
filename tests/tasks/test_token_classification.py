"""Words to pieces and back; entity scores."""

import logging

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from ptv2.tasks import Collator, TokenClassification

TOKENS = ["walkings", "in", "rome"]
TAGS = ["B-sport", "O", "B-city"]
DATA = Dataset.from_dict({"tokens": [TOKENS, ["rome"]], "tags": [TAGS, ["B-city"]]})


def test_a_word_is_labelled_at_its_first_piece(tokenizer: PreTrainedTokenizerBase) -> None:
    task = TokenClassification(tokenizer).fit_labels(DATA)
    features = task.prepare(DATA)
    assert task.labels == ("B-city", "B-sport", "O")
    assert tokenizer.convert_ids_to_tokens(features[0]["input_ids"]) == [
        "[CLS]", "walk", "##ing", "##s", "in", "rome", "[SEP]",
    ]  # fmt: skip
    assert features[0]["labels"] == [-100, 1, -100, -100, 2, 0, -100]
    assert features[0]["word_starts"] == [1, 4, 5]
    assert Collator(task)(list(features))["labels"][1].tolist() == [-100, 0] + [-100] * 5


def test_lists_and_texts_are_the_same(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = Dataset.from_dict(
        {name: [" ".join(row) for row in DATA[name]] for name in ("tokens", "tags")}
    )
    task = TokenClassification(tokenizer).fit_labels(DATA)
    assert task.fit_labels(texts).labels == task.labels
    assert task.prepare(texts).to_list() == task.prepare(DATA).to_list()
    assert task.prepare_inputs(["walkings in rome"])[0]["word_starts"] == [1, 4, 5]


def test_class_labels_of_tags(tokenizer: PreTrainedTokenizerBase) -> None:
    names = ClassLabel(names=["O", "B-city"])
    features = Features({"tokens": List(Value("string")), "tags": List(names)})
    data = Dataset.from_dict({"tokens": [["in", "rome"]], "tags": [[0, 1]]}, features=features)
    task = TokenClassification(tokenizer).fit_labels(data)
    assert task.labels == ("O", "B-city")
    assert task.prepare(data)[0]["labels"] == [-100, 0, 1, -100]


def test_truncation_is_said(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    task = TokenClassification(tokenizer, max_length=5).fit_labels(DATA)
    with caplog.at_level(logging.WARNING):
        features = task.prepare(DATA)
    assert features[0]["word_starts"] == [1, -1, -1]
    assert caplog.messages == [
        "1 of 2 examples were cut to 5 tokens",
        "2 words were cut off or have no word piece: they get no tag",
    ]
    answer = task.decode([torch.zeros(5, 3)], [features[0]])
    assert answer == {"tags": ["B-city", None, None]}


def test_ragged_tags(tokenizer: PreTrainedTokenizerBase) -> None:
    data = Dataset.from_dict({"tokens": [["a"], ["a", "b"]], "tags": [["O"], ["O"]]})
    task = TokenClassification(tokenizer).fit_labels(data)
    message = "tags_column: expected one tag a word, but example 1 has 2 words and 1 tags"
    with pytest.raises(ValueError, match=message):
        task.prepare(data)


def test_unknown_tag(tokenizer: PreTrainedTokenizerBase) -> None:
    task = TokenClassification(tokenizer, labels=("O", "B-city"))
    with pytest.raises(
        ValueError, match="tags: expected one of the task's labels, O, B-city, got"
    ):
        task.prepare(DATA)


def test_entity_scores_count_whole_entities(tokenizer: PreTrainedTokenizerBase) -> None:
    task = TokenClassification(tokenizer, labels=("O", "B-x", "I-x"))
    references = [["B-x", "I-x", "O", "B-x"]]
    answers = [{"tags": ["B-x", "O", None, "B-x"]}]  # the first entity is cut short
    assert task.score(answers, references) == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert task.majority(references)["f1"] > 0  # the commonest tag here is B-x


def test_tags_without_a_scheme_count_word_by_word(tokenizer: PreTrainedTokenizerBase) -> None:
    task = TokenClassification(tokenizer, labels=("NOUN", "VERB"))
    scores = task.score([{"tags": ["NOUN", "VERB", "VERB"]}], [["NOUN", "NOUN", "VERB"]])
    assert scores == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})

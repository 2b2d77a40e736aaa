"""Words to pieces and back; entity scores."""

import logging

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from ptv2.tasks import Collator, TokenClassification
from ptv2.tasks.task import decode_all
from ptv2.tasks.token_classification import _word_starts

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


def test_a_long_sentence_is_read_in_windows(tokenizer: PreTrainedTokenizerBase) -> None:
    words = ["walkings", "in", "rome", "a", "fine", "film", "walking", "in", "paris", "dull"]
    tags = [f"t{i}" for i in range(len(words))]
    data = Dataset.from_dict({"tokens": [words, ["rome"]], "tags": [tags, ["t0"]]})
    task = TokenClassification(tokenizer, max_length=7, stride=2).fit_labels(data)
    features = list(task.prepare(data))
    assert [row["example"] for row in features] == [0, 0, 0, 0, 1]
    for word in range(len(words)):
        starts = [row["word_starts"][word] for row in features[:-1]]
        assert sum(start >= 0 for start in starts) == 1
    pieces = [tokenizer.tokenize(word)[0] for word in words]
    for row in features[:-1]:
        assert len(row["input_ids"]) <= 7
        read = {start: word for word, start in enumerate(row["word_starts"]) if start >= 0}
        for place, label in enumerate(row["labels"]):
            assert (label == -100) == (place not in read)
            if place in read:
                assert task.labels[label] == tags[read[place]]
                token = tokenizer.convert_ids_to_tokens(row["input_ids"][place])
                assert token == pieces[read[place]]
    logits = []
    for row in features:
        one = torch.zeros(len(row["input_ids"]), len(task.labels))
        for place, label in enumerate(row["labels"]):
            one[place, label if label >= 0 else 0] = 1
        logits.append(one)
    answers = decode_all(task, features, logits)
    assert [answer["tags"] for answer in answers] == [tags, ["t0"]]


def test_a_word_is_read_where_most_is_around_it() -> None:
    ids = list(range(10))
    windows = [[None, *ids[:6], None], [None, *ids[2:8], None], [None, *ids[4:], None]]
    starts = _word_starts(windows, 10, 2)
    found = [next(i for i, row in enumerate(starts) if row[word] >= 0) for word in ids]
    assert found == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]


def test_a_word_longer_than_a_window(tokenizer: PreTrainedTokenizerBase) -> None:
    task = TokenClassification(tokenizer, ("O",), max_length=5, stride=1)
    word = "walk" + "ings" * 9
    features = list(task.prepare_inputs([[word, "in"]]))
    starts = [row["word_starts"] for row in features]
    assert starts[0][0] == 1
    assert all(start[0] == -1 for start in starts[1:])
    assert sum(start[1] >= 0 for start in starts) == 1


def test_words_without_a_piece_get_no_tag(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["in", "", "rome", " ", "\u0085", "a"]
    data = Dataset.from_dict({"tokens": [words], "tags": [["O", "B-x", "O", "O", "B-x", "O"]]})
    task = TokenClassification(tokenizer).fit_labels(data)
    with caplog.at_level(logging.WARNING):
        (feature,) = task.prepare(data)
    assert [start >= 0 for start in feature["word_starts"]] == [
        True,
        False,
        True,
        False,
        False,
        True,
    ]
    assert caplog.messages == ["3 words have no word piece: they get no tag"]
    length = len(feature["input_ids"])
    answer = task.decode([torch.zeros(length, 2)], [feature])
    assert answer == {"tags": ["B-x", None, "B-x", None, None, "B-x"]}
    assert task.score([answer], task.references(data))["f1"] == 0


@pytest.mark.parametrize(
    ("expected", "given", "f1"),
    [
        ("B-x I-x O B-y", "B-x I-x O B-y", 1),
        ("B-x I-x O B-y", "B-x O O B-y", 0.5),
        ("B-x I-x O B-y", "I-x I-x O I-y", 1),  # conlleval: an entity may begin with I
        ("B-x B-x", "B-x I-x", 0),
        ("I-x I-x O I-y", "I-x I-x O I-y", 1),  # IO
        ("I-x I-x I-y", "I-x I-y I-y", 0),
        ("I-x B-x I-x", "I-x I-x I-x", 0),  # IOB1: B parts neighbours
        ("B-x I-x E-x S-y", "B-x I-x E-x S-y", 1),  # IOBES
        ("S-x S-x", "B-x E-x", 0),
        ("B-x E-x B-x E-x", "B-x E-x S-x S-x", 0.4),
        ("B-x I-x L-x U-y", "B-x I-x L-x U-y", 1),  # BILOU
        ("U-x U-x", "B-x L-x", 0),
        ("B I O B", "B I O O", 2 / 3),  # chunks of one kind
        ("O O", "O O", 0),
    ],
)
def test_every_scheme_is_scored_as_its_entities(
    tokenizer: PreTrainedTokenizerBase, expected: str, given: str, f1: float
) -> None:
    labels = tuple(sorted({*expected.split(), *given.split()}))
    task = TokenClassification(tokenizer, labels)
    found = task.score([{"tags": given.split()}], [expected.split()])
    assert found["f1"] == pytest.approx(f1)


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

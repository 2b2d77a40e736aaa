"""Words to pieces and back; entity scores."""

import copy
import logging

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from tokenizers import normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, RobertaTokenizerFast

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
    odd = Dataset.from_dict({"tokens": [" in\u00a0\u0085rome  a\n"], "tags": ["O\tO"]})
    assert task.prepare(odd)[0]["word_starts"] == [1, 3]


def test_class_labels_of_tags(tokenizer: PreTrainedTokenizerBase) -> None:
    names = ClassLabel(names=["O", "B-city"])
    features = Features({"tokens": List(Value("string")), "tags": List(names)})
    data = Dataset.from_dict({"tokens": [["in", "rome"]], "tags": [[0, 1]]}, features=features)
    task = TokenClassification(tokenizer).fit_labels(data)
    assert task.labels == ("O", "B-city")
    assert task.prepare(data)[0]["labels"] == [-100, 0, 1, -100]


LONG = ["walkings", "in", "", "rome", "a", "fine", "film", "walking", "in", "paris", "dull", ""]


@pytest.mark.parametrize(("max_length", "stride"), [(3, 0), (5, 1), (7, 2), (7, 64), (9, 0)])
def test_windows_share_out_the_words_of_a_long_sentence(
    tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int
) -> None:
    """What a model that sees one token at a time answers is the same in windows."""
    tags = [f"t{i}" for i in range(len(LONG))]
    data = Dataset.from_dict(
        {"tokens": [["rome"], LONG, [], ["a"]], "tags": [["t3"], tags, [], ["t4"]]}
    )
    task = TokenClassification(tokenizer, max_length=max_length, stride=stride).fit_labels(data)
    features = list(task.prepare(data))
    of_long = [row for row in features if row["example"] == 1]
    assert len(of_long) > 1
    assert [row["example"] for row in features] == [0, *[1] * len(of_long), 2, 3]
    read = [
        (
            tokenizer.convert_ids_to_tokens(row["input_ids"][place]),
            task.labels[row["labels"][place]],
        )
        for row in of_long
        for place in row["word_starts"]
        if place >= 0
    ]
    assert read == [
        (tokenizer.tokenize(word)[0], tag) for word, tag in zip(LONG, tags, strict=True) if word
    ]
    for row in features:
        assert len(row["input_ids"]) <= max_length
        labelled = [place for place, label in enumerate(row["labels"]) if label >= 0]
        assert labelled == [place for place in row["word_starts"] if place >= 0]

    table = torch.randn(len(tokenizer), len(task.labels))
    whole = TokenClassification(tokenizer, task.labels).prepare(data)
    logits = [[table[row["input_ids"]] for row in rows] for rows in (features, list(whole))]
    answers = decode_all(task, features, logits[0])
    assert answers == decode_all(task, list(whole), logits[1])
    assert [len(answer["tags"]) for answer in answers] == [1, len(LONG), 0, 1]


def test_a_word_is_read_where_most_is_around_it() -> None:
    ids = list(range(10))
    windows = [[None, *ids[:6], None], [None, *ids[2:8], None], [None, *ids[4:], None]]
    starts = _word_starts(windows, 10)
    assert starts == [[1, 2, 3, 4], [3, 4], [3, 4, 5, 6]]


def test_a_word_longer_than_a_window(tokenizer: PreTrainedTokenizerBase) -> None:
    task = TokenClassification(tokenizer, ("O",), max_length=5, stride=1)
    word = "walk" + "ings" * 9
    for words in ([word, "in"], ["in", word, "in"], [word, word]):
        features = list(task.prepare_inputs([words]))
        assert len(features) > 5
        read = [
            tokenizer.convert_ids_to_tokens(row["input_ids"][place])
            for row in features
            for place in row["word_starts"]
        ]
        assert read == ["walk" if other == word else "in" for other in words]


def test_more_sentences_than_are_tokenised_at_once(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TokenClassification(tokenizer, max_length=5)
    inputs = [["rome"], LONG, LONG, ["a"], LONG]
    expected = task.prepare_inputs(inputs)
    monkeypatch.setattr("ptv2.tasks.token_classification.CHUNK", 2)
    assert task.prepare_inputs(inputs) == expected
    assert sorted({row["example"] for row in expected}) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": -1}, "stride: expected an int of at least 0, got -1"),
        ({"stride": 1.5}, "stride: expected an int of at least 0, got 1.5"),
        ({"max_length": 2}, "max_length: expected at least 3 tokens, got 2"),
    ],
)
def test_limits(tokenizer: PreTrainedTokenizerBase, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenClassification(tokenizer, ("O",), **options).prepare_inputs([["a"]])


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
        ("B-x E-x S-y O", "B-x E-y S-y O", 0.4),  # ill-formed: two entities of one word
        ("B-x I-x E-x O", "O I-x E-x O", 0),
        ("B-x E-x O S-x", "I-x E-x O B-x", 1),  # a start is wanted nowhere
        ("B-x E-x B-x E-x", "B-x I-x B-x I-x", 1),  # nor an end
        ("B-x I-x L-x U-x", "B-x L-x L-x B-x", 0.4),
        ("B-x L-x U-x U-x", "B-x L-x U-x I-x", 1),
        ("B-x M-x E-x S-y", "B-x M-x E-x S-y", 1),  # BMES
        ("B-x M-x M-x E-x", "B-x M-x B-x E-x", 0),
        ("B-a-b I-a-b O", "B-a-b I-a-b O", 1),  # a type with a hyphen
        ("B I O B", "B I O O", 2 / 3),  # chunks of one kind
        ("B E S S", "B E B E", 0.4),
        ("O x x y", "O x x y", 1),  # types, of which neighbours make one entity
        ("O x x y", "O x O y", 0.5),
        ("O x x y", "O x y y", 0),
        ("DET NOUN VERB", "DET NOUN NOUN", 2 / 3),
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
    for read in (task.prepare, task.references):
        with pytest.raises(ValueError, match=message):
            read(data)


@pytest.mark.parametrize("tag", [None, -100, -1])
def test_data_without_tags(tokenizer: PreTrainedTokenizerBase, tag: int | None) -> None:
    names = List(ClassLabel(names=["O", "B-city"]))
    plain = {"tokens": [["a"], ["in", "rome"]], "tags": [[0], [1, tag]]}
    known = Features({"tokens": List(Value("string")), "tags": names})
    for data in (Dataset.from_dict(plain), Dataset.from_dict(plain, features=known)):
        task = TokenClassification(tokenizer, ("0", "1"))
        for read in (task.fit_labels, task.prepare, task.references):
            with pytest.raises(ValueError, match=f"tags_column: .* got {tag} in example 1"):
                read(data)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", None], r"tokens_column: expected words, got \['a', None\] in example 0"),
        ([1, 2], r"tokens_column: expected words, got \[1, 2\] in example 0"),
        (1, "tokens_column: expected a list or a text, got 1 in example 0"),
    ],
)
def test_what_is_no_word(tokenizer: PreTrainedTokenizerBase, words: object, message: str) -> None:
    data = Dataset.from_dict({"tokens": [words]})
    with pytest.raises(ValueError, match=message):
        TokenClassification(tokenizer, ("O",)).prepare(data, labelled=False)
    with pytest.raises(ValueError, match="inputs: expected texts or lists of words, got"):
        TokenClassification(tokenizer, ("O",)).prepare_inputs(["a", words])  # type: ignore[list-item]


def test_control_and_zero_width_characters(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    """BERT's normalizer removes them, so that nothing is left of some words."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bert = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=6,
        model_input_names=tokenizer.model_input_names,
    )
    odd = ["\u200b", "\ufeff", "\u00ad", "\u200d", "\x00", "\x7f", "\u2028", "\ufffd", "", "\t"]
    words = [word for other in odd for word in (other, f"{other}rome")]
    task = TokenClassification(bert, ("O", "B-x"))
    features = list(task.prepare_inputs([words, odd]))
    logits = [torch.eye(2)[[1] * len(row["input_ids"])] for row in features]
    answers = decode_all(task, features, logits)
    assert [answer["tags"] for answer in answers] == [[None, "B-x"] * 10, [None] * 10]
    assert caplog.messages == ["20 words have no word piece: they get no tag"]


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


def test_tags_of_two_schemes(tokenizer: PreTrainedTokenizerBase) -> None:
    tags = ["B-x", "I-x", "O", "other"]
    message = "tags_column: expected chunks alone, .* got 'B-x' and 'other'"
    with pytest.raises(ValueError, match=message):
        TokenClassification(tokenizer).fit_labels(Dataset.from_dict({"tags": [tags]}))
    with pytest.raises(ValueError, match=message):
        TokenClassification(tokenizer, tuple(tags)).score([{"tags": tags}], [tags])


def test_sentences_without_words(tokenizer: PreTrainedTokenizerBase) -> None:
    empty = Dataset.from_dict({"tokens": [[], []], "tags": [[], []]})
    with pytest.raises(ValueError, match="tags_column: expected at least one tag, got none"):
        TokenClassification(tokenizer).fit_labels(empty)
    task = TokenClassification(tokenizer, ("O", "B-x"))
    assert task.majority(task.references(empty)) == {"precision": 0, "recall": 0, "f1": 0}
    assert task.fit_labels(empty).labels == ("O", "B-x")


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_byte_level_words_begin_with_a_space(add_prefix_space: bool) -> None:
    """As in a text, whichever way the tokenizer was loaded."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = [*special, *alphabet, "\u0120a", "\u0120b", "ab"]
    byte_level = RobertaTokenizerFast(
        vocab={piece: place for place, piece in enumerate(vocabulary)},
        merges=[("\u0120", "a"), ("\u0120", "b"), ("a", "b")],
        add_prefix_space=add_prefix_space,
        model_max_length=32,
    )
    task = TokenClassification(byte_level, ("O",))
    (feature,) = task.prepare_inputs([["b", "", "ba", "\u00e9"]])
    assert byte_level.convert_ids_to_tokens(feature["input_ids"]) == [
        "<s>", "\u0120b", "\u0120b", "a", "\u0120", "\u00c3", "\u00a9", "</s>",
    ]  # fmt: skip
    assert feature["word_starts"] == [1, -1, 2, 4]

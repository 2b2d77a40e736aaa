"""Windows of contexts, spans of logits, and SQuAD's scores."""

import logging
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ptv2 import PromptConfig
from ptv2.tasks import Collator, QuestionAnswering, contexts

CONTEXT = "a dull film in Rome, walkings in Paris a great film"


def example(question: str, context: str, *answers: str) -> dict[str, Any]:
    """An example whose answers are the first occurrences of texts."""
    starts = [context.index(answer) for answer in answers]
    spans = {"text": list(answers), "answer_start": starts}
    return {"question": question, "context": context, "answers": spans}


def data(*examples: dict[str, Any]) -> Dataset:
    return Dataset.from_list(list(examples))


def pointing(feature: dict[str, Any], start: int, end: int, height: float = 10.0) -> torch.Tensor:
    """Logits (length, 2) of a window that are 0 but for a start and an end."""
    logits = torch.zeros(len(feature["input_ids"]), 2)
    logits[start, 0] = logits[end, 1] = height
    return logits


def texts_of(feature: dict[str, Any], context: str) -> list[str]:
    """The text of every token of the context in a window."""
    spans = zip(feature["token_starts"], feature["token_ends"], strict=True)
    return [context[start:end] for start, end in spans if start >= 0]


def test_a_window_has_the_whole_question_and_offsets_of_the_context(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    task = QuestionAnswering(tokenizer)
    (feature,) = task.prepare(data(example("  walkings in", CONTEXT, "Rome")))
    assert tokenizer.convert_ids_to_tokens(feature["input_ids"])[:9] == [
        "[CLS]", "walk", "##ing", "##s", "in", "[SEP]", "a", "dull", "film",
    ]  # fmt: skip
    assert texts_of(feature, CONTEXT) == [
        "a", "dull", "film", "in", "Rome", ",", "walk", "ing", "s", "in", "Paris", "a", "great",
        "film",
    ]  # fmt: skip
    assert feature["token_starts"][:6] == feature["token_ends"][:6] == [-1] * 6
    assert feature["token_starts"][-1] == -1
    assert (feature["start_positions"], feature["end_positions"]) == (10, 10)
    assert feature["context"] == CONTEXT


def test_windows_overlap_by_the_stride(tokenizer: PreTrainedTokenizerBase) -> None:
    examples = data(example("in", "a film", "film"), example("in", CONTEXT, "Paris", "Rome"))
    task = QuestionAnswering(tokenizer, max_length=10, stride=2)  # 6 tokens of a context
    features = list(task.prepare(examples))
    assert [feature["example"] for feature in features] == [0, 1, 1, 1]
    assert [feature["context"] for feature in features] == ["a film", CONTEXT, "", ""]
    assert [texts_of(feature, CONTEXT) for feature in features[1:]] == [
        ["a", "dull", "film", "in", "Rome", ","],
        ["Rome", ",", "walk", "ing", "s", "in"],
        ["s", "in", "Paris", "a", "great", "film"],
    ]
    labels = [(feature["start_positions"], feature["end_positions"]) for feature in features]
    assert labels == [(4, 4), (0, 0), (0, 0), (5, 5)]  # of the first answer, Paris
    assert task.references(examples)[1] == ["Paris", "Rome"]
    batch = Collator(task)(features)
    assert batch["start_positions"].tolist() == [4, 0, 0, 5]
    assert batch["input_ids"].shape == (4, 10)
    unlabelled = list(task.prepare(examples, labelled=False))
    for feature in features:
        del feature["start_positions"], feature["end_positions"]
    pairs = [("in", "a film"), ("in", CONTEXT)]
    assert unlabelled == features == list(task.prepare_inputs(pairs))


@pytest.mark.parametrize("max_length", range(5, 16))
def test_windows_cover_the_context_whatever_the_room(
    tokenizer: PreTrainedTokenizerBase, max_length: int
) -> None:
    """The default stride is more than these windows hold; questions leave each another room."""
    task = QuestionAnswering(tokenizer, max_length=max_length)
    questions = ["in", "in a"] if max_length > 5 else ["in"]
    features = list(task.prepare_inputs([(question, CONTEXT) for question in questions]))
    for place in range(len(questions)):
        windows = [feature for feature in features if feature["example"] == place]
        assert all(len(window["input_ids"]) <= max_length for window in windows)
        starts = {start for window in windows for start in window["token_starts"]}
        assert starts == {-1, 0, 2, 7, 12, 15, 19, 21, 25, 28, 30, 33, 39, 41, 47}
        alone = list(task.prepare_inputs([(questions[place], CONTEXT)]))
        assert [window | {"example": 0} for window in windows] == alone


def test_an_answer_inside_a_word_is_trained_on_its_tokens(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    task = QuestionAnswering(tokenizer)
    for text, expected in (("ull fil", (5, 6)), ("alkin", (10, 11)), (" in ", (7, 7))):
        (feature,) = task.prepare(data(example("in a", CONTEXT, text)))
        assert (feature["start_positions"], feature["end_positions"]) == expected


def test_an_answer_that_no_window_holds_is_said(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    task = QuestionAnswering(tokenizer, max_length=7)
    with caplog.at_level(logging.WARNING):
        features = task.prepare(data(example("in", CONTEXT, "film in Rome, walkings")))
    assert set(features["start_positions"]) == set(features["end_positions"]) == {-100}
    assert caplog.messages == ["1 answers are whole in no window: they are not trained"]


def test_a_perfect_model_answers_from_every_window(tokenizer: PreTrainedTokenizerBase) -> None:
    task = QuestionAnswering(tokenizer, max_length=10, stride=3)
    for text in ("a", "Rome, walkings", "Paris a great", "great film", "film"):
        windows = list(task.prepare(data(example("in", CONTEXT, text))))
        spans = [(window["start_positions"], window["end_positions"]) for window in windows]
        logits = [
            pointing(window, *span, 10.0 if span[0] else 0.0)
            for window, span in zip(windows, spans, strict=True)
        ]
        start = CONTEXT.index(text)
        answer = task.decode(logits, windows)
        assert answer == {
            "answer": text, "start": start, "end": start + len(text), "score": answer["score"],
        }  # fmt: skip
        assert answer["score"] > 0.99


def test_a_span_that_two_windows_show_counts_once(tokenizer: PreTrainedTokenizerBase) -> None:
    task = QuestionAnswering(tokenizer, max_length=10, stride=2, n_best=2)
    windows = list(task.prepare_inputs([("in", CONTEXT)]))
    logits = [pointing(windows[0], 7, 7, 4.0), pointing(windows[1], 3, 3, 5.0)]
    logits.append(pointing(windows[2], 5, 5, 4.5))
    answer = task.decode(logits, windows)  # Rome at 2 * 5 beside Paris at 2 * 4.5
    assert answer["answer"] == "Rome"
    assert answer["score"] == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-4)


def test_spans_lie_in_the_context_in_order_and_are_short(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Beside a plain search over all pairs of tokens."""
    for seed in range(20):
        torch.manual_seed(seed)
        task = QuestionAnswering(tokenizer, max_length=9 + seed % 5, max_answer_length=1 + seed)
        windows = list(task.prepare_inputs([("in", CONTEXT)]))
        logits = [torch.randn(len(window["input_ids"]), 2) for window in windows]
        for window_logits in logits:
            window_logits[:3] += 20  # the question and what surrounds it
        found: dict[tuple[int, int], float] = {}
        for rows, window in zip(logits, windows, strict=True):
            for i, start in enumerate(window["token_starts"]):
                for j, end in enumerate(window["token_ends"]):
                    if start >= 0 and end >= 0 and i <= j <= i + seed:
                        score = float(rows[i, 0] + rows[j, 1])
                        found[start, end] = max(score, found.get((start, end), score))
        (start, end), _ = max(found.items(), key=lambda item: item[1])
        scores = torch.tensor(sorted(found.values(), reverse=True)[:20])
        answer = task.decode(logits, windows)
        assert (answer["start"], answer["end"]) == (start, end)
        assert answer["answer"] == CONTEXT[start:end]
        assert answer["score"] == pytest.approx(float(scores.softmax(0)[0]), abs=1e-4)


def test_no_answer_is_the_lowest_first_token_of_the_windows(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    task = QuestionAnswering(tokenizer, max_length=10, stride=2, no_answer=True)
    windows = list(task.prepare_inputs([("in", CONTEXT)]))
    logits = [pointing(window, 0, 0, 9.0) for window in windows]
    none = task.decode(logits, windows)
    assert (none["answer"], none["start"], none["end"]) == ("", -1, -1)
    assert none["score"] > 0.99
    logits[1] = pointing(windows[1], 3, 3, 2.0)
    assert task.decode(logits, windows)["answer"] == "Rome"  # that window has 0 for none, 4 for it
    logits[1][0] = 3.0
    rejected = task.decode(logits, windows)
    assert (rejected["answer"], rejected["span"], rejected["null"]) == ("", "Rome", 2.0)  # 6 - 4
    scores = task.score([rejected], [["Rome"]])
    assert "best_f1" not in scores  # every question has an answer
    scores = task.score([rejected, none], [["Rome"], []])
    assert (scores["f1"], scores["best_f1"]) == (0.5, 1.0)
    assert 2 < scores["best_f1_threshold"] < none["null"]
    careful = QuestionAnswering(
        tokenizer, max_length=10, stride=2, no_answer=True, null_threshold=2.0
    )
    assert careful.decode(logits, windows)["answer"] == "Rome"  # not more than 2
    forced = QuestionAnswering(tokenizer, max_length=10, stride=2)
    assert forced.decode(logits, windows)["answer"] == "Rome"


def test_logits_that_are_not_numbers(tokenizer: PreTrainedTokenizerBase) -> None:
    task = QuestionAnswering(tokenizer)
    (window,) = task.prepare_inputs([("in", "a film")])
    for value in (float("nan"), -math.inf):
        answer = task.decode([torch.full((6, 2), value)], [window])
        assert answer["answer"] in ("a", "film", "a film")
        assert math.isnan(answer["score"])


def test_offsets_count_characters(tokenizer: PreTrainedTokenizerBase) -> None:
    context = "😀é日本 e\u0301 İstanbul film 🇫🇷 in   Rome\u00a0."
    task = QuestionAnswering(tokenizer)
    for text in ("😀é日本", "film 🇫🇷 in   Rome", "İstanbul", "Rome"):
        (window,) = task.prepare(data(example("in", context, text)))
        span = window["start_positions"], window["end_positions"]
        answer = task.decode([pointing(window, *span)], [window])
        assert answer["answer"] == text
        assert context[answer["start"] : answer["end"]] == text


def byte_level(trim_offsets: bool) -> PreTrainedTokenizerBase:
    """A tokenizer of bytes, a space before a word among them: <s> question </s></s> context </s>.

    Its model takes no token types, and a character has as many tokens as bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    merges = [("Ġ", "R"), ("o", "m"), ("om", "e")]
    for merge in merges:
        vocabulary["".join(merge)] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 1), ("<s>", 0), trim_offsets=trim_offsets, add_prefix_space=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=40, pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_a_tokenizer_of_bytes_with_spaces_in_its_tokens(trim_offsets: bool) -> None:
    context = "in 😀 or\n  Rome é."
    task = QuestionAnswering(byte_level(trim_offsets), max_length=20, stride=6)
    for text in ("Rome", "😀", "😀 or", "é"):
        windows = list(task.prepare(data(example("wo ?", context, text))))
        assert len(windows) > 1
        assert "token_type_ids" not in windows[0]
        spans = [(window["start_positions"], window["end_positions"]) for window in windows]
        logits = [pointing(window, *span) for window, span in zip(windows, spans, strict=True)]
        answer = task.decode(logits, windows)
        assert (answer["answer"], answer["start"]) == (text, context.index(text))


def test_a_window_without_text() -> None:
    context = "in" + 40 * " " + "Rome"
    task = QuestionAnswering(byte_level(trim_offsets=False), max_length=20, stride=6)
    windows = list(task.prepare(data(example("wo", context, "Rome"))))
    assert any(window["token_starts"] == window["token_ends"] for window in windows)
    spans = [(window["start_positions"], window["end_positions"]) for window in windows]
    logits = [pointing(window, *span) for window, span in zip(windows, spans, strict=True)]
    assert task.decode(logits, windows)["answer"] == "Rome"


def test_a_context_without_text(tokenizer: PreTrainedTokenizerBase) -> None:
    task = QuestionAnswering(tokenizer)
    for context in ("", " \n\u00a0"):
        with pytest.raises(ValueError, match="context_column: expected a text, but example 1 has"):
            task.prepare_inputs([("in", "a film"), ("in", context)])


def test_a_question_that_leaves_no_room(tokenizer: PreTrainedTokenizerBase) -> None:
    message = "room for a context, but the question of example 1 takes 29 of 29 tokens"
    with pytest.raises(ValueError, match=message):
        QuestionAnswering(tokenizer).prepare_inputs([("in", "a"), ("film " * 29, "a")])
    with pytest.raises(ValueError, match="max_length: expected at least 4 tokens, got 3"):
        QuestionAnswering(tokenizer, max_length=3).prepare_inputs([("in", "a")])
    (window,) = QuestionAnswering(tokenizer).prepare_inputs([("film " * 28, "a")])
    assert len(window["input_ids"]) == 32


def test_an_empty_question_and_no_inputs(tokenizer: PreTrainedTokenizerBase) -> None:
    task = QuestionAnswering(tokenizer)
    (window,) = task.prepare_inputs([("", "a film")])
    assert texts_of(window, "a film") == ["a", "film"]
    assert len(task.prepare_inputs([])) == 0


@pytest.mark.parametrize("inputs", ["in", ("in",), ("in", "a", "b"), ("in", None), 3])
def test_inputs_that_are_no_pairs(tokenizer: PreTrainedTokenizerBase, inputs: Any) -> None:
    with pytest.raises(ValueError, match=r"inputs: expected \(question, context\)s, got .* 1"):
        QuestionAnswering(tokenizer).prepare_inputs([("in", "a film"), inputs])


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": ["film"], "answer_start": [3]}, "example 0 has not 'film' at character 3"),
        ({"text": ["film"], "answer_start": [-4]}, "has not 'film' at character -4"),
        ({"text": [""], "answer_start": [0]}, "has not '' at character 0"),
        ({"text": ["film"], "answer_start": ["2"]}, "has not 'film' at character 2"),
        ({"text": [2], "answer_start": [2]}, "has not 2 at character 2"),
        ({"text": ["film"], "answer_start": [None]}, "has not 'film' at character None"),
        ({"text": ["film"], "answer_start": []}, r'answers: expected {"text": \[...\], "answer_s'),
        ({"text": ["film"]}, "but example 0 has {'text'"),
        ("film", "but example 0 has 'film'"),
        (None, "answers_column: example 0 has no 'answers'"),
    ],
)
def test_bad_answers(tokenizer: PreTrainedTokenizerBase, answers: Any, message: str) -> None:
    rows = data({"question": "in", "context": "a film", "answers": answers})
    for read in (QuestionAnswering(tokenizer).prepare, QuestionAnswering(tokenizer).references):
        with pytest.raises(ValueError, match=message):
            read(rows)


def test_columns_and_settings(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = data(example("in", CONTEXT, "Rome")).rename_columns(
        {"question": "q", "context": "c", "answers": "a"}
    )
    with pytest.raises(ValueError, match="question_column: expected one of the data's columns, q"):
        QuestionAnswering(tokenizer).prepare(rows, labelled=False)
    columns = {"question_column": "q", "context_column": "c", "answers_column": "a"}
    task = QuestionAnswering(tokenizer, **columns)
    assert task.fit_labels(rows).prepare(rows)[0]["start_positions"] == 7
    for name in ("stride", "max_answer_length", "n_best"):
        with pytest.raises(ValueError, match=f"{name}: expected an int of at least"):
            QuestionAnswering(tokenizer, **{name: -1})
    with pytest.raises(ValueError, match="max_windows: expected None or an int of at least 1"):
        QuestionAnswering(tokenizer, max_windows=0)


def test_windows_are_counted_before_they_are_made(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [("in", CONTEXT * 9), ("in", "film"), ("film in", CONTEXT * 3)]
    task = QuestionAnswering(tokenizer, max_length=12, stride=4)
    found = len(task.prepare_inputs(pairs))
    assert found > len(pairs)
    for most in (found, 18 * found * 12):
        assert len(replace(task, max_windows=most).prepare_inputs(pairs)) == found
    made: list[Any] = []
    monkeypatch.setattr(contexts, "_window", lambda *window: made.append(window))
    with pytest.raises(
        ValueError, match=f"at most {found - 1} windows, the contexts take {found}"
    ):
        replace(task, max_windows=found - 1).prepare_inputs(pairs)
    assert not made


def test_questions_without_an_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = data(example("in", CONTEXT, "Rome"), example("in", CONTEXT))
    task = QuestionAnswering(tokenizer)
    assert not task.fit_labels(data(example("in", CONTEXT, "Rome"))).no_answer
    with pytest.raises(ValueError, match="expected an answer, but example 1 has none"):
        task.prepare(rows)
    task = task.fit_labels(data(example("in", CONTEXT, "Rome")), rows)
    assert task.no_answer
    assert task.settings()["no_answer"] is True
    features = task.prepare(rows)
    assert (features[1]["start_positions"], features[1]["end_positions"]) == (0, 0)
    assert task.references(rows) == [["Rome"], []]


def test_only_question_answering_has_no_answer() -> None:
    config = PromptConfig("question-answering", no_answer=True)
    assert PromptConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="no_answer: expected False for feature-extraction"):
        PromptConfig("feature-extraction", no_answer=True)
    with pytest.raises(ValueError, match="no_answer: expected True or False, got 'yes'"):
        PromptConfig("question-answering", no_answer="yes")  # type: ignore[arg-type]


def test_the_commonest_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    task = QuestionAnswering(tokenizer)
    references = [["cat", "cat"], ["dog"], ["dog", "a dog"], ["hat"]]
    assert task.majority(references) == {"exact_match": 0.5, "f1": 0.5}
    scores = task.majority([["cat"], [], ["dog"], []])
    assert (scores["exact_match"], scores["has_answer_f1"], scores["no_answer_f1"]) == (0.5, 0, 1)

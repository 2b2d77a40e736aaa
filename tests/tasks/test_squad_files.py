"""SQuAD's files as published, v1.1 and v2, from the file to features."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from ptv2.tasks import QuestionAnswering, load_data
from ptv2.tasks.data import SOURCE, texts_of

CONTEXT = "a great film in rome"
ANSWERED = {
    "id": "q0",
    "question": "in film",
    "answers": [{"text": "rome", "answer_start": 16}, {"text": "in rome", "answer_start": 13}],
}
IMPOSSIBLE = {
    "id": "q1",
    "question": "in paris",
    "answers": [],
    "is_impossible": True,
    "plausible_answers": [{"text": "rome", "answer_start": 16}],
}


def document(*questions: Any, **paragraph: Any) -> dict[str, Any]:
    """An article with one paragraph, behind one with none."""
    paragraphs = [{"context": CONTEXT, "qas": list(questions)} | paragraph]
    data = [{"title": "none", "paragraphs": []}, {"title": "Rome", "paragraphs": paragraphs}]
    return {"version": "v2.0", "data": data}


def write(path: Path, content: Any, indent: int | None = None) -> Path:
    path.write_text(json.dumps(content, indent=indent))
    return path


@pytest.mark.parametrize("indent", [None, 1])
def test_a_row_a_question(tmp_path: Path, indent: int | None) -> None:
    path = write(tmp_path / "dev.json", document(ANSWERED, IMPOSSIBLE), indent)
    shared = {"title": "Rome", "context": CONTEXT}
    answers = {"text": ["rome", "in rome"], "answer_start": [16, 13]}
    assert load_data(path).to_list() == [
        {
            "id": "q0",
            "question": "in film",
            "answers": answers,
            SOURCE: "data[1].paragraphs[0].qas[0] of dev.json",
            **shared,
        },
        {
            "id": "q1",
            "question": "in paris",
            "answers": {"text": [], "answer_start": []},
            SOURCE: "data[1].paragraphs[0].qas[1] of dev.json",
            **shared,
        },
    ]


def test_questions_of_both_versions_are_trained(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    no_answers = {key: x for key, x in IMPOSSIBLE.items() if key != "answers"}
    for questions, spans in (
        ([ANSWERED], [8]),
        ([ANSWERED, IMPOSSIBLE], [8, 0]),
        ([no_answers, ANSWERED], [0, 8]),
    ):
        data = load_data(write(tmp_path / "train.json", document(*questions)))
        task = QuestionAnswering(tokenizer).fit_labels(data)
        assert task.no_answer == (len(questions) > 1)
        assert task.prepare(data)["start_positions"][:] == spans


def test_questions_to_be_answered_need_no_answers(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    data = load_data(write(tmp_path / "test.json", document({"question": "in film"})))
    assert texts_of(data, "question_column", "question") == ["in film"]
    task = QuestionAnswering(tokenizer)
    assert len(task.prepare(data, labelled=False)) == 1
    with pytest.raises(ValueError, match=r"answers_column: expected one of .* for test\.json"):
        task.prepare(data)


def test_a_misplaced_answer_is_named(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    wrong = ANSWERED | {"answers": [{"text": "rome", "answer_start": 3}]}
    data = load_data(write(tmp_path / "a.json", document(ANSWERED, wrong)))
    message = r"example 1 \(data\[1\]\.paragraphs\[0\]\.qas\[1\] of a\.json\) has not 'rome' at"
    with pytest.raises(ValueError, match=message):
        QuestionAnswering(tokenizer).fit_labels(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": []}, "expected at least one example, got none"),
        ({"data": [5]}, r"data\[0\]: expected a JSON object, got int"),
        ({"data": [{"text": "a"}]}, r"data\[0\]: expected a list as 'paragraphs', got None"),
        (document(context=5), r"data\[1\]\.paragraphs\[0\]: expected a text as 'context', got 5"),
        (document(qas={}), r"paragraphs\[0\]: expected a list as 'qas', got {}"),
        (document(ANSWERED, {}), r"qas\[1\]: expected a text as 'question', got None"),
        (document(ANSWERED | {"answers": "rome"}), r"qas\[0\]: expected a list as 'answers', got"),
        (document(ANSWERED | {"answers": ["rome"]}), r"answers\[0\]: expected a JSON object, got"),
        (
            document(ANSWERED | {"answers": [{"text": "rome"}]}),
            r"qas\[0\]\.answers\[0\]: expected an integer as 'answer_start', got None",
        ),
        (
            document(ANSWERED | {"is_impossible": True}),
            r"qas\[0\]: expected no answers to an impossible question, got some",
        ),
        (document(ANSWERED, IMPOSSIBLE | {"id": 1}), r"qas\[1\]: expected a 'id' of the same ty"),
    ],
)
def test_malformed_files(tmp_path: Path, content: Any, message: str) -> None:
    for indent in (None, 1):
        with pytest.raises(ValueError, match=rf"data file .*a\.json.*{message}"):
            load_data(write(tmp_path / "a.json", content, indent))


def test_files_that_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for indent, line in ((None, 1), (1, 12)):
        text = json.dumps(document(ANSWERED), indent=indent)
        path.write_text(text[: text.index(CONTEXT) + 5])
        with pytest.raises(ValueError, match=f"line {line}: .*, got Unterminated string starting"):
            load_data(path)
    path.write_text('\n{"version": NaN,\n"data": []}')
    with pytest.raises(ValueError, match="line 2: expected a JSON object, got the number NaN"):
        load_data(path)


def test_lines_with_a_column_of_that_name(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"data": [1]}\n{"data": [2]}\n')
    assert load_data(path)["data"][:] == [[1], [2]]
    path.write_text('{"data": "x"}\n')
    assert load_data(path)["data"][:] == ["x"]

"""Reading files, and the messages of what is wrong with them."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ptv2.tasks import (
    SequenceClassification,
    TokenClassification,
    load_data,
    make_task,
)
from ptv2.tasks.data import SOURCE, check_columns, check_labels, data_sha256, texts_of
from tests.encoder import examples, write_csv, write_jsonl


def test_jsonl_and_csv_hold_the_same(tmp_path: Path) -> None:
    rows = examples(5)
    jsonl = load_data(write_jsonl(tmp_path / "a.jsonl", rows))
    delimited = load_data(write_csv(tmp_path / "a.csv", rows))
    assert jsonl.remove_columns(SOURCE).to_list() == rows
    assert jsonl[SOURCE][1] == "line 2 of a.jsonl"
    assert delimited[SOURCE][1] == "line 3 of a.csv"
    assert delimited["text"][:] == jsonl["text"][:]
    assert [row.split() for row in delimited["tokens"]] == [row["tokens"] for row in rows]


def test_csv_keeps_words_that_look_like_missing_values(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nNA,none\nnull,nan\n")
    assert load_data(tmp_path / "a.csv").remove_columns(SOURCE).to_list() == [
        {"text": "NA", "label": "none"},
        {"text": "null", "label": "nan"},
    ]


def test_a_dataset_by_name_with_its_split(tmp_path: Path) -> None:
    folder = tmp_path / "named"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", examples(4))
    write_jsonl(folder / "test.jsonl", examples(3))
    assert len(load_data(folder, "train")) == 4
    test = load_data(f"{folder}:default", "test")
    assert len(test) == 3
    with pytest.raises(ValueError, match=r"label_column: .* got 'c' for the split test$"):
        check_columns(test, label_column="c")


@pytest.mark.parametrize(
    ("suffix", "parts", "message"),
    [
        ("jsonl", ('{"a": "x"}\n', '{"b": "x"}\n'), "Couldn't cast .*column names don't match"),
        ("csv", ("a,b\n1,2\n", "a,c\n1,2\n"), "Schema at index 1 was different: a: .* vs a: "),
        ("jsonl", ('{"a": "x"}\n{"a"\n',), "JSON parse error: Missing a colon"),
    ],
)
def test_a_dataset_that_cannot_be_read(
    tmp_path: Path, suffix: str, parts: tuple[str, ...], message: str
) -> None:
    for place, part in enumerate(parts):
        (tmp_path / f"train-{place}.{suffix}").write_text(part)
    with pytest.raises(ValueError, match=f"data set .* cannot be read: {message}") as caught:
        load_data(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def read(path: Path, content: str | bytes) -> list[dict[str, Any]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    rows: list[dict[str, Any]] = load_data(path).remove_columns(SOURCE).to_list()
    return rows


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    odd = "a\u0085b\u2028c\u2029d\x0ce\x1cf"
    rows = [{"text": odd, "label": "x"}, {"text": "z", "label": "y"}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert read(tmp_path / "a.jsonl", lines) == rows
    for name, mark in (("a.csv", ","), ("a.tsv", "\t")):
        cells = f"text{mark}label\n{odd}{mark}x\nz{mark}y\n"
        assert read(tmp_path / name, cells) == rows


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_marks_line_ends_and_empty_lines(tmp_path: Path, end: str) -> None:
    rows = [{"a": "1", "b": "\xe9"}, {"a": "", "b": "3"}]
    blank = end + end
    lines = ["", '{"a": "1", "b": "\xe9"}', "  ", '{"a": "", "b": "3"}']
    assert read(tmp_path / "a.jsonl", "\ufeff" + end.join(lines) + blank) == rows
    for name, mark in (("a.csv", ","), ("a.tsv", "\t")):
        cells = end.join(["a,b", "1,\xe9", "", ",3"]).replace(",", mark)
        assert read(tmp_path / name, "\ufeff" + cells + blank) == rows
        assert read(tmp_path / name, cells) == rows


def test_quotes_in_csv_and_in_tsv(tmp_path: Path) -> None:
    cells = 'a,b\n"x, ""y""\nz","2"\n'
    assert read(tmp_path / "a.csv", cells) == [{"a": 'x, "y"\nz', "b": "2"}]
    glue = 'a\tb\n"unbalanced\t1\n"both"\t""2\nit\'s 5" wide\t3\n'
    assert [row["a"] for row in read(tmp_path / "a.tsv", glue)] == [
        '"unbalanced',
        '"both"',
        "it's 5\" wide",
    ]


def test_a_json_array(tmp_path: Path) -> None:
    assert read(tmp_path / "a.json", '\n[{"a": "]["},\n {"a": null}\n, {"b": [1]} ] ') == [
        {"a": "][", "b": None},
        {"a": None, "b": None},
        {"a": None, "b": [1]},
    ]
    assert read(tmp_path / "a.json", '{"a": 1}\n{"a": 2}\n') == [{"a": 1}, {"a": 2}]


def test_long_cells_leave_the_csv_module_as_it_was(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    long = "x" * (limit + 1)
    assert read(tmp_path / "a.csv", f"a,b\n1,{long}\n") == [{"a": "1", "b": long}]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", r"a\.jsonl: expected at least one example, got none"),
        ("a.jsonl", "\n \n", r"a\.jsonl: expected at least one example, got none"),
        ("a.json", "[ ]", r"a\.json: expected at least one example, got none"),
        ("a.csv", "text,label\n", r"a\.csv: expected at least one example, got none"),
        ("a.jsonl", '{"a": 1}\n{"a"', r"line 2: expected a JSON object, got Expecting ':' delim"),
        ("a.jsonl", "[1]\n", r"a\.jsonl, line 1: expected a JSON object, got list"),
        ("a.jsonl", '[\n{"a": 1}]', r"line 1: .* column 1 of an array, which a .json file may"),
        ("a.jsonl", '{"\\ud800": 1}', r"a\.jsonl: expected names of columns, got .* surrogates"),
        ("a.json", f'[{{"a": 1}},\n{{"a": {"1" * 5000}}}]', r"line 2: .* got Exceeds the limit"),
        ("a.jsonl", '{"a": 1}\n\n{"a": NaN}', r"line 3: expected a JSON object, got the number N"),
        ("a.jsonl", '{"a": [-Infinity]}', r"expected a JSON object, got the number -Infinity"),
        ("a.jsonl", '{"a": 1, "b": 2, "a": 1}', r"got a repeated name among a, b, a"),
        ("a.json", '[{"a": 1},\n{"a": 2}\n{"a": 3}]', r"line 3: expected a JSON array, got Expec"),
        ("a.json", '[{"a": 1},\n\n{"a":\n1},\n 5]', r"line 5: expected a JSON object, got int"),
        ("a.json", '[{"a": 1},\n{"a": NaN}]', r"line 2: expected a JSON object, got the number"),
        (
            "a.jsonl",
            '{"a": 1}\n' + "[" * 100_000,
            r"line 2: expected a JSON object, got maximum recurs",
        ),
        ("a.json", "[" * 100_000, r"a\.json, line 1: expected a JSON array, got maximum recurs"),
        ("a.json", '{\n "a": 1\n}', r"line 1: expected a JSON object, got Expecting property"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", r"a\.csv, line 3: expected 2 cells, got 3"),
        ("a.csv", "a,b\n1\n", r"a\.csv, line 2: expected 2 cells, got 1"),
        ("a.csv", 'a,b\n"1\n1","2\n2"\n\n1\n', r"a\.csv, line 6: expected 2 cells, got 1"),
        ("a.csv", 'a,b\n1,2\n3,"4\n5,6\n', r"line 3: expected delimited text, got unexpected"),
        ("a.csv", 'a,b\n"so" it is,2\n', r"line 2: expected delimited text, got ',' expected"),
        ("a.csv", "a,b\r1,2\r", r"line 1: expected delimited text, got new-line character seen"),
        ("a.csv", "a,a\n1,2\n", r"a\.csv, line 1: expected distinct columns, got a, a"),
        ("a.csv", "a\tb\n1\t2\n", r"line 1: expected columns separated by commas, got .* tabs"),
        ("a.csv", "a;b\n1;2\n", r"separated by commas, got a header with semicolons, 'a;b'"),
        ("a.tsv", "a,b\n1,2\n", r"separated by tabs, got a header with commas, 'a,b'"),
        ("a.jsonl", '{"a": 1}\n{"a": "x"}\n', r"line 2: expected a 'a' of the same type as bef"),
        ("a.jsonl", '{"a": ["x"]}\n\n{"a": "x"}\n', r"line 3: expected a 'a' of the same type"),
        ("a.jsonl", f'{{"a": 1}}\n{{"a": {2**70}}}\n', r"line 2: expected a 'a' of .* too large"),
        ("a.jsonl", '{"a": "x"}\n{"a": "\\ud800"}\n', r"line 2: .* surrogates not allowed"),
        ("a.csv", b"a,b\n1,2\n1,\xe9\n", r"a\.csv, line 3: expected UTF-8 text, got 'utf-8' code"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', r"line 2: expected UTF-8 text, got 'utf-8' c"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), r"line 1: expected text, got a null byte"),
        ("a.tsv", b"a\tb\n1\t2\n1\t\0\n", r"a\.tsv, line 3: expected text, got a null byte"),
        ("a.csv", "a,_source\n1,2\n", r"a\.csv: expected no column named _source"),
        ("a.txt", "a\n", r"a\.txt: expected one of \.jsonl, \.json, \.csv, \.tsv, got '\.txt'"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name, content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"a": "x"}\n\n{"a": null}\n{"a": "y"}\n'),
        ("a.json", '[{"a": "x"},\n\n{"b":\n2}, {"a": "y"}]'),
    ],
)
def test_faults_in_the_content_name_the_line(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    data = load_data(tmp_path / name)
    with pytest.raises(ValueError, match=rf"a_column: example 1 \(line 3 of {name}\) has no 'a'"):
        check_columns(data, a_column="a")
    with pytest.raises(ValueError, match=r"a_column: example 0 \(line 3 of .*\) has no 'a'"):
        check_columns(data.select([1, 2]), a_column="a")
    message = rf"expected one of the data's columns, a(, b)?, got 'c' for {name}"
    with pytest.raises(ValueError, match=message):
        check_columns(data, a_column="c")
    with pytest.raises(ValueError, match=r"columns, a(, b)?, got 'c'$"):
        check_columns(data.remove_columns(SOURCE), a_column="c")


def test_lines_of_cells_with_line_feeds(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('\na,b\n"1\n\n1",x\n\n2,y\n3,"z\n"\n4,\n')
    data = load_data(tmp_path / "a.csv")
    assert data[SOURCE][:] == [f"line {line} of a.csv" for line in (3, 7, 8, 10)]
    with pytest.raises(ValueError, match=r"got '' in example 3 \(line 10 of a\.csv\)"):
        check_labels(data, "label_column", zip(data["b"], strict=True))


def test_what_data_holds_and_in_which_order_makes_its_sha256(tmp_path: Path) -> None:
    rows = [{"text": f"é {i}", "words": [{"n": i}], "label": None} for i in range(1003)]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = load_data(tmp_path / "a.jsonl")
    known = data_sha256(data)
    assert known == data_sha256(Dataset.from_list(rows).with_format("numpy"))
    assert known == data_sha256(data.select(range(1003)).select_columns(data.column_names[::-1]))
    others = [data.shuffle(seed=0), data.select(range(1002)), data.rename_column("text", "texts")]
    rows[-1]["words"] = [{"n": 0}]
    others.append(Dataset.from_list(rows))
    assert len({known, *map(data_sha256, others)}) == 5


def test_messages_name_the_line_also_after_shuffling(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": None, "label": "z"}, {"text": "b", "label": "y"}]
    data = load_data(write_jsonl(tmp_path / "a.jsonl", rows)).select([2, 1, 0])
    task = SequenceClassification(None, ("x", "y"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"text_column: example 1 \(line 2 of a\.jsonl\) has no"):
        task.prepare(data)
    with pytest.raises(ValueError, match=r"x, y, got 'z' in example 1 \(line 2 of a\.jsonl\)"):
        task.references(data)
    with pytest.raises(ValueError, match=r"the data's columns, text, label, got 'c'"):
        SequenceClassification(None, label_column="c").fit_labels(data)  # type: ignore[arg-type]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl does not exist"):
        load_data(tmp_path / "none.jsonl")


def test_kinds() -> None:
    assert isinstance(make_task("token-classification", None), TokenClassification)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="task: expected one of sequence-classification, token-"):
        make_task("tagging", None)  # type: ignore[arg-type]


def test_whole_numbers_read_alike_beside_fractions(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [{"text": 1, "choices": [1, 2], "question": 3}]
    mixed = [*rows, {"text": 2.5, "choices": [0.5, 3], "question": 0.5}]
    for data in (
        load_data(write_jsonl(tmp_path / "a.jsonl", rows)),
        load_data(write_jsonl(tmp_path / "b.jsonl", mixed)),
    ):
        assert texts_of(data, "text_column", "text")[0] == "1"
        task = make_task("multiple-choice", tokenizer)
        assert task.prepare(data, labelled=False)[0]["choices"] == ["1", "2"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_an_empty_line_of_a_single_column(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("text\na\n\n\nb\n")
    with pytest.raises(ValueError, match=rf"{name}, line 3: expected a 'text', got an empty line"):
        load_data(path)
    path.write_text("text\n\na\n")
    with pytest.raises(ValueError, match="line 2: expected a 'text', got an empty line"):
        load_data(path)
    path.write_text("text\na\n\n\n")
    assert load_data(path)["text"][:] == ["a"]
    path.write_text(f"text{',' if name == 'a.csv' else chr(9)}b\n\n")  # two columns, no example
    with pytest.raises(ValueError, match="expected at least one example, got none"):
        load_data(path)


def test_sources_without_examples(tmp_path: Path) -> None:
    for source in ("", " ", ":x"):
        with pytest.raises(ValueError, match="data: expected a file or the name of a data set"):
            load_data(source)
    Dataset.from_dict({"text": []}).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(
        ValueError, match=r"data set .* cannot be read: .*\"test\" corresponds to no data"
    ):
        load_data(tmp_path, "test")


def test_lists_deeper_than_a_column_can_hold(tmp_path: Path) -> None:
    line = '{"x": %s}\n'
    path = tmp_path / "a.jsonl"
    path.write_text(line % 1 + line % ("[" * 600 + "]" * 600))
    with pytest.raises(ValueError, match=r"a\.jsonl"):
        load_data(path)


def test_a_kind_has_its_options() -> None:
    with pytest.raises(ValueError, match="stride: sequence-classification has no such option"):
        make_task("sequence-classification", None, stride=3)
    with pytest.raises(
        ValueError, match=r"window: .* has no such option, expected labels, max_len"
    ):
        make_task("question-answering", None, window=1)

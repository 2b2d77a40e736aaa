"""Reading files, and the messages of what is wrong with them."""

import json
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value, load_from_disk

from ptv2.tasks import SequenceClassification, TokenClassification, load_data, make_task
from ptv2.tasks.data import SOURCE, label_ids, label_names
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
    assert len(load_data(f"{folder}:default", "test")) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", r"a\.jsonl: expected at least one example, got an empty file"),
        ("a.csv", "text,label\n", r"a\.csv: expected at least one example, got an empty file"),
        ("a.jsonl", '{"a": 1}\n{"a"', r"a\.jsonl, line 2: expected a JSON object, got Expecting"),
        ("a.jsonl", "[1]\n", r"a\.jsonl, line 1: expected a JSON object, got list"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", r"a\.csv, line 3: expected 2 cells, got 3"),
        ("a.csv", "a,b\n1\n", r"a\.csv, line 2: expected 2 cells, got 1"),
        ("a.jsonl", '{"a": 1}\n{"a": "x"}\n', r"a\.jsonl: a column mixes types"),
        ("a.csv", "a,a\n1,2\n", r"a\.csv: expected distinct columns, got a, a"),
        (
            "a.csv",
            "a,b\n1,\xe9\n",
            r"a\.csv, line 2: expected UTF-8 text, got 'utf-8' codec.*byte",
        ),
        ("a.tsv", "a\tb\n\n1\t\xe9\n", r"a\.tsv, line 3: expected UTF-8 text, got 'utf-8'"),
        ("a.jsonl", '{"a": 1}\n{"a": "\xe9"}\n', r"a\.jsonl, line 2: expected UTF-8 text"),
        (
            "a.jsonl",
            '{"a": NaN}\n',
            r"a\.jsonl, line 1: expected a JSON object, got the number NaN",
        ),
        ("a.jsonl", '{"a": "\x00"}\n', r"a\.jsonl, line 1: expected a JSON object, got Invalid"),
        ("a.json", "[{}, 1]", r"a\.json, line 1: expected a JSON object, got int"),
        (
            "a.csv",
            "a\tb\n1\t2\n",
            r"a\.csv, line 1: expected commas between the columns, got '\\t'",
        ),
        ("a.csv", "a;b\n1;2\n", r"a\.csv, line 1: expected commas between the columns, got ';'"),
        ("a.csv", 'a,b\n1,2\n"x,3\n', r"a\.csv, line 3: expected readable cells, got unexpected"),
        ("a.csv", 'a,b\n"x\ny",2\n1\n', r"a\.csv, line 4: expected 2 cells, got 1"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        load_data(tmp_path / name)


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    """U+0085 and U+2028 are text, as in tweets; so are carriage returns within cells."""
    odd = "a\u0085b\u2028c\x0bd\x1ce"
    rows = [{"text": odd, "label": "x"}, {"text": "y", "label": odd}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (tmp_path / "a.jsonl").write_bytes(lines.encode())
    (tmp_path / "a.tsv").write_bytes(f"text\tlabel\r\n{odd}\tx\r\ny\t{odd}\r\n".encode())
    (tmp_path / "a.csv").write_bytes(f"text,label\r\n{odd},x\r\n\r\ny,{odd}\r\n".encode())
    for name, second in (("a.jsonl", 2), ("a.tsv", 3), ("a.csv", 4)):
        data = load_data(tmp_path / name)
        assert data.remove_columns(SOURCE).to_list() == rows
        assert data[SOURCE][1] == f"line {second} of {name}"


def test_quotes_newlines_and_commas_in_cells(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\n"x, ""y""\nz",1\n\'t,2\n')
    assert load_data(tmp_path / "a.csv").to_list() == [
        {"a": 'x, "y"\nz', "b": "1", SOURCE: "line 2 of a.csv"},
        {"a": "'t", "b": "2", SOURCE: "line 4 of a.csv"},
    ]
    (tmp_path / "a.tsv").write_text('a\tb\n"x\t1\ny "z\t2\n')  # as in GLUE
    assert load_data(tmp_path / "a.tsv")["a"][:] == ['"x', 'y "z']


def test_long_cells_byte_order_marks_and_lists(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"a,b\n1,{'x' * 200_000}\n", encoding="utf-8-sig")
    assert len(load_data(tmp_path / "a.csv")["b"][0]) == 200_000
    (tmp_path / "a.json").write_text('\ufeff [\n{"a": 1},\n{"a": 2}]\n')
    assert load_data(tmp_path / "a.json")["a"][:] == [1, 2]
    (tmp_path / "b.json").write_text('{"a": 1}\n\n{"a": 2}\n')
    assert load_data(tmp_path / "b.json")[SOURCE][1] == "line 3 of b.json"


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


def test_labels_are_sorted_and_class_labels_keep_their_order() -> None:
    assert label_names(["b", "a", "b"]) == ("a", "b")
    assert label_names([10, 9, 10]) == ("9", "10")
    assert label_names([0, 1], ClassLabel(names=["no", "yes", "maybe"])) == ("no", "yes", "maybe")
    with pytest.raises(ValueError, match="labels: expected names or integers, got floating"):
        label_names([0.5])
    for missing in (None, ""):
        with pytest.raises(ValueError, match="labels: expected a label for every example and wo"):
            label_names(["a", missing])
    with pytest.raises(ValueError, match="labels: expected names or integers, got lists"):
        label_names([["a"], ["b"]])


def test_a_class_label_out_of_range_is_no_label() -> None:
    class_label = ClassLabel(names=["no", "yes"])
    for value in (2, -1):
        with pytest.raises(ValueError, match="label: expected one of the task's labels, no, yes"):
            label_ids([0, value], ("no", "yes"), "label", class_label)


def test_class_labels_become_the_ids_of_their_names(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["z", "a"])})
    data = Dataset.from_dict({"text": ["x", "y"], "label": [0, 1]}, features=features)
    data.save_to_disk(tmp_path / "data")
    data = load_from_disk(tmp_path / "data")
    task = SequenceClassification(None).fit_labels(data)  # type: ignore[arg-type]
    assert task.labels == ("z", "a")


def test_kinds() -> None:
    assert isinstance(make_task("token-classification", None), TokenClassification)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="task: expected one of sequence-classification, token-"):
        make_task("tagging", None)  # type: ignore[arg-type]

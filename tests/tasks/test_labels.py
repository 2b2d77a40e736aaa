"""What counts as a label, and the order of their names."""

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value, load_from_disk

from ptv2.tasks import SequenceClassification, TokenClassification, load_data
from ptv2.tasks.data import check_labels, label_ids, label_names
from tests.encoder import write_jsonl


def test_labels_that_mark_unlabelled_data() -> None:
    for values in ([0, -1], [1, -100], ["x", ""], ["0", "-1"], ["x", " -100"], [0.5, 0.5]):
        data = Dataset.from_dict({"label": values})
        with pytest.raises(
            ValueError, match=f"label_column: .* got {values[1]!r} in example [01]"
        ):
            check_labels(data, "label_column", zip(values, strict=True))
    with pytest.raises(ValueError, match="labels: expected names or integers from 0, got a neg"):
        label_names([0, -1])
    check_labels(data, "label_column", [["-1", "x"]], names=("-1", "1"))


@pytest.mark.parametrize("mark", ["-1", "-100"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_text_that_marks_unlabelled_data(tmp_path: Path, name: str, mark: str) -> None:
    rows = [
        {"tokens": "a b", "label": "0", "tags": "0 1"},
        {"tokens": "c d", "label": mark, "tags": f"0 {mark}"},
        {"tokens": "e f", "label": "1", "tags": "1 0"},
    ]
    path = tmp_path / name
    if name == "a.jsonl":
        data, line = load_data(write_jsonl(path, rows)), 2
    else:
        separator = "," if name == "a.csv" else "\t"
        lines = [separator.join(row) for row in (rows[0], *(row.values() for row in rows))]
        path.write_text("\n".join(lines))
        data, line = load_data(path), 3
    where = rf"got '{mark}' in example 1 \(line {line} of {name}\)"
    for task in (SequenceClassification(None), TokenClassification(None)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"expected names or integers from 0 .* {where}"):
            task.fit_labels(data)
    numbers = Dataset.from_dict({"label": ["0.5", mark]})
    task = SequenceClassification(None).fit_labels(numbers)  # type: ignore[arg-type]
    assert task.references(numbers) == [0.5, float(mark)]


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


def test_no_label_is_no_name() -> None:
    """None is not the label "None", nor is what a `ClassLabel` has no name for."""
    names = ("None", "some")
    with pytest.raises(ValueError, match=r"label: expected one of .* got None"):
        label_ids(["some", None], names, "label")
    with pytest.raises(ValueError, match=r"label: expected one of .* got -1"):
        label_ids([1, -1], names, "label", ClassLabel(names=list(names)))
    assert label_names([1, "1", "0"]) == ("0", "1")


def test_names_and_the_integers_of_a_class_label_are_the_same_labels() -> None:
    """Whichever part of the data has the `ClassLabel`, and in lists too."""
    class_label = ClassLabel(names=["pos", "neg"])
    named = Dataset.from_dict({"label": ["neg", "pos"]})
    coded = Dataset.from_dict({"label": [0, 1]}, features=Features({"label": class_label}))
    task = SequenceClassification(None).fit_labels(named, coded)
    assert task.labels == ("neg", "pos")
    assert (task.targets(named), task.targets(coded)) == ([0, 1], [1, 0])
    assert SequenceClassification(None).fit_labels(coded, named).labels == ("pos", "neg")
    lists = Dataset.from_dict({"label": [["neg"], ["neg", "pos"]]})
    features = Features({"label": List(class_label)})
    coded = Dataset.from_dict({"label": [[0], [1]]}, features=features)
    several = SequenceClassification(None).fit_labels(lists, coded)
    assert (several.multi_label, several.labels) == (True, ("neg", "pos"))
    assert several.targets(coded) == [[0.0, 1.0], [1.0, 0.0]]
    tags = Features({"tags": List(ClassLabel(names=["O", "B-PER"]))})
    words = Dataset.from_dict({"tags": [["B-PER", "O"]]})
    coded = Dataset.from_dict({"tags": [[1, 0]]}, features=tags)
    assert TokenClassification(None).fit_labels(words, coded).labels == ("B-PER", "O")


def test_labels_that_training_does_not_show_are_told(caplog: pytest.LogCaptureFixture) -> None:
    data = [Dataset.from_dict({"label": labels}) for labels in (["pos", "neg"], ["pos", "mixed"])]
    assert SequenceClassification(None).fit_labels(*data).labels == ("mixed", "neg", "pos")
    (message,) = caplog.messages
    assert message == (
        "label_column: the training data has no example of 'mixed', which cannot be learned"
    )
    caplog.clear()
    SequenceClassification(None).fit_labels(data[0], data[0])
    assert not caplog.messages


def test_labels_that_differ_in_space_or_quotes_around(tmp_path: Path) -> None:
    for other in ("good ", '" good"', '"""good"""'):
        path = tmp_path / "a.csv"
        path.write_text(f"text,label\na,good\nb,bad\nc,{other}\n")
        with pytest.raises(ValueError, match="label_column: expected labels that differ in more"):
            SequenceClassification(None).fit_labels(load_data(path))
    quotes = Dataset.from_dict({"tags": [["`" * 2, "NN", '"', '""', "'" * 2]]})
    assert len(TokenClassification(None).fit_labels(quotes).labels) == 5

"""Examples from a file or from a `datasets` name, with their columns and labels checked."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, load_dataset

FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")


def load_data(
    source: str | Path, split: str | None = None, default_split: str = "train"
) -> Dataset:
    """Read examples.

    Args:
        source: a `.jsonl` file (an object a line), a `.csv` or `.tsv` file (with a header),
            or what `datasets.load_dataset` takes, as `"name"` or `"name:config"`.
        split: the split of a named dataset, if not the default; a file has none.
        default_split: the split of a named dataset if none is asked for.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a split of a file is asked for, or the file is empty or a line cannot be read;
            the message names file and line.
    """
    path = Path(source)
    if path.suffix not in FILE_SUFFIXES:
        name, _, config = str(source).partition(":")
        return load_dataset(name, config or None, split=split or default_split)
    if split is not None:
        raise ValueError(f"split: file {path} has no splits, expected None, got {split!r}")
    if not path.is_file():
        raise FileNotFoundError(f"data file {path} does not exist")
    read = _read_delimited if path.suffix in (".csv", ".tsv") else _read_jsonl
    try:
        rows = list(read(path))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"data file {path}: expected readable UTF-8 text, got {error}") from error
    if not rows:
        raise ValueError(f"data file {path}: expected at least one example, got an empty file")
    names = dict.fromkeys(column for row in rows for column in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    try:
        return Dataset.from_dict(columns)
    except (TypeError, ValueError) as error:
        raise ValueError(f"data file {path}: a column mixes types ({error})") from error


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"data file {path}, line {number}: expected a JSON object, got {error}"
                ) from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"data file {path}, line {number}: expected a JSON object, "
                    f"got {type(row).__name__}"
                )
            yield row


def _read_delimited(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        names = reader.fieldnames or ()
        width = len(names)
        if len(set(names)) < width:
            raise ValueError(
                f"data file {path}: expected distinct columns, got {', '.join(names)}"
            )
        for row in reader:
            if None in row or None in row.values():
                cells = width + len(row.get(None, ())) - list(row.values()).count(None)
                raise ValueError(
                    f"data file {path}, line {reader.line_num}: "
                    f"expected {width} cells, got {cells}"
                )
            yield row


def check_columns(data: Dataset, **columns: str) -> None:
    """Raise a ValueError unless the data has every column, with a value in every row.

    Args:
        columns: the columns by the name of the argument that gave each.
    """
    for argument, column in columns.items():
        if column not in data.column_names:
            raise ValueError(
                f"{argument}: expected one of the data's columns, "
                f"{', '.join(data.column_names)}, got {column!r}"
            )
        for row, value in enumerate(data[column]):
            if value is None:
                raise ValueError(f"{argument}: example {row} has no {column!r}")


def label_names(values: Iterable[Any], class_label: Any = None) -> tuple[str, ...]:
    """The sorted label names in `values`; a `ClassLabel` keeps its own names and order."""
    if isinstance(class_label, ClassLabel):
        return tuple(class_label.names)
    try:
        distinct = set(values)
    except TypeError:
        raise ValueError("labels: expected names or integers, got lists") from None
    if distinct & {None, ""}:
        raise ValueError("labels: expected a label for every example and word, got an empty one")
    if any(isinstance(value, float) for value in distinct):
        raise ValueError("labels: expected names or integers, got floating-point numbers")
    if all(isinstance(value, int) for value in distinct):
        return tuple(str(value) for value in sorted(distinct))
    return tuple(sorted(str(value) for value in distinct))


def label_ids(
    values: Iterable[Any], labels: Sequence[str], column: str, class_label: Any = None
) -> list[int]:
    """The position of each value in the labels; a ValueError for a value not among them."""
    ids = {label: i for i, label in enumerate(labels)}
    names = values
    if isinstance(class_label, ClassLabel):
        known = dict(enumerate(class_label.names))
        names = (known.get(value) for value in values)
    result = []
    for name in names:
        if str(name) not in ids:
            raise ValueError(
                f"{column}: expected one of the task's labels, {', '.join(labels)}, got {name!r}"
            )
        result.append(ids[str(name)])
    return result

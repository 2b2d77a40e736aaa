"""Examples from a file or from a `datasets` name, with their columns and labels checked."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, load_dataset

FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
SOURCE = "_source"
"""The column that says where in a file an example comes from."""


def load_data(
    source: str | Path, split: str | None = None, default_split: str = "train"
) -> Dataset:
    """Read examples.

    Args:
        source: a `.jsonl` file (an object a line) or a `.json` file (that, or a list of objects);
            a `.csv` file (with a header; cells may be quoted); a `.tsv` file (with a header;
            quotation marks are text, as in GLUE's files); or what `datasets.load_dataset` takes,
            as `"name"` or `"name:config"`. Files are in UTF-8.
        split: the split of a named dataset, if not the default; a file has none.
        default_split: the split of a named dataset if none is asked for.

    Returns:
        The examples; those of a file have the column `SOURCE`, their file and line, for messages.

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
    read = _read_delimited if path.suffix in (".csv", ".tsv") else _read_json
    rows = list(read(path))
    if not rows:
        raise ValueError(f"data file {path}: expected at least one example, got an empty file")
    names = dict.fromkeys(column for _, row in rows for column in row)
    columns: dict[str, list[Any]] = {name: [row.get(name) for _, row in rows] for name in names}
    columns[SOURCE] = [f"line {number} of {path.name}" for number, _ in rows]
    try:
        return Dataset.from_dict(columns)
    except (TypeError, ValueError) as error:
        raise ValueError(f"data file {path}: a column mixes types ({error})") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers; only a newline ends one, not U+0085 or U+2028."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"data file {path}, line {number}: expected UTF-8 text, got {error}; "
                    "is it in another encoding?"
                ) from None
            yield number, text


def _read_json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, example) of a file with an object a line, or with one list of objects."""
    lines = list(_lines(path))
    if path.suffix == ".json" and next((t for _, t in lines if t.strip()), "").lstrip()[:1] == "[":
        rows = _parse("".join(text for _, text in lines), path, 1)
        numbered = [(1, row) for row in rows]
    else:
        numbered = [(n, _parse(text, path, n)) for n, text in lines if text.strip()]
    for number, row in numbered:
        if not isinstance(row, dict):
            raise ValueError(
                f"data file {path}, line {number}: expected a JSON object, "
                f"got {type(row).__name__}"
            )
        yield number, row


def _parse(text: str, path: Path, number: int) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(
            f"data file {path}, line {number}: expected a JSON object, got the number {constant}"
        )

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"data file {path}, line {number}: expected a JSON object, got {error}"
        ) from error


def _read_delimited(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, example) of a file with a header; the line is that where the example begins."""
    tabs = path.suffix == ".tsv"
    limit = csv.field_size_limit(sys.maxsize)
    try:
        texts = (text for _, text in _lines(path))
        reader = csv.reader(
            texts,
            delimiter="\t" if tabs else ",",
            quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
            strict=True,
        )
        names = next(reader, [])
        _check_header(names, path)
        number = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(names):
                raise ValueError(
                    f"data file {path}, line {number}: expected {len(names)} cells, "
                    f"got {len(cells)}"
                )
            if cells:
                yield number, dict(zip(names, cells, strict=True))
            number = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"data file {path}, line {reader.line_num}: expected readable cells, got {error}"
        ) from error
    finally:
        csv.field_size_limit(limit)


def _check_header(names: list[str], path: Path) -> None:
    if len(set(names)) < len(names):
        raise ValueError(f"data file {path}: expected distinct columns, got {', '.join(names)}")
    if len(names) == 1 and path.suffix == ".csv" and (found := set(names[0]) & set("\t;|")):
        raise ValueError(
            f"data file {path}, line 1: expected commas between the columns, got "
            f"{found.pop()!r} in {names[0]!r}"
        )


def example(data: Dataset, place: int) -> str:
    """What to call an example in a message: its place, and its line in a file."""
    if SOURCE in data.column_names:
        return f"example {place} ({data[SOURCE][place]})"
    return f"example {place}"


def check_columns(data: Dataset, **columns: str) -> None:
    """Raise a ValueError unless the data has every column, with a value in every row.

    Args:
        columns: the columns by the name of the argument that gave each.
    """
    for argument, column in columns.items():
        if column not in data.column_names:
            names = ", ".join(name for name in data.column_names if name != SOURCE)
            raise ValueError(
                f"{argument}: expected one of the data's columns, {names}, got {column!r}"
            )
        for row, value in enumerate(data[column]):
            if value is None:
                raise ValueError(f"{argument}: {example(data, row)} has no {column!r}")


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
    values: Iterable[Any],
    labels: Sequence[str],
    column: str,
    class_label: Any = None,
    data: Dataset | None = None,
    place: int | None = None,
) -> list[int]:
    """The position of each value in the labels; a ValueError for a value not among them.

    Args:
        data, place: the example of all values, for a message; without a place every value is the
            label of an example of its own.
    """
    ids = {label: i for i, label in enumerate(labels)}
    names = values
    if isinstance(class_label, ClassLabel):
        known = dict(enumerate(class_label.names))
        names = (known.get(value) for value in values)
    result = []
    for index, name in enumerate(names):
        if str(name) not in ids:
            found = ""
            if data is not None:
                found = f" in {example(data, index if place is None else place)}"
            raise ValueError(
                f"{column}: expected one of the task's labels, {', '.join(labels)}, "
                f"got {name!r}{found}"
            )
        result.append(ids[str(name)])
    return result

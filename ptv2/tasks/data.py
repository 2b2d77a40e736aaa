"""Examples from a file or from a `datasets` name, with their columns and labels checked."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from datasets import ClassLabel, Dataset, load_dataset

from .files import FileError, read_file

FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")

_origins: WeakKeyDictionary[Dataset, tuple[Path, list[int]]] = WeakKeyDictionary()
"""The file of a data set and the line of each example; a selection of it is another data set."""


def load_data(
    source: str | Path, split: str | None = None, default_split: str = "train"
) -> Dataset:
    """Read examples.

    Args:
        source: a file in UTF-8, or what `datasets.load_dataset` takes, as `"name"` or
            `"name:config"`. A `.jsonl` file has an object a line; a `.json` file too, or one
            array of objects. A `.csv` file has a header, commas, and quotes around cells that
            need them; a `.tsv` file has a header and tabs, and its quotes are text.
        split: the split of a named dataset, if not the default; a file has none.
        default_split: the split of a named dataset if none is asked for.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a split of a file is asked for, or the file has another suffix, no example or
            a line that cannot be read; the message names file and line.
    """
    path = Path(source)
    if path.suffix.lower() not in FILE_SUFFIXES:
        if path.is_file():
            suffixes = ", ".join(FILE_SUFFIXES)
            raise ValueError(f"data file {path}: expected one of {suffixes}, got {path.suffix!r}")
        name, _, config = str(source).partition(":")
        return load_dataset(name, config or None, split=split or default_split)
    if split is not None:
        raise ValueError(f"split: file {path} has no splits, expected None, got {split!r}")
    if not path.is_file():
        raise FileNotFoundError(f"data file {path} does not exist")
    examples = read_file(path)
    if not examples:
        raise ValueError(f"data file {path}: expected at least one example, got none")
    lines, rows = [line for line, _ in examples], [row for _, row in examples]
    names = dict.fromkeys(column for row in rows for column in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    try:
        data = Dataset.from_dict(columns)
    except (TypeError, ValueError, OverflowError):
        for name, values in columns.items():
            row, error = _first_misfit(values)
            if error is not None:
                message = f"expected a {name!r} of the same type as before, got {error}"
                raise FileError(path, lines[row], message) from error
        raise
    _origins[data] = path, lines
    return data


def _first_misfit(values: list[Any]) -> tuple[int, Exception | None]:
    """The first value that a column cannot hold together with those before it, by bisection."""
    least, most, found = 0, len(values), None
    while least < most:
        middle = (least + most) // 2
        try:
            Dataset.from_dict({"values": values[: middle + 1]})
            least = middle + 1
        except (TypeError, ValueError, OverflowError) as error:
            most, found = middle, error
    return least, found


def example_name(data: Dataset, row: int) -> str:
    """How messages call an example: by its place, and by its line if `load_data` read it."""
    if data not in _origins:
        return f"example {row}"
    path, lines = _origins[data]
    return f"example {row} (line {lines[row]} of {path})"


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
                raise ValueError(f"{argument}: {example_name(data, row)} has no {column!r}")


def check_labels(data: Dataset, argument: str, labels: Iterable[Iterable[Any]]) -> None:
    """Raise a ValueError that names the example unless every label is a name or an integer from 0.

    What data without labels has instead, None, "", -1 or -100, is no label.

    Args:
        argument: of the labels' column.
        labels: of each example.
    """
    for row, values in enumerate(labels):
        for value in values:
            if not (value >= 0 if isinstance(value, int) else isinstance(value, str) and value):
                raise ValueError(
                    f"{argument}: expected names or integers from 0 as labels, "
                    f"got {value!r} in {example_name(data, row)}"
                )


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
    if any(isinstance(value, int) and value < 0 for value in distinct):
        raise ValueError("labels: expected names or integers from 0, got a negative one")
    if all(isinstance(value, int) for value in distinct):
        return tuple(str(value) for value in sorted(distinct))
    return tuple(sorted(str(value) for value in distinct))


def label_ids(
    values: Iterable[Any],
    labels: Sequence[str],
    column: str,
    class_label: Any = None,
    example: Callable[[int], str] | None = None,
) -> list[int]:
    """The position of each value in the labels; a ValueError for a value not among them.

    Args:
        column: where the values come from, for the message.
        class_label: the `ClassLabel` that the values count in, if any.
        example: what the message calls the example of the value at a place, if it names one.
    """
    ids = {label: i for i, label in enumerate(labels)}
    counted = isinstance(class_label, ClassLabel)
    names = dict(enumerate(class_label.names)) if counted else {}
    result = []
    for place, value in enumerate(values):
        name = names.get(value) if counted else str(value)
        if name not in ids:
            where = f" in {example(place)}" if example is not None else ""
            raise ValueError(
                f"{column}: expected one of the task's labels, {', '.join(labels)}, "
                f"got {value!r}{where}"
            )
        result.append(ids[name])
    return result

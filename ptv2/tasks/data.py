"""Examples from a file or from a `datasets` name, with their columns and labels checked."""

import hashlib
import json
import logging
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, load_dataset
from datasets.exceptions import DatasetsError

from .files import FileError, read_file

FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
SOURCE = "_source"
"""The column that says where in a file an example comes from."""
_NO_LABEL = ("", "-1", "-100")

logger = logging.getLogger(__name__)


def load_data(
    source: str | Path, split: str | None = None, default_split: str = "train"
) -> Dataset:
    """Read examples.

    Args:
        source: a file in UTF-8, or what `datasets.load_dataset` takes, as `"name"` or
            `"name:config"`. A `.jsonl` file has an object a line; a `.json` file too, or one
            array of objects, or all of SQuAD's v1.1 or v2 as published. A `.csv` file has a
            header, commas, and quotes around cells that need them; a `.tsv` file has a header and
            tabs, and its quotes are text.
        split: the split of a named dataset, if not the default; a file has none.
        default_split: the split of a named dataset if none is asked for.

    Returns:
        The examples; those of a file have the column `SOURCE`, their line or other place and the
        file, for messages.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the source is empty, a split of a file is asked for, or the file has another
            suffix, no example or a line that cannot be read; the message names file and line. Or
            a named dataset cannot be read, as when its files have different columns.
    """
    if not str(source).partition(":")[0].strip():
        raise ValueError(f"data: expected a file or the name of a data set, got {str(source)!r}")
    path = Path(source)
    if path.suffix.lower() not in FILE_SUFFIXES:
        if path.is_file():
            suffixes = ", ".join(FILE_SUFFIXES)
            raise ValueError(f"data file {path}: expected one of {suffixes}, got {path.suffix!r}")
        return _load_named(str(source), split or default_split)
    if split is not None:
        raise ValueError(f"split: file {path} has no splits, expected None, got {split!r}")
    if not path.is_file():
        raise FileNotFoundError(f"data file {path} does not exist")
    examples = read_file(path)
    if not examples:
        raise ValueError(f"data file {path}: expected at least one example, got none")
    places, rows = [place for place, _ in examples], [row for _, row in examples]
    names = dict.fromkeys(column for row in rows for column in row)
    if SOURCE in names:
        raise ValueError(
            f"data file {path}: expected no column named {SOURCE}, which is kept for lines"
        )
    columns = {name: [row.get(name) for row in rows] for name in names}
    try:
        return Dataset.from_dict(
            columns | {SOURCE: [f"{place} of {path.name}" for place in places]}
        )
    except _MISFITS as error:
        for name, values in columns.items():
            row = bisect_left(
                range(len(values)), True, key=lambda row: not _fit(values[: row + 1])
            )
            if row < len(values):
                message = f"expected a {name!r} of the same type as before, got {error}"
                raise FileError(path, places[row], message) from error
        raise ValueError(f"data file {path}: expected names of columns, got {error}") from error


def _load_named(source: str, split: str) -> Dataset:
    name, _, config = source.partition(":")
    try:
        return load_dataset(name, config or None, split=split)
    except FileNotFoundError:
        raise
    except (DatasetsError, ValueError) as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"data set {source} cannot be read: {cause}") from error


_MISFITS = (TypeError, ValueError, OverflowError, RecursionError)
"""What `datasets` raises for values that no column can hold."""


def _fit(values: list[Any]) -> bool:
    """Whether one column can hold the values."""
    try:
        Dataset.from_dict({"values": values})
    except _MISFITS:
        return False
    return True


def data_sha256(data: Dataset) -> str:
    """The SHA-256 of all examples in their order, wherever they were read from."""
    digest = hashlib.sha256()
    columns = sorted(set(data.column_names) - {SOURCE})
    for batch in data.select_columns(columns).with_format("arrow").iter(batch_size=1000):
        digest.update(json.dumps(batch.to_pylist(), default=repr).encode())
    return digest.hexdigest()


def example(data: Dataset, place: int) -> str:
    """What to call an example in a message: its place, and its line in a file."""
    if SOURCE in data.column_names:
        return f"example {place} ({data[SOURCE][place]})"
    return f"example {place}"


def _origin(data: Dataset) -> str:
    """The file or the split that data is of, for the end of a message."""
    if SOURCE in data.column_names and len(data):
        return f" for {data[SOURCE][0].partition(' of ')[2]}"
    return "" if data.split is None else f" for the split {data.split}"


def check_columns(data: Dataset, **columns: str) -> None:
    """Raise a ValueError unless the data has every column, with a value in every row.

    Args:
        columns: the columns by the name of the argument that gave each.
    """
    for argument, column in columns.items():
        if column not in data.column_names:
            names = ", ".join(name for name in data.column_names if name != SOURCE)
            raise ValueError(
                f"{argument}: expected one of the data's columns, {names}, "
                f"got {column!r}{_origin(data)}"
            )
        for row, value in enumerate(data[column]):
            if value is None:
                raise ValueError(f"{argument}: {example(data, row)} has no {column!r}")


def texts_of(data: Dataset, argument: str, column: str) -> list[str]:
    """A column of texts; numbers count as texts, whole ones as integers.

    Raises:
        ValueError: the column is missing, or a value is missing or something else.
    """
    check_columns(data, **{argument: column})
    values = data[column][:]
    for row, value in enumerate(values):
        if not isinstance(value, str | int | float):
            raise ValueError(f"{argument}: expected a text, got {value!r} in {example(data, row)}")
    return [as_text(value) for value in values]


def as_text(value: str | int | float) -> str:
    """A number in a column with a fraction elsewhere is floating-point, but reads as an integer
    if it is whole, as it does without that fraction."""
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def check_labels(
    data: Dataset, argument: str, labels: Iterable[Iterable[Any]], names: Sequence[str] = ()
) -> None:
    """Raise a ValueError that names the example unless every label is a name or an integer from 0.

    What data without labels has instead, None, "", -1 or -100, also as text, is no label.

    Args:
        argument: of the labels' column.
        labels: of each example.
        names: of the task's labels, if they are known; one of them is a label whatever it is.
    """
    for row, values in enumerate(labels):
        for value in values:
            if not _is_label(value) and value not in names:
                raise ValueError(
                    f"{argument}: expected names or integers from 0 as labels (-1 and -100 are "
                    f"none), got {value!r} in {example(data, row)}"
                )


def _is_label(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() not in _NO_LABEL
    return isinstance(value, int) and value >= 0


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
    return tuple(sorted({str(value) for value in distinct}))


def common_labels(argument: str, parts: Sequence[tuple[Sequence[Any], Any]]) -> tuple[str, ...]:
    """The label names of all parts of the data, sorted; if the first part has a `ClassLabel`, its
    names in their order, which then are all that there are.

    Labels that only later parts have are told: they cannot be learned.

    Args:
        argument: of the labels' column.
        parts: the labels of each part, and its `ClassLabel`, if it has one.

    Raises:
        ValueError: something is no label, or two labels differ only in space or quotes around.
    """
    first, class_label = parts[0]
    if isinstance(class_label, ClassLabel):
        return label_names(first, class_label)
    labels = label_names(name for part in parts for name in _named(*part))
    seen: dict[str, str] = {}
    for label in labels:
        other = seen.setdefault(_bare(label), label)
        if other != label:
            raise ValueError(
                f"{argument}: expected labels that differ in more than the space or the quotes "
                f"around them, got {other!r} and {label!r}"
            )
    known = {str(name) for name in first}
    if unknown := [label for label in labels if label not in known]:
        logger.warning(
            "%s: the training data has no example of %s, which cannot be learned",
            argument,
            ", ".join(map(repr, unknown)),
        )
    return labels


def _named(values: Sequence[Any], class_label: Any) -> list[Any]:
    """The names of a `ClassLabel`'s integers; other values as they are."""
    if not isinstance(class_label, ClassLabel):
        return list(values)
    names = dict(enumerate(class_label.names))
    return [names.get(value, value) for value in values]


def _bare(label: str) -> str:
    """A label without the space and the quotes around it."""
    text = label.strip()
    quoted = len(text) > 2 and text[0] == text[-1] == '"'
    return text[1:-1].strip() if quoted else text


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
    known = dict(enumerate(class_label.names)) if isinstance(class_label, ClassLabel) else None
    result = []
    for index, value in enumerate(values):
        name = value if known is None else known.get(value)
        if name is None or str(name) not in ids:
            found = ""
            if data is not None:
                found = f" in {example(data, index if place is None else place)}"
            raise ValueError(
                f"{column}: expected one of the task's labels, {', '.join(labels)}, "
                f"got {value!r}{found}"
            )
        result.append(ids[str(name)])
    return result

"""Examples from JSON lines, JSON arrays and delimited text, each with the line it begins at."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

Example = tuple[int, dict[str, Any]]
"""The line where an example begins, counted from 1, and its values by column."""

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_SEPARATOR_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons"}
_LONGEST_CELL = 2**31 - 1


class FileError(ValueError):
    """Says which line of a data file cannot be read, what was expected and what came."""

    def __init__(self, path: Path, line: int, message: str) -> None:
        super().__init__(f"data file {path}, line {line}: {message}")


def read_file(path: Path) -> list[Example]:
    """All examples of a file, whose suffix says how it is read (`ptv2.tasks.load_data`).

    Raises:
        FileError: a line cannot be read.
    """
    if path.suffix.lower() in _SEPARATORS:
        limit = csv.field_size_limit(_LONGEST_CELL)
        try:
            return list(_read_delimited(path))
        finally:
            csv.field_size_limit(limit)
    if path.suffix.lower() == ".json":
        text = "".join(_lines(path))
        if text.lstrip().startswith("["):
            return list(_read_array(path, text))
    return list(_read_json_lines(path))


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text with their ends; nothing but a line feed ends one."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if b"\0" in line:
                raise FileError(path, number, "expected text, got a null byte")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise FileError(path, number, f"expected UTF-8 text, got {error}") from error


def _read_json_lines(path: Path) -> Iterator[Example]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            yield number, _object(_DECODER.decode(line))
        except json.JSONDecodeError as error:
            got = f"{error.msg} at column {error.colno}"
            if line.lstrip().startswith("["):
                got += " of an array, which a .json file may hold"
            raise FileError(path, number, f"expected a JSON object, got {got}") from error
        except (ValueError, RecursionError) as error:
            raise FileError(path, number, f"expected a JSON object, got {error}") from error


def _read_array(path: Path, text: str) -> Iterator[Example]:
    """The objects of one JSON array; each is decoded by itself, to know its line."""
    try:
        count = len(json.loads(text, parse_int=str))  # its limit of digits would name no line
    except RecursionError as error:
        raise FileError(path, 1, f"expected a JSON array, got {error}") from error
    except json.JSONDecodeError as error:
        got = f"{error.msg} at column {error.colno}"
        raise FileError(path, error.lineno, f"expected a JSON array, got {got}") from error
    place = text.index("[")
    line = 1 + text.count("\n", 0, place)
    for _ in range(count):
        start = _after_space(text, place + 1)  # of an element, behind "[" or ","
        line += text.count("\n", place, start)
        try:
            value, end = _DECODER.raw_decode(text, start)
            yield line, _object(value)
        except (ValueError, RecursionError) as error:
            raise FileError(path, line, f"expected a JSON object, got {error}") from error
        place = _after_space(text, end)
        line += text.count("\n", start, place)


def _after_space(text: str, place: int) -> int:
    while text[place] in " \t\r\n":
        place += 1
    return place


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(type(value).__name__)
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a repeated name among {', '.join(name for name, _ in pairs)}")
    return found


_DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_distinct)


def _read_delimited(path: Path) -> Iterator[Example]:
    separator = _SEPARATORS[path.suffix.lower()]
    reader = csv.reader(
        _lines(path),
        delimiter=separator,
        quoting=csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    names: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not names:
                _check_header(path, line, cells, separator)
                names = cells
            elif cells and len(cells) != len(names):
                raise FileError(path, line, f"expected {len(names)} cells, got {len(cells)}")
            elif cells:
                yield line, dict(zip(names, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise FileError(path, line, f"expected delimited text, got {error}") from error


def _check_header(path: Path, line: int, names: list[str], separator: str) -> None:
    """The header's columns are distinct, and separated as the file's suffix says."""
    if len(set(names)) < len(names):
        raise FileError(path, line, f"expected distinct columns, got {', '.join(names)}")
    for other, name in _SEPARATOR_NAMES.items():
        if len(names) == 1 and other in names[0]:
            raise FileError(
                path,
                line,
                f"expected columns separated by {_SEPARATOR_NAMES[separator]}, got a header "
                f"with {name}, {names[0]!r} (.csv has commas, .tsv tabs)",
            )

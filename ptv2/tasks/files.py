"""Examples from JSON lines, JSON arrays, SQuAD's files and delimited text, each with its place."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

Example = tuple[str, dict[str, Any]]
"""The place of an example in its file, as the line where it begins, and its values by column."""

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_SEPARATOR_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons"}
_LONGEST_CELL = 2**31 - 1
_KINDS = {str: "a text", int: "an integer", list: "a list"}


class FileError(ValueError):
    """Says which place of a data file, a line if it is a number, cannot be read and why."""

    def __init__(self, path: Path, place: int | str, message: str) -> None:
        place = f"line {place}" if isinstance(place, int) else place
        super().__init__(f"data file {path}, {place}: {message}")


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
        if text.lstrip().startswith("{") and (document := _document(path, text)):
            return list(_read_squad(path, document))
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
            yield f"line {number}", _object(_DECODER.decode(line))
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
            yield f"line {line}", _object(value)
        except (ValueError, RecursionError) as error:
            raise FileError(path, line, f"expected a JSON object, got {error}") from error
        place = _after_space(text, end)
        line += text.count("\n", start, place)


def _document(path: Path, text: str) -> dict[str, Any] | None:
    """The object that is all of a file in SQuAD's form; None if the file has JSON lines."""
    start = len(text) - len(text.lstrip())
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        if '"paragraphs"' not in text:
            return None
        got = f"{error.msg} at column {error.colno}"
        raise FileError(path, error.lineno, f"expected a JSON object, got {got}") from error
    except (ValueError, RecursionError):  # as the reader of lines will say
        return None
    is_squad = isinstance(value.get("data"), list) and not text[end:].strip()
    return value if is_squad else None


def _read_squad(path: Path, document: dict[str, Any]) -> Iterator[Example]:
    """A row a question, whose columns are named as in the data set of that name."""
    for of_article, article in _members(path, "", document, "data"):
        for of_paragraph, paragraph in _members(path, of_article, article, "paragraphs"):
            context = _member(path, of_paragraph, paragraph, "context", str)
            for place, question in _members(path, of_paragraph, paragraph, "qas"):
                row = {
                    "id": question.get("id"),
                    "title": article.get("title"),
                    "context": context,
                    "question": _member(path, place, question, "question", str),
                }
                if "answers" in question or question.get("is_impossible"):
                    row["answers"] = _squad_answers(path, place, question)
                yield place, row


def _squad_answers(path: Path, place: str, question: dict[str, Any]) -> dict[str, list[Any]]:
    answers = list(_members(path, place, {"answers": []} | question, "answers"))
    if answers and question.get("is_impossible"):
        raise FileError(path, place, "expected no answers to an impossible question, got some")
    return {
        name: [_member(path, of_answer, answer, name, kind) for of_answer, answer in answers]
        for name, kind in (("text", str), ("answer_start", int))
    }


def _members(
    path: Path, place: str, parent: dict[str, Any], name: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a list, each with its own place."""
    for index, value in enumerate(_member(path, place, parent, name, list)):
        own = f"{place}.{name}[{index}]".lstrip(".")
        if not isinstance(value, dict):
            raise FileError(path, own, f"expected a JSON object, got {type(value).__name__}")
        yield own, value


def _member(path: Path, place: str, parent: dict[str, Any], name: str, kind: type) -> Any:
    value = parent.get(name)
    if not isinstance(value, kind):
        raise FileError(path, place, f"expected {_KINDS[kind]} as {name!r}, got {value!r:.40}")
    return value


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
    line, empty = 1, None
    try:
        for cells in reader:
            if not names:
                _check_header(path, line, cells, separator)
                names = cells
            elif not cells:
                empty = empty or line
            elif len(cells) != len(names):
                raise FileError(path, line, f"expected {len(names)} cells, got {len(cells)}")
            elif empty and len(names) == 1:
                raise FileError(path, empty, f"expected a {names[0]!r}, got an empty line")
            else:
                yield f"line {line}", dict(zip(names, cells, strict=True))
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

"""Saving files in a folder as one step.

The files are written and synced in a hidden folder beside the old ones; one rename of that folder
commits them; then they are moved into place. A reader looks into the committed folder first, so
wherever a save was killed it sees the old files or the new ones, whole.
"""

import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_COMMITTED, _STAGED = ".committed", ".staged-"


def commit(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, made if it is not there; other files in it stay.

    Args:
        files: contents by name; a name may lie in folders, as "text/prompt.safetensors".

    Raises:
        FileExistsError: the path is not a folder.
    """
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"directory: expected a folder, got the file {directory}")
    directory.mkdir(parents=True, exist_ok=True)
    for left_over in directory.glob(f"{_STAGED}*"):  # by a save that was killed
        if time.time() - left_over.stat().st_mtime > 3600:
            shutil.rmtree(left_over, ignore_errors=True)
    staged = directory / f"{_STAGED}{secrets.token_hex(8)}"
    staged.mkdir()  # to be read by whoever may read the folder
    try:
        for name, data in files.items():
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            with (staged / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for folder in _folders(staged):
            sync(folder)
        _move_into_place(directory)  # what a killed save had committed
        staged.rename(directory / _COMMITTED)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    sync(directory)
    _move_into_place(directory)


def read(directory: Path, name: str) -> bytes:
    """Read a file that `commit` wrote.

    Raises:
        FileNotFoundError: there is none.
    """
    for place in (directory / _COMMITTED / name, directory / name, directory / _COMMITTED / name):
        try:
            return place.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
    raise FileNotFoundError(f"directory: expected {name} in {directory}, but there is none")


def holds(directory: Path, name: str) -> bool:
    """Whether `read` would find a file."""
    return (directory / _COMMITTED / name).is_file() or (directory / name).is_file()


def _move_into_place(directory: Path) -> None:
    committed = directory / _COMMITTED
    if committed.is_dir():
        for file in sorted(path for path in committed.rglob("*") if path.is_file()):
            place = directory / file.relative_to(committed)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)
        folders = _folders(committed)
        for folder in folders:
            sync(directory / folder.relative_to(committed))
        for folder in reversed(folders):
            folder.rmdir()


def _folders(root: Path) -> list[Path]:
    """A folder and those in it, each before what it holds."""
    return [root, *sorted(path for path in root.rglob("*") if path.is_dir())]


def sync(path: Path) -> None:
    """Make a file's content, or the renames in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as `write_text` does."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file in one durable step: the old content stays until the new one is whole."""
    unfinished = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with unfinished.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise

"""A training run's checkpoints on disk: each appears in one step, and only whole ones count."""

import shutil
from collections.abc import Collection
from pathlib import Path

from .storage import sync

PREFIX, STAGED, DISCARDED = "checkpoint-", ".staged", ".discarded-"


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"{PREFIX}{step}"


def newest(folder: Path) -> Path | None:
    """The last checkpoint there is."""
    return max(_checkpoints(folder), key=_step, default=None)


def clear(folder: Path) -> Path:
    """Remove what killed saves left; an empty folder in which to write the next checkpoint."""
    for left_over in (folder / STAGED, *folder.glob(f"{DISCARDED}*")):
        shutil.rmtree(left_over, ignore_errors=True)
    staged = folder / STAGED
    staged.mkdir(parents=True)
    return staged


def publish(staged: Path, final: Path) -> None:
    """Make a written checkpoint durable, and move it to its place in one step.

    Raises:
        FileExistsError: there is something in its place.
    """
    if final.exists():
        raise FileExistsError(f"output: {final} exists already; is another run writing there?")
    for path in staged.rglob("*"):
        sync(path)
    sync(staged)
    staged.rename(final)
    sync(final.parent)


def discard_others(folder: Path, kept: Collection[int]) -> None:
    """Remove the checkpoints of all steps but some; one is gone in one step."""
    for path in _checkpoints(folder):
        if _step(path) not in kept:
            hidden = folder / f"{DISCARDED}{_step(path)}"
            path.rename(hidden)
            shutil.rmtree(hidden)


def _checkpoints(folder: Path) -> list[Path]:
    """Those of steps; a copy under another name is not one."""
    found = folder.glob(f"{PREFIX}*")
    return [path for path in found if path.name.removeprefix(PREFIX).isdecimal()]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))

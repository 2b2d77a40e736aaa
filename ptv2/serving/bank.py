"""The versions of tasks that requests are answered with: resolved once, kept until the answer."""

import reprlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from os import PathLike

from ..assets import Asset, read_asset
from ..config import check_task_name
from ..inputs import require_task_of_backbone
from ..model import PromptModel, UnknownTaskError
from ..pools import FoldedPrompt
from .served import Served

_SHOWN = 10
"""Names in a message."""


class Bank:
    """Tasks by name, each in its current version; any thread may use it.

    A version never changes. Loading a task under a name that exists makes the next version and
    points the name to it; requests that have the old one are answered with the old one, which is
    forgotten with the last of them.

    Args:
        model: whose backbone the tasks are for.
        check: raises a ValueError for a task that cannot be served.
        on_retired: called when `retired` has something to tell.
    """

    def __init__(
        self,
        model: PromptModel,
        check: Callable[[Served], None] = lambda task: None,
        on_retired: Callable[[], None] = lambda: None,
    ) -> None:
        self._model = model
        self._check = check
        self._on_retired = on_retired
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._current: dict[str, Served] = {}
        self._versions: Counter[str] = Counter()
        self._readers: Counter[Served] = Counter()
        self._retired: list[Served] = []

    def load(self, directory: str | PathLike[str], name: str | None = None) -> Served:
        """Make a saved task the current version of its name; arguments and errors are `read`'s.

        With an error, what was served before still is.
        """
        with self._loading:  # what is read later is the later version
            return self.publish(self.read(directory, name))

    def read(self, directory: str | PathLike[str], name: str | None = None) -> Served:
        """Read a saved task, without serving it.

        Args:
            name: to serve it under. None: the one it was saved under.

        Raises:
            FileNotFoundError: there is no saved task.
            ValueError: it is corrupt, was trained on another backbone, is no prompt in the layers
                or more than there is memory for.
        """
        asset = read_asset(directory)
        name = asset.name if name is None else name
        check_task_name(name)
        self._model.identity.require_same(asset.backbone, f"directory: the prompt in {directory}")
        require_task_of_backbone(self._model.backbone, asset.config)
        task = _served(self._model, name, asset)
        self._check(task)
        return task

    def publish(self, task: Served) -> Served:
        """Make a task the current version of its name, with the next number.

        Raises:
            ValueError: it cannot be served.
        """
        self._check(task)
        with self._lock:
            self._versions[task.name] += 1
            task = task.numbered(self._versions[task.name])
            self._retire(task.name)
            self._current[task.name] = task
        self._tell_retired()
        return task

    def unload(self, name: str) -> None:
        """Admit no more requests for a task.

        Raises:
            UnknownTaskError: it is not served.
        """
        with self._lock:
            self._require(name)
            self._retire(name)
            del self._current[name]
        self._tell_retired()

    @contextmanager
    def lease(self, name: str) -> Iterator[Served]:
        """The current version of a task, which is kept until the end of the `with`.

        Raises:
            UnknownTaskError: it is not served.
        """
        with self._lock:
            task = self._require(name)
            self._readers[task] += 1
        try:
            yield task
        finally:
            with self._lock:
                self._readers[task] -= 1
                if not self._readers[task]:
                    del self._readers[task]
                    if self._current.get(name) is not task:
                        self._retired.append(task)
            self._tell_retired()

    def retired(self) -> list[Served]:
        """Versions that nobody will ask for any more, each told once."""
        with self._lock:
            gone, self._retired = self._retired, []
        return gone

    def tasks(self) -> dict[str, Served]:
        """The current version of every task."""
        with self._lock:
            return dict(self._current)

    def readers(self, task: Served) -> int:
        """How many requests have a version."""
        with self._lock:
            return self._readers[task]

    def _tell_retired(self) -> None:
        if self._retired:
            self._on_retired()

    def _retire(self, name: str) -> None:
        old = self._current.get(name)
        if old is not None and not self._readers[old]:
            self._retired.append(old)

    def _require(self, name: str) -> Served:
        if name not in self._current:
            known = ", ".join(islice(self._current, _SHOWN)) or "none"
            more = f" and {len(self._current) - _SHOWN} more" * (len(self._current) > _SHOWN)
            raise UnknownTaskError(
                f"task: {reprlib.repr(name)} is not served; these are: {known}{more}"
            )
        return self._current[name]


def _served(model: PromptModel, name: str, asset: Asset) -> Served:
    _, head = asset.build(model.geometry)
    layers = asset.config.layers
    tensors = asset.tensors
    prompt = FoldedPrompt(
        tuple(range(model.geometry.layers)) if layers is None else layers,
        tensors["key_value"],
        tensors.get("gate"),
        tensors.get("embeddings"),
    )
    return Served.of(name, asset.config.folded(), prompt, head)

"""A training state on disk: its tensors as safetensors, and the rest as JSON; never a pickle."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from .. import storage

TENSORS, REST = "sweep.safetensors", "sweep.json"


def save_state(directory: Path, state: Any) -> None:
    """Write nested dictionaries and lists of tensors and plain values, in one step."""
    tensors: dict[str, Tensor] = {}
    rest = _without_tensors(state, tensors)
    files = {TENSORS: save(tensors), REST: json.dumps(rest).encode()}
    storage.commit(directory, files)


def load_state(directory: Path) -> Any:
    """Read them again, to the bit; a tuple comes as a list. None: there is no state."""
    if not storage.holds(directory, REST):
        return None
    tensors = load(storage.read(directory, TENSORS))
    return _with_tensors(json.loads(storage.read(directory, REST)), tensors)


def _without_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON holds it: a dictionary as its pairs, whose keys keep their types."""
    match value:
        case Tensor():
            name = str(len(tensors))
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()
            return {"tensor": name}
        case dict():
            return {"pairs": [[key, _without_tensors(x, tensors)] for key, x in value.items()]}
        case list() | tuple():
            return [_without_tensors(x, tensors) for x in value]
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    match value:
        case {"tensor": name}:
            return tensors[name]
        case {"pairs": pairs}:
            return {key: _with_tensors(x, tensors) for key, x in pairs}
        case list():
            return [_with_tensors(x, tensors) for x in value]
    return value

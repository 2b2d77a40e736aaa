"""A prompt that another system has saved, in this project's terms."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..config import PromptConfig
from ..families import Geometry
from ..model import PromptModel

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class ForeignPrompt:
    """What a task of a model is made of.

    Args:
        config: of the task.
        prompt: the state of its `Prompt`.
        head: the state of its `Head`.
    """

    config: PromptConfig
    prompt: Mapping[str, Tensor]
    head: Mapping[str, Tensor]

    def add_to(self, model: PromptModel, name: str) -> None:
        """Add the task; if a tensor does not fit, the model stays as it was."""
        model.add_task(name, self.config)
        parts = {"prompt": (model.prompts[name], self.prompt)}
        if name in model.heads:
            parts["head"] = (model.heads[name], self.head)
        try:
            for what, (module, state) in parts.items():
                _require_shapes(what, module.state_dict(), state)
                module.load_state_dict(state)
        except ValueError:
            model.remove_task(name)
            raise


def _require_shapes(
    what: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    if unexpected := sorted(found.keys() - expected.keys()):
        raise ValueError(f"{what}: expected {sorted(expected)}, got {', '.join(unexpected)} too")
    for name, x in expected.items():
        if name not in found or found[name].shape != x.shape:
            got = tuple(found[name].shape) if name in found else "none"
            raise ValueError(f"{what}: expected {name} {tuple(x.shape)}, got {got}")
        if not found[name].isfinite().all():
            raise ValueError(f"{what}: expected finite values in {name}, got NaN or infinity")


def unflatten(flat: Tensor, geometry: Geometry) -> Tensor:
    """(prompt_length, layers * 2 * hidden_size), as everyone but us has it, keys first.

    Returns:
        (layers, 2, heads, prompt_length, head_dim).
    """
    sizes = (geometry.layers, 2, geometry.heads, geometry.head_dim)
    width = sizes[0] * 2 * sizes[2] * sizes[3]
    if flat.dim() != 2 or flat.shape[1] != width:
        raise ValueError(
            f"prompt: expected (prompt_length, {width}) for a backbone of {geometry.layers} "
            f"layers, got {tuple(flat.shape)}"
        )
    return flat.float().view(-1, *sizes).permute(1, 2, 3, 0, 4).contiguous()


def flatten(key_value: Tensor) -> Tensor:
    """The inverse of `unflatten`."""
    return key_value.permute(3, 0, 1, 2, 4).flatten(1).contiguous()


def label_names(labels: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The labels that were given, or those that transformers makes up."""
    names = tuple(f"LABEL_{i}" for i in range(count)) if labels is None else tuple(labels)
    if len(names) != count:
        raise ValueError(f"labels: expected {count}, as the head has, got {len(names)}: {names}")
    return names


def field(
    values: Mapping[str, Any],
    name: str,
    where: str,
    kind: type[Kind],
    default: Kind | None = None,
) -> Kind:
    """A value of some type; an int counts as a float, True and False as bool alone.

    Args:
        default: what it is if it is not there, or null. None: it has to be there.

    Raises:
        ValueError: it is not there, or of another type.
    """
    value = values.get(name)
    if value is None and default is not None:
        return default
    if name not in values:
        raise ValueError(f"{where}: expected {name}, got {', '.join(sorted(values)) or 'nothing'}")
    wanted = (int, float) if kind is float else kind
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}: expected {name} of type {kind.__name__}, got {value!r}")
    return cast(Kind, value)


def read_json(place: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not one.
    """
    if not place.is_file():
        raise FileNotFoundError(f"source: expected {place.name} in {place.parent}, found none")
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{place}: not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{place}: expected a JSON object, got {type(found).__name__}")
    return found


def read_tensors(directory: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of the first of these files that is there, safetensors or a torch checkpoint.

    Of a checkpoint, which is a pickle, torch reads tensors alone (`weights_only`).

    Raises:
        FileNotFoundError: there is none.
        ValueError: it holds something else.
    """
    place = next((directory / name for name in names if (directory / name).is_file()), None)
    if place is None:
        raise FileNotFoundError(f"source: expected {' or '.join(names)} in {directory}")
    try:
        if place.suffix == ".safetensors":
            found = load_file(place)
        else:
            found = torch.load(place, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{place}: not a file of tensors: {reason}") from None
    if not isinstance(found, dict) or not all(isinstance(x, Tensor) for x in found.values()):
        raise ValueError(f"{place}: expected tensors by name, got {type(found).__name__}")
    return {name: x for name, x in found.items() if x.dim()}  # no parameter is a single number

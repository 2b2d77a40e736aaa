"""A prompt on disk: `prompt_config.json`, `prompt.safetensors`, a model card; never a pickle."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from . import storage
from .config import PromptConfig
from .families import Geometry
from .heads import Head, build_head
from .pools import FoldedPrompt
from .prompts import Prompt

FORMAT_VERSION = 1
CONFIG, TENSORS, TRAINING, CARD = (
    "prompt_config.json",
    "prompt.safetensors",
    "training.safetensors",
    "README.md",
)


@dataclass(frozen=True)
class Asset:
    """A task as it is saved.

    Args:
        name: of the task.
        config: of the prompt.
        backbone: name_or_path, model_type and fingerprint of the backbone it was trained on.
        tensors: "key_value" (layers, 2, heads, prompt_length, head_dim), "gate" (layers, heads,
            prompt_length) of a prompt that has gates, "embeddings" (prompt_length,
            embedding_size) of one of depth "input", and "head.*", float32.
        training: the parametrisation, to resume training; empty if it is the prompt itself.
    """

    name: str
    config: PromptConfig
    backbone: dict[str, Any]
    tensors: dict[str, Tensor]
    training: dict[str, Tensor]

    @classmethod
    def of_task(
        cls,
        name: str,
        config: PromptConfig,
        backbone: dict[str, Any],
        folded: FoldedPrompt,
        prompt: Prompt,
        head: Head | None,
    ) -> "Asset":
        """Gather a task, whose prompt folds to `folded`."""
        tensors = {"key_value": folded.key_value}
        for part in ("gate", "embeddings"):
            if (values := getattr(folded, part)) is not None:
                tensors[part] = values
        if head is not None:
            tensors |= {f"head.{key}": weight for key, weight in head.state_dict().items()}
        training = prompt.state_dict() if config.folds else {}
        return cls(name, config, backbone, _portable(tensors), _portable(training))

    @property
    def form(self) -> str:
        """What the prompt consists of, in words."""
        layers, _, heads, length, head_dim = self.tensors["key_value"].shape
        if self.config.depth == "input":
            return f"{length} embeddings before the text's, in no layer"
        parts = "keys, values and gates" if self.config.gate else "keys and values"
        return f"{length} {parts} in each of {layers} layers ({heads} heads of size {head_dim})"

    def build(self, geometry: Geometry) -> tuple[Prompt, Head | None]:
        """Make the prompt and the head, after checking every tensor's name and shape.

        Raises:
            ValueError: a tensor is missing, unexpected or of another shape.
        """
        config = self.config if self.training else self.config.folded()
        prompt, head = Prompt(config, geometry), build_head(config, geometry.hidden_size)
        expected = {"key_value": torch.empty(prompt.key_value_shape)}
        if config.gate:
            expected["gate"] = torch.empty(prompt.gate_shape)
        if config.depth == "input":
            expected["embeddings"] = torch.empty(prompt.shape)
        weights = {} if head is None else head.state_dict()
        _require_like(
            self.tensors, expected | {f"head.{key}": weight for key, weight in weights.items()}
        )
        values = "embeddings" if config.depth == "input" else "key_value"
        names = {"embedding": values} | ({"gate": "gate"} if config.gate else {})
        state = self.training or {own: self.tensors[name] for own, name in names.items()}
        _require_like(state, prompt.state_dict())
        prompt.load_state_dict(state)
        if head is not None:
            head.load_state_dict({key: self.tensors[f"head.{key}"] for key in weights})
        return prompt, head


def write_asset(directory: str | os.PathLike[str], asset: Asset) -> None:
    """Save an asset; one that is there already is replaced as a whole.

    Raises:
        FileExistsError: the path is a file, or a README.md there is not part of an asset.
        ValueError: a tensor is not finite.
    """
    directory = Path(directory)
    require_own_card(directory)
    storage.commit(directory, asset_files(asset))
    if not asset.training:
        (directory / TRAINING).unlink(missing_ok=True)


def asset_files(asset: Asset, loader: str = "PromptModel") -> dict[str, bytes]:
    """The files of an asset, by their names.

    Args:
        loader: the class that loads it; another one than PromptModel from the folder above.

    Raises:
        ValueError: a tensor is not finite.
    """
    _require_finite(asset.tensors | asset.training)
    files = {TENSORS: save(asset.tensors)}
    if asset.training:
        files[TRAINING] = save(asset.training)
    description = {
        "format_version": FORMAT_VERSION,
        "name": asset.name,
        "config": asset.config.to_dict(),
        "backbone": asset.backbone,
        "tensors": _shapes(asset.tensors),
        "training": _shapes(asset.training),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    files[CARD] = _card(asset, loader).encode()
    files[CONFIG] = (json.dumps(description, indent=2) + "\n").encode()
    return files


def read_asset(directory: str | os.PathLike[str], part: str = "") -> Asset:
    """Load an asset and check it: version, checksums, tensor names, shapes, dtypes, finiteness.

    Args:
        part: the folder in `directory` that it lies in, if several are saved there in one step.

    Raises:
        FileNotFoundError: there is no asset.
        ValueError: it is corrupt, or of another format version.
    """
    read = partial(_read_file, Path(directory), part)
    before = read(CONFIG)
    while True:
        try:
            return _read_asset(Path(directory) / part, read)
        except (FileNotFoundError, ValueError):
            now = read(CONFIG)
            if now == before:
                raise
            before = now  # another process has saved meanwhile


def _read_file(directory: Path, part: str, name: str) -> bytes:
    return storage.read(directory, f"{part}/{name}" if part else name)


def _read_asset(directory: Path, read: Callable[[str], bytes]) -> Asset:
    place = directory / CONFIG
    try:
        description = json.loads(read(CONFIG))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{place}: not valid JSON: {error}") from None
    if not isinstance(description, dict):
        raise ValueError(f"{place}: expected a JSON object, got {type(description).__name__}")
    if (version := description.get("format_version")) != FORMAT_VERSION:
        raise ValueError(f"{place}: expected format_version {FORMAT_VERSION}, got {version!r}")
    try:
        name, backbone = description["name"], dict(description["backbone"])
        for field in ("name_or_path", "model_type"):
            if not isinstance(backbone[field], str):
                raise TypeError(f"{field}: expected a text, got {backbone[field]!r}")
        config = PromptConfig.from_dict(description["config"])
        sums, shapes = dict(description["sha256"]), description["tensors"]
        training_shapes = description["training"]
    except KeyError as error:
        raise ValueError(f"{place}: the field {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from None
    tensors = _read_tensors(directory / TENSORS, read(TENSORS), sums, shapes)
    training = {}
    if training_shapes:
        place = directory / TRAINING
        training = _read_tensors(place, read(TRAINING), sums, training_shapes)
    return Asset(name, config, backbone, tensors, training)


def require_own_card(directory: Path) -> None:
    """Raise a FileExistsError if a save would overwrite a README.md that is not of an asset."""
    if (directory / CARD).exists() and not is_asset(directory):
        raise FileExistsError(f"directory: {directory} has a {CARD} that a save would overwrite")


def is_asset(directory: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a saved prompt."""
    return storage.holds(Path(directory), CONFIG)


def saved_prompts(directory: Path) -> list[str]:
    """The names of the folders in a directory that hold a saved prompt, in order.

    Raises:
        FileNotFoundError: there is no such directory, or no saved prompt in it.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"prompts: there is no directory {directory}")
    names = sorted(x.name for x in directory.iterdir() if x.is_dir() and is_asset(x))
    if not names:
        raise FileNotFoundError(f"prompts: expected a saved prompt in a folder of {directory}")
    return names


def _read_tensors(
    place: Path, data: bytes, sums: Mapping[str, str], shapes: Mapping[str, Any]
) -> dict[str, Tensor]:
    if hashlib.sha256(data).hexdigest() != sums.get(place.name):
        raise ValueError(f"{place}: corrupt, its SHA-256 is not the one in {CONFIG}")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(f"{place}: not a safetensors file: {error}") from None
    if _shapes(tensors) != shapes:
        raise ValueError(f"{place}: expected {shapes}, got {_shapes(tensors)}")
    try:
        _require_finite(tensors)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return tensors


def _portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: x.detach().to("cpu", torch.float32).contiguous().clone()
        for name, x in tensors.items()
    }


def _require_like(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    found = _shapes(tensors)
    wanted = _shapes(expected)
    if found != wanted:
        raise ValueError(f"asset: expected the tensors {wanted}, got {found}")


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: expected finite values, got NaN or infinity")


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        name: {"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}
        for name, x in sorted(tensors.items())
    }


def _card(asset: Asset, loader: str) -> str:
    config, base = asset.config, asset.backbone["name_or_path"]
    labels = ", ".join(f"`{label}`" for label in config.labels) or "none"
    folder = "this/folder" if loader == "PromptModel" else "the/folder/above"
    return f"""---
library_name: ptv2
tags: [p-tuning-v2, prefix-tuning, {config.task}]
---

# {asset.name}

A P-Tuning v2 prompt for {config.task} on a frozen backbone, `{base}`
({asset.backbone["model_type"]}).

- prompt: {asset.form}
- labels: {labels}

```python
import ptv2

model = ptv2.{loader}.from_pretrained({base!r})
model.load_task("path/of/{folder}", name={asset.name!r})
```
"""

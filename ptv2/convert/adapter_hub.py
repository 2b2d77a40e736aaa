"""Prefix tuning of adapter-hub's `adapters` (1.3's format), read.

Positions are not moved there. A classifier of two layers has tanh or gelu between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import PromptConfig
from ..families import Geometry
from ..model import PromptModel
from .foreign import ForeignPrompt, field, label_names, read_json, read_tensors, unflatten

CONFIG = "adapter_config.json"
_KINDS = {
    "classification": "sequence-classification",
    "multilabel_classification": "sequence-classification",
    "tagging": "token-classification",
    "question_answering": "question-answering",
    "multiple_choice": "multiple-choice",
}
_FAMILIES = ("albert", "bert", "distilbert", "electra", "roberta", "xlm-roberta")


def import_adapters(
    model: PromptModel,
    directory: str | PathLike[str],
    name: str,
    labels: Sequence[str] | None = None,
) -> None:
    """Add a task from a folder that `save_adapter` wrote; without a head it gives features.

    Args:
        labels: names of the classes, if not those of the saved head.

    Raises:
        FileNotFoundError: there is no adapter.
        ValueError: it is not of prefix tuning, not whole, or does not fit the backbone.
    """
    directory = Path(directory)
    description = read_json(directory / CONFIG)
    settings = _require_prefix(model, description)
    tensors = read_tensors(directory, ("adapter.safetensors", "pytorch_adapter.bin"))
    layers = [i for i in range(model.geometry.layers) if i not in settings.get("leave_out", [])]
    geometry = replace(model.geometry, layers=len(layers))
    prompt, form = _read_prompt(
        _own_part(tensors, field(description, "name", CONFIG)), settings, geometry
    )
    kind, head, fields = _read_head(directory, labels)
    config = PromptConfig(
        kind,  # type: ignore[arg-type]
        prompt_length=int(field(settings, "prefix_length", CONFIG)),
        layers=tuple(layers) if len(layers) < model.geometry.layers else None,
        prompt_dropout=float(settings.get("dropout", 0.0)),
        pooling="first",
        **form,
        **fields,
    )
    ForeignPrompt(config, prompt, head).add_to(model, name)


def _require_prefix(model: PromptModel, description: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an adapter that computes what a prompt here computes."""
    settings = description.get("config")
    if not isinstance(settings, dict) or settings.get("architecture") != "prefix_tuning":
        got = settings.get("architecture") if isinstance(settings, dict) else settings
        raise ValueError(f"{CONFIG}: expected architecture 'prefix_tuning', got {got!r}")
    if settings.get("use_gating"):
        raise ValueError("use_gating: gates that depend on the input have no match here")
    if not settings.get("flat") and settings.get("non_linearity") != "tanh":
        raise ValueError(f"non_linearity: expected 'tanh', got {settings.get('non_linearity')!r}")
    family, own = description.get("model_type"), model.backbone.config.model_type
    if family != own or own not in _FAMILIES:
        raise ValueError(
            f"{CONFIG}: expected model_type {own!r} of {', '.join(_FAMILIES)}, got {family!r}"
        )
    return settings


def _own_part(tensors: Mapping[str, Tensor], adapter: str) -> dict[str, Tensor]:
    """The prefix's tensors; the files repeat them for every layer."""
    marker = f".prefix_tunings.{adapter}.self_prefix."
    found = {key.split(marker)[1]: x for key, x in tensors.items() if marker in key}
    if not found:
        raise ValueError(f"source: expected tensors of {marker}, got {sorted(tensors)[:3]}")
    return found


def _read_prompt(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any], geometry: Geometry
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of a `Prompt`, and the fields of its parametrisation."""
    if settings.get("flat"):
        length = int(field(settings, "prefix_length", CONFIG))
        flat = field(tensors, "control_trans", "source")
        if length < 1 or flat.numel() % length:
            raise ValueError(
                f"{CONFIG}: expected a prefix_length that divides {flat.numel()}, got {length}"
            )
        return {"embedding": unflatten(flat.reshape(length, -1), geometry)}, {}
    network = {
        key.replace("control_trans", "network"): x
        for key, x in tensors.items()
        if key.startswith("control_trans.")
    }
    form = {
        "parametrization": "mlp",
        "network_size": int(field(settings, "bottleneck_size", CONFIG)),
    }
    return {"embedding": field(tensors, "wte.weight", "source"), **network}, form


def _read_head(
    directory: Path, labels: Sequence[str] | None
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """The kind of task, the state of a `Head`, and its fields of a configuration."""
    place = directory / "head_config.json"
    if not place.is_file():
        return "feature-extraction", {}, {}
    settings = field(read_json(place), "config", place.name)
    if settings.get("head_type") not in _KINDS:
        raise ValueError(
            f"head_type: expected {' or '.join(_KINDS)}, got {settings.get('head_type')!r}"
        )
    if settings.get("use_pooler"):
        raise ValueError("use_pooler: expected a head on the first token, got one on the pooler")
    kind = _KINDS[settings["head_type"]]
    tensors = read_tensors(directory, ("model_head.safetensors", "pytorch_model_head.bin"))
    modules = sorted({int(key.split(".")[-2]) for key in tensors})
    names = {1: ("linear",), 2: ("dense", "linear")}.get(len(modules))
    if names is None:
        raise ValueError(f"layers: expected a head of 1 or 2, got {len(modules)}")
    head = {
        f"{own}.{part}": x
        for own, module in zip(names, modules, strict=True)
        for part in ("weight", "bias")
        for key, x in tensors.items()
        if key.endswith(f".{module}.{part}")
    }
    fields: dict[str, Any] = {"multi_label": settings["head_type"].startswith("multilabel")}
    if "dense" in names:
        fields["head_activation"] = settings.get("activation_function")
    if kind.endswith("classification"):
        stored = settings.get("label2id") or {}
        classes = len(field(head, "linear.weight", "head"))
        found = labels or (
            sorted(stored, key=stored.__getitem__) if len(stored) == classes else None
        )
        fields["labels"] = label_names(found, classes)
    return kind, head, fields

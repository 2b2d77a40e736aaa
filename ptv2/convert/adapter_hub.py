"""Prefix tuning of adapter-hub's `adapters` (1.3's format), read.

Positions are not moved there. A classifier of two layers has tanh or gelu between them. DeBERTa v1
cannot be read: `adapters` gives its attention a random bias that it computes with and never saves.
To DistilBERT's scores of the prefix it adds 1 in batches with padding under SDPA, its default, and
nothing in others or in eager attention: what is read is the latter, with a warning.
"""

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from ..clip import ClipPromptModel
from ..config import PromptConfig
from ..families import family_of
from ..model import PromptModel
from .foreign import ForeignPrompt, field, label_names, read_json, read_tensors, unflatten

CONFIG = "adapter_config.json"
_KINDS = {
    "classification": "sequence-classification",
    "multilabel_classification": "sequence-classification",
    "tagging": "token-classification",
    "question_answering": "question-answering",
    "multiple_choice": "multiple-choice",
    "image_classification": "image-classification",
}
_PLACES = {
    "albert": "self_prefix",
    "bert": "self_prefix",
    "clip_text_model": "clip_text_model_self_prefix",
    "clip_vision_model": "clip_vision_model_self_prefix",
    "deberta-v2": "self_prefix",
    "distilbert": "self",
    "electra": "self_prefix",
    "roberta": "self_prefix",
    "vit": "self_prefix",
    "xlm-roberta": "self_prefix",
}
"""What the prefix is called in an encoder of each family."""


def import_adapters(
    model: PromptModel | ClipPromptModel,
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
    kind, head, fields = _read_head(directory, labels)
    if isinstance(model, ClipPromptModel) and kind != "feature-extraction":
        raise ValueError(f"head_config.json: expected no head on CLIP, got one for {kind}")
    prompts: list[ForeignPrompt] = []
    encoders = _encoders(model, settings)
    for encoder, left_out in encoders:
        own = _own_part(encoder, tensors, field(description, "name", CONFIG, str))
        prompt, form = _read_prompt(encoder, own, settings, left_out)
        config = PromptConfig(
            kind,  # type: ignore[arg-type]
            prompt_length=field(settings, "prefix_length", CONFIG, int),
            prompt_dropout=field(settings, "dropout", CONFIG, float, 0.0),
            **form,
            **fields,
        )
        prompts.append(ForeignPrompt(config, prompt, head))
    if isinstance(model, PromptModel):
        return prompts[0].add_to(model, name)
    pairs = zip(prompts, (model.text, model.images), strict=True)
    adders = [partial(prompt.add_to, encoder, name) for prompt, encoder in pairs]
    model.add_parts(name, dict(zip(("text", "images"), adders, strict=True)))


def _require_prefix(
    model: PromptModel | ClipPromptModel, description: Mapping[str, Any]
) -> dict[str, Any]:
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
    families = ("clip", *_PLACES)
    if family != own or own not in families:
        raise ValueError(
            f"{CONFIG}: expected model_type {own!r} of {', '.join(families)}, got {family!r}"
        )
    if own == "distilbert":
        warnings.warn(
            "adapters adds 1 to the scores of DistilBERT's prefix in batches with padding under "
            "SDPA; it is read as without, so that outputs differ from those",
            stacklevel=3,
        )
    return settings


def _encoders(
    model: PromptModel | ClipPromptModel, settings: Mapping[str, Any]
) -> list[tuple[PromptModel, Collection[int]]]:
    """What gets a prompt, and the layers that have none there."""
    left_out: list[Any] = field(settings, "leave_out", CONFIG, list, [])
    if not all(type(layer) is int for layer in left_out):
        raise ValueError(f"{CONFIG}: expected leave_out, numbers of layers, got {left_out}")
    if isinstance(model, PromptModel):
        return [(model, left_out)]
    texts = model.text.geometry.layers  # the layers for images are counted after these
    return [(model.text, left_out), (model.images, {layer - texts for layer in left_out})]


def _own_part(
    model: PromptModel, tensors: Mapping[str, Tensor], adapter: str
) -> dict[str, Tensor]:
    """An encoder's prefix; the files repeat it for every layer."""
    marker = f".prefix_tunings.{adapter}.{_PLACES[model.backbone.config.model_type]}."
    found = {key.split(marker)[1]: x for key, x in tensors.items() if marker in key}
    if not found:
        raise ValueError(f"source: expected tensors of {marker}, got {sorted(tensors)[:3]}")
    return found


def _read_prompt(
    model: PromptModel,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    left_out: Collection[int],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of a `Prompt`, and the fields of its form and layers."""
    modules = family_of(model.backbone.config.model_type).layers(model.backbone)
    distinct = list(dict.fromkeys(modules))  # one prefix where layers share a module
    kept = [i for i in range(len(distinct)) if i not in left_out]
    places = [distinct.index(module) for module in modules]
    layers = tuple(layer for layer, place in enumerate(places) if place in kept)
    order = [kept.index(places[layer]) for layer in layers]
    form: dict[str, Any] = {"layers": None if len(layers) == len(modules) else layers}
    if settings.get("flat"):
        length = field(settings, "prefix_length", CONFIG, int)
        flat = field(tensors, "control_trans", "source", Tensor)
        if length < 1 or flat.numel() % length:
            raise ValueError(
                f"{CONFIG}: expected a prefix_length that divides {flat.numel()}, got {length}"
            )
        geometry = replace(model.geometry, layers=len(kept))
        return {"embedding": unflatten(flat.reshape(length, -1), geometry)[order]}, form
    network = {
        key.replace("control_trans", "network"): x
        for key, x in tensors.items()
        if key.startswith("control_trans.")
    }
    for part in ("network.2.weight", "network.2.bias"):
        found = field(network, part, "source", Tensor)
        if not kept or len(found) % len(kept):
            raise ValueError(f"source: expected {part} for {len(kept)} layers, got {len(found)}")
        network[part] = found.unflatten(0, (len(kept), -1))[order].flatten(0, 1)
    form |= {
        "parametrization": "mlp",
        "network_size": field(settings, "bottleneck_size", CONFIG, int),
    }
    return {"embedding": field(tensors, "wte.weight", "source", Tensor), **network}, form


def _read_head(
    directory: Path, labels: Sequence[str] | None
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """The kind of task, the state of a `Head`, and its fields of a configuration."""
    place = directory / "head_config.json"
    if not place.is_file():
        return "feature-extraction", {}, {}
    settings = field(read_json(place), "config", place.name, dict)
    head_type = field(settings, "head_type", place.name, str)
    if head_type not in _KINDS:
        raise ValueError(f"head_type: expected {' or '.join(_KINDS)}, got {head_type!r}")
    if settings.get("use_pooler"):
        raise ValueError("use_pooler: expected a head on the first token, got one on the pooler")
    if settings.get("multilabel"):
        raise ValueError("multilabel: expected one label an image, got any number of them")
    kind = _KINDS[head_type]
    tensors = read_tensors(directory, ("model_head.safetensors", "pytorch_model_head.bin"))
    found = {key: re.fullmatch(r"(?:.*\.)?(\d+)\.(?:weight|bias)", key) for key in tensors}
    if unknown := [key for key, match in found.items() if match is None]:
        raise ValueError(f"head: expected the layers of a prediction head, got {unknown[0]!r}")
    modules = sorted({int(match[1]) for match in found.values() if match is not None})
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
    multi_label = head_type.startswith("multilabel")
    fields: dict[str, Any] = {"pooling": "first", "multi_label": multi_label}
    if "dense" in names:
        fields["head_activation"] = settings.get("activation_function")
    if kind.endswith("classification"):
        classes = len(field(head, "linear.weight", "head", Tensor))
        fields["labels"] = label_names(labels or _stored_labels(settings, classes), classes)
    return kind, head, fields


def _stored_labels(settings: Mapping[str, Any], count: int) -> list[str] | None:
    """The names that a head has for its classes; None if it has none."""
    numbers: dict[str, Any] = field(settings, "label2id", "head_config.json", dict, {})
    if not numbers:
        return None
    if any(type(x) is not int for x in numbers.values()) or (
        sorted(numbers.values()) != list(range(count))
    ):
        raise ValueError(
            f"label2id: expected the numbers below {count}, once each, got {numbers}; "
            f"or give the labels"
        )
    return sorted(numbers, key=numbers.__getitem__)

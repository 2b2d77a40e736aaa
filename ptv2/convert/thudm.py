"""Checkpoints of the official P-Tuning v2 code (THUDM/P-tuning-v2), read.

It saves the whole model: the frozen backbone, `prefix_encoder` and the head. As in PEFT, the
sequence's own positions begin at P, where the backbone adds positions to its input. Its sequence
classifiers and multiple choices stand on the backbone's pooler; RoBERTa has none when it is
pretrained, so the code draws one at random, trains no gradient into it and saves it: the
checkpoint's pooler is used, never the backbone's. DeBERTa's is beside the backbone, and trained.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..config import PromptConfig
from ..model import PromptModel
from .foreign import ForeignPrompt, field, label_names, read_json, read_tensors, unflatten

_KINDS = {
    "PrefixForSequenceClassification": "sequence-classification",
    "PrefixForTokenClassification": "token-classification",
    "PrefixForQuestionAnswering": "question-answering",
    "PrefixModelForQuestionAnswering": "question-answering",
    "PrefixForMultipleChoice": "multiple-choice",
}
_FAMILIES = ("bert", "roberta", "deberta", "deberta-v2")
_PREFIX = "prefix_encoder.embedding.weight"


def import_thudm(
    model: PromptModel,
    directory: str | PathLike[str],
    name: str,
    labels: Sequence[str] | None = None,
) -> None:
    """Add a task from a checkpoint's folder (`config.json` and the weights).

    Args:
        labels: names of the classes, if not those of the checkpoint's configuration.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is of no prefix, not whole, or of another backbone.
    """
    directory = Path(directory)
    settings = read_json(directory / "config.json")
    kind = _kind(settings)
    tensors = read_tensors(directory, ("model.safetensors", "pytorch_model.bin"))
    if _PREFIX not in tensors:
        raise ValueError(f"{directory}: expected {_PREFIX}, found none; is it of prefix tuning?")
    _require_same_backbone(model, settings, tensors)
    head = _read_head(model, kind, tensors)
    length = len(tensors[_PREFIX])
    prompt, form = _read_prompt(model, tensors)
    backbone = model.backbone.config
    activation: Any = _pooler(backbone)[1] if "dense.weight" in head else None
    dropout = field(settings, "hidden_dropout_prob", "config.json", float, 0.1)
    classes = len(head["linear.bias"]) if kind.endswith("classification") else 0
    config = PromptConfig(
        kind,  # type: ignore[arg-type]
        label_names(labels or _stored_labels(settings, classes), classes) if classes else (),
        prompt_length=length,
        position_offset=length if getattr(backbone, "position_biased_input", True) else 0,
        pooling="first",
        head_activation=activation,
        prompt_dropout=dropout,
        head_dropout=dropout,
        **form,
    )
    ForeignPrompt(config, prompt, head).add_to(model, name)


def _kind(settings: Mapping[str, Any]) -> str:
    names = field(settings, "architectures", "config.json", list, ["none"])
    for ending, kind in _KINDS.items():
        if str(names[0]).endswith(ending):
            return kind
    raise ValueError(
        f"config.json: expected architectures that end in {' or '.join(_KINDS)}, got {names}"
    )


def _require_same_backbone(
    model: PromptModel, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    family, own = settings.get("model_type"), model.backbone.config.model_type
    if family not in _FAMILIES or family != own:
        raise ValueError(
            f"config.json: expected model_type {own!r} of {' or '.join(_FAMILIES)}, got {family!r}"
        )
    if getattr(model.backbone.config, "conv_kernel_size", 0):
        raise ValueError(
            "conv_kernel_size: expected no convolution, into which the official code, unlike "
            "transformers, lets the embeddings of padding"
        )
    prefix = model.backbone.base_model_prefix
    for name, weight in model.backbone.named_parameters():
        if name.startswith("pooler."):
            continue
        theirs = field(tensors, f"{prefix}.{name}", "source", Tensor)
        if theirs.shape != weight.shape or not torch.equal(theirs.to(weight), weight):
            raise ValueError(
                f"source: its backbone is not {model.backbone.config._name_or_path!r}: "
                f"{prefix}.{name} differs"
            )


def _read_prompt(
    model: PromptModel, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of a `Prompt`, and the fields of its parametrisation."""
    names = {
        f"network.{place}.{part}": f"prefix_encoder.trans.{place}.{part}"
        for place in (0, 2)
        for part in ("weight", "bias")
    }
    if "prefix_encoder.trans.0.weight" not in tensors:
        return {"embedding": unflatten(tensors[_PREFIX], model.geometry)}, {}
    network = {own: tensors[theirs] for own, theirs in names.items() if theirs in tensors}
    width = len(tensors["prefix_encoder.trans.0.weight"])
    form = {"parametrization": "mlp", "network_size": width}
    return {"embedding": tensors[_PREFIX], **network}, form


def _read_head(model: PromptModel, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    layers = {"linear": "qa_outputs" if kind == "question-answering" else "classifier"}
    if kind in ("sequence-classification", "multiple-choice"):
        layers["dense"] = _pooler(model.backbone.config)[0]
    found = {}
    for own, theirs in layers.items():
        for part in ("weight", "bias"):
            if f"{theirs}.{part}" not in tensors:
                raise ValueError(f"source: expected {theirs}.{part} in the checkpoint, found none")
            found[f"{own}.{part}"] = tensors[f"{theirs}.{part}"]
    return found


def _pooler(backbone: PreTrainedConfig) -> tuple[str, str]:
    """The layer under a classifier of whole sequences, and its activation."""
    if backbone.model_type.startswith("deberta"):
        return "pooler.dense", backbone.pooler_hidden_act
    return f"{backbone.model_type}.pooler.dense", "tanh"


def _stored_labels(settings: Mapping[str, Any], count: int) -> list[str] | None:
    """The names in a configuration, unless they are of another number of classes."""
    names = field(settings, "id2label", "config.json", dict, {})
    found = [str(names[key]) for key in sorted(names, key=int)]
    return found if len(found) == count else None

"""Prefix-tuning adapters of PEFT (0.21's format), read and written.

PEFT hands the prefix to the model as a cache of P tokens, so that the sequence's own positions
begin at P (`position_offset`). For question answering and features it drops token_type_ids.
"""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from .. import storage
from ..config import PromptConfig
from ..model import PromptModel
from .foreign import ForeignPrompt, field, flatten, label_names, read_json, read_tensors, unflatten

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_KINDS = {
    "SEQ_CLS": "sequence-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}
_ACTIVATIONS = {
    "bert": "tanh",
    "camembert": "tanh",
    "electra": "gelu",
    "roberta": "tanh",
    "xlm-roberta": "tanh",
}
"""The families whose prefixes PEFT uses, and the hidden layer of their sequence classifiers."""


def import_peft(
    model: PromptModel,
    directory: str | PathLike[str],
    name: str,
    labels: Sequence[str] | None = None,
) -> None:
    """Add a task from a folder that `PeftModel.save_pretrained` wrote.

    Args:
        model: of the backbone that the adapter was trained on. For a sequence classification with
            BERT it has its pooler, which is a part of that head.
        labels: names of the classes; PEFT keeps none.

    Raises:
        FileNotFoundError: there is no adapter.
        ValueError: it is not of prefix tuning, not whole, or does not fit the backbone.
    """
    directory = Path(directory)
    settings = read_json(directory / CONFIG)
    tensors = read_tensors(directory, (TENSORS, "adapter_model.bin"))
    tensors = {
        key.removeprefix("base_model.").removeprefix("model."): x for key, x in tensors.items()
    }
    kind = _require_prefix(model, settings)
    key_value = unflatten(field(tensors, "prompt_embeddings", "source", Tensor), model.geometry)
    head = {} if kind == "feature-extraction" else _read_head(model, kind, tensors)
    known = {"prompt_embeddings", *(_head_layout(model, kind).values() if head else ())}
    if others := sorted(tensors.keys() - known):
        raise ValueError(
            f"source: expected a prefix and a head, got weights of the backbone too: {others[0]}"
        )
    length = key_value.shape[3]
    if length < 1 or settings.get("num_virtual_tokens") != length:
        raise ValueError(
            f"{CONFIG}: expected num_virtual_tokens of the {length} rows in the file, at least 1, "
            f"got {settings.get('num_virtual_tokens')!r}"
        )
    config = PromptConfig(
        kind,  # type: ignore[arg-type]
        label_names(labels, len(head["linear.bias"])) if kind.endswith("classification") else (),
        prompt_length=length,
        position_offset=length,
        pooling="first",
        head_activation=_activation(model, kind),  # type: ignore[arg-type]
        token_types=kind.endswith("classification"),
    )
    ForeignPrompt(config, {"embedding": key_value}, head).add_to(model, name)


def export_peft(model: PromptModel, name: str, directory: str | PathLike[str]) -> None:
    """Write a task as a folder that `PeftModel.from_pretrained` loads.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: PEFT would compute something else; the message says why.
    """
    config, directory = model.tasks[name], Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"output: expected no or an empty folder, got {directory}")
    _require_exportable(model, config)
    geometry = model.geometry
    tensors = {"prompt_embeddings": flatten(model.key_value(name))}
    modules = []
    if name in model.heads:
        layout = _head_layout(model, config.task)
        state = model.heads[name].state_dict()
        tensors |= {f"base_model.{theirs}": state[own] for own, theirs in layout.items()}
        modules = sorted({x.removeprefix("bert.").split(".")[0] for x in layout.values()})
    settings = {
        "base_model_name_or_path": model.identity.describe()["name_or_path"],
        "encoder_hidden_size": geometry.hidden_size,
        "inference_mode": True,
        "modules_to_save": modules or None,
        "num_attention_heads": geometry.heads,
        "num_layers": geometry.layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": config.prompt_length,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": False,
        "task_type": next(theirs for theirs, kind in _KINDS.items() if kind == config.task),
        "token_dim": geometry.heads * geometry.head_dim,
    }
    files = {
        TENSORS: save({key: x.detach().cpu().float().contiguous() for key, x in tensors.items()}),
        CONFIG: (json.dumps(settings, indent=2) + "\n").encode(),
    }
    storage.commit(directory, files)


def _require_prefix(model: PromptModel, settings: Mapping[str, Any]) -> str:
    """The kind of task of an adapter, if it is one that PEFT itself would use."""
    geometry = model.geometry
    expected = {
        "peft_type": "PREFIX_TUNING",
        "num_layers": geometry.layers,
        "num_attention_heads": geometry.heads,
        "token_dim": geometry.heads * geometry.head_dim,
        "num_transformer_submodules": 1,
    }
    for key, value in expected.items():
        if settings.get(key) != value:
            raise ValueError(f"{CONFIG}: expected {key} {value!r}, got {settings.get(key)!r}")
    _require_family(model)
    task_type = settings.get("task_type")
    if task_type not in _KINDS:
        raise ValueError(f"{CONFIG}: expected task_type {' or '.join(_KINDS)}, got {task_type!r}")
    return _KINDS[task_type]


def _require_family(model: PromptModel) -> None:
    family = model.backbone.config.model_type
    if family not in _ACTIVATIONS:
        raise ValueError(
            f"backbone: PEFT's prefixes work with {', '.join(_ACTIVATIONS)}, got {family}"
        )


def _require_exportable(model: PromptModel, config: PromptConfig) -> None:
    length = config.prompt_length
    _require_family(model)
    if config.task not in _KINDS.values():
        raise ValueError(f"task: PEFT has no {config.task}, expected {', '.join(_KINDS.values())}")
    expected: dict[str, Any] = {"depth": "layers", "gate": False, "position_offset": length}
    if config.task == "sequence-classification":
        expected |= {"pooling": "first"}
    if config.task != "feature-extraction":
        expected |= {"head_activation": _activation(model, config.task)}
    if _has_token_types(model):
        expected |= {"token_types": config.task.endswith("classification")}
    for name, value in expected.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name}: PEFT computes with {value!r}, got a prompt trained with "
                f"{getattr(config, name)!r}"
            )
    if config.layers not in (None, tuple(range(model.geometry.layers))):
        raise ValueError(f"layers: PEFT has a prefix in all of them, got {config.layers}")
    if length == 0:
        raise ValueError("prompt_length: PEFT has no prefix of length 0, expected at least 1")


def _has_token_types(model: PromptModel) -> bool:
    return getattr(model.backbone.config, "type_vocab_size", 1) > 1


def _activation(model: PromptModel, kind: str) -> str | None:
    """The hidden layer of the head that transformers has for a kind of task."""
    family = model.backbone.config.model_type
    return _ACTIVATIONS[family] if kind == "sequence-classification" else None


def _head_layout(model: PromptModel, kind: str) -> dict[str, str]:
    """Names in a head's state -> names in transformers' model."""
    family = model.backbone.config.model_type
    if kind == "sequence-classification" and family == "bert":
        layers = {"dense": "bert.pooler.dense", "linear": "classifier"}
    elif kind == "sequence-classification":
        layers = {"dense": "classifier.dense", "linear": "classifier.out_proj"}
    else:
        layers = {"linear": "qa_outputs" if kind == "question-answering" else "classifier"}
    return {
        f"{own}.{part}": f"{theirs}.{part}"
        for own, theirs in layers.items()
        for part in ("weight", "bias")
    }


def _read_head(model: PromptModel, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A head's state from an adapter's tensors; BERT's pooler may be the backbone's."""
    pooler = getattr(model.backbone, "pooler", None)
    known = dict(tensors)
    if pooler is not None:
        known = pooler.state_dict(prefix="bert.pooler.") | known
    layout = _head_layout(model, kind)
    for theirs in layout.values():
        if theirs not in known:
            where = " or a pretrained pooler" if "pooler" in theirs else ""
            raise ValueError(f"source: expected {theirs} in the adapter{where}, found none")
    return {own: known[theirs] for own, theirs in layout.items()}

"""What differs between model families: where the layers are and how they make keys and values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Family:
    """How to find a family's layers, in the order in which a forward calls them."""

    layers: Callable[[Any], list[nn.Module]]
    attention: Callable[[Any], Any]
    """The module that transformers hands to the attention function, from a layer."""
    key_value: Callable[[Any, Tensor], tuple[Tensor, Tensor]]
    """A layer's keys and values of hidden states (..., hidden_size) put before its input."""
    shared_modules: bool = False
    """One module serves several layers, so only the order of calls tells them apart."""


@dataclass(frozen=True)
class Geometry:
    """The sizes of a backbone that a prompt has to fit."""

    layers: int
    heads: int
    head_dim: int
    hidden_size: int


def _bert_layers(backbone: Any) -> list[nn.Module]:
    return list(backbone.encoder.layer)


def _bert_key_value(layer: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    attention = layer.attention.self
    return attention.key(states), attention.value(states)


def _distilbert_key_value(layer: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    return layer.attention.k_lin(states), layer.attention.v_lin(states)


def _albert_layers(backbone: Any) -> list[nn.Module]:
    config, groups = backbone.config, backbone.encoder.albert_layer_groups
    layers_per_group = config.num_hidden_layers / config.num_hidden_groups
    return [
        layer
        for index in range(config.num_hidden_layers)
        for layer in groups[int(index / layers_per_group)].albert_layers
    ]


def _albert_key_value(layer: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    return layer.attention.key(states), layer.attention.value(states)


def _modernbert_key_value(layer: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """Pre-norm; the prompt stands at position 0, where the rotary embedding is the identity."""
    _, key, value = layer.attn.Wqkv(layer.attn_norm(states)).chunk(3, -1)
    return key, value


_BERT = Family(_bert_layers, lambda layer: layer.attention.self, _bert_key_value)

FAMILIES: dict[str, Family] = {
    "albert": Family(
        _albert_layers, lambda layer: layer.attention, _albert_key_value, shared_modules=True
    ),
    "bert": _BERT,
    "camembert": _BERT,
    "distilbert": Family(
        lambda backbone: list(backbone.transformer.layer),
        lambda layer: layer.attention,
        _distilbert_key_value,
    ),
    "electra": _BERT,
    "modernbert": Family(
        lambda backbone: list(backbone.layers), lambda layer: layer.attn, _modernbert_key_value
    ),
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}


def family_of(model_type: str) -> Family:
    """The family of a transformers ``config.model_type``.

    Raises:
        NotImplementedError: the family is not supported; the message lists those that are.
    """
    if model_type not in FAMILIES:
        raise NotImplementedError(
            f"backbone: model type {model_type!r} is not supported; these families work: "
            f"{', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def geometry_of(backbone: PreTrainedModel) -> Geometry:
    """The sizes that prompts for this backbone have."""
    config = backbone.config
    heads = config.num_attention_heads
    layers = len(family_of(config.model_type).layers(backbone))
    return Geometry(layers, heads, config.hidden_size // heads, config.hidden_size)


def number_layers(backbone: PreTrainedModel) -> None:
    """Give every attention module its `layer_idx`, as most families do themselves."""
    family = family_of(backbone.config.model_type)
    if not family.shared_modules:
        for index, layer in enumerate(family.layers(backbone)):
            family.attention(layer).layer_idx = index


@torch.no_grad()
def layer_inputs(backbone: PreTrainedModel, input_ids: Tensor) -> list[Tensor]:
    """What each layer gets of one text, without dropout.

    Args:
        input_ids: (1, length).

    Returns:
        (length, hidden_size) for each layer.
    """
    training = backbone.training
    try:
        states = backbone.eval()(input_ids, output_hidden_states=True, return_dict=True)
    finally:
        backbone.train(training)
    return [state[0] for state in states.hidden_states[:-1]]


def project_hidden_states(backbone: PreTrainedModel, layer: int, states: Tensor) -> Tensor:
    """Fold prompt hidden states into the keys and values that a layer makes of them.

    Args:
        states: (prompt_length, hidden_size), put before the layer's input.

    Returns:
        (2, heads, prompt_length, head_dim), keys first.
    """
    family = family_of(backbone.config.model_type)
    states = states.to(backbone.dtype)
    key, value = family.key_value(family.layers(backbone)[layer], states)
    heads = backbone.config.num_attention_heads
    folded = torch.stack((key, value)).unflatten(-1, (heads, -1)).transpose(1, 2)
    return cast(Tensor, folded)

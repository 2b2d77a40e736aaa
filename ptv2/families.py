"""What differs between model families: where the layers are and how they make keys and values."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from . import deberta
from .attention import PromptBatch, use_attention_interface
from .modes import evaluating


def call_backbone(
    backbone: Any, inputs: Mapping[str, Tensor], prompts: PromptBatch, output_hidden_states: bool
) -> BaseModelOutput:
    """A backbone's own forward, which hands the prompts down to its attention."""
    states: BaseModelOutput = backbone(
        **inputs, prompts=prompts, output_hidden_states=output_hidden_states, return_dict=True
    )
    return states


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
    takes: Literal["input_ids", "pixel_values"] = "input_ids"
    """Texts or images."""
    prepare: Callable[[PreTrainedModel], None] = use_attention_interface
    """Switches a backbone to prompt attention."""
    encode: Callable[..., BaseModelOutput] = call_backbone
    """(backbone, inputs, prompts, output_hidden_states) -> the states."""
    causal: bool = False
    """A token sees those before it alone, so that the first one says nothing of its sequence."""


@dataclass(frozen=True)
class Geometry:
    """The sizes of a backbone that a prompt has to fit."""

    layers: int
    heads: int  # of keys and values; queries may have a multiple of them
    head_dim: int
    hidden_size: int
    embedding_size: int | None  # of a token; None: the backbone takes no embeddings


Find = Callable[[Any], Any]


def _key_value(
    attention: Find, key: str, value: str, norm: Find | None = None
) -> Callable[[Any, Tensor], tuple[Tensor, Tensor]]:
    """How a layer makes keys and values, after its norm in a pre-norm model.

    With a rotary embedding the prompt stands at position 0, where that is the identity.
    """

    def project(layer: Any, states: Tensor) -> tuple[Tensor, Tensor]:
        states = states if norm is None else norm(layer)(states)
        module = attention(layer)
        return getattr(module, key)(states), getattr(module, value)(states)

    return project


def _fused_key_value(layer: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    _, key, value = layer.attn.Wqkv(layer.attn_norm(states)).chunk(3, -1)
    return key, value


def _albert_layers(backbone: Any) -> list[nn.Module]:
    config, groups = backbone.config, backbone.encoder.albert_layer_groups
    layers_per_group = config.num_hidden_layers / config.num_hidden_groups
    return [
        layer
        for index in range(config.num_hidden_layers)
        for layer in groups[int(index / layers_per_group)].albert_layers
    ]


def _family(
    layers: Find, attention: Find, key: str, value: str, norm: Find | None = None, **options: Any
) -> Family:
    key_value = _key_value(attention, key, value, norm)
    return Family(lambda backbone: list(layers(backbone)), attention, key_value, **options)


_BERT = _family(
    lambda backbone: backbone.encoder.layer, lambda layer: layer.attention.self, "key", "value"
)
_CLIP: dict[str, Any] = {
    "layers": lambda backbone: backbone.encoder.layers,
    "attention": lambda layer: layer.self_attn,
    "key": "k_proj",
    "value": "v_proj",
    "norm": lambda layer: layer.layer_norm1,
}

_DEBERTA: dict[str, Any] = {"prepare": deberta.use_own_attention, "encode": deberta.encode}

FAMILIES: dict[str, Family] = {
    "albert": _family(
        _albert_layers, lambda layer: layer.attention, "key", "value", shared_modules=True
    ),
    "bert": _BERT,
    "camembert": _BERT,
    "clip_text_model": _family(**_CLIP, causal=True),
    "clip_vision_model": _family(**_CLIP, takes="pixel_values"),
    "deberta": Family(
        lambda backbone: list(backbone.encoder.layer),
        lambda layer: layer.attention.self,
        deberta.key_value,
        **_DEBERTA,
    ),
    "deberta-v2": _family(
        lambda backbone: backbone.encoder.layer,
        lambda layer: layer.attention.self,
        "key_proj",
        "value_proj",
        **_DEBERTA,
    ),
    "distilbert": _family(
        lambda backbone: backbone.transformer.layer,
        lambda layer: layer.attention,
        "k_lin",
        "v_lin",
    ),
    "electra": _BERT,
    "esm": _family(
        lambda backbone: backbone.encoder.layer,
        lambda layer: layer.attention.self,
        "key",
        "value",
        lambda layer: layer.attention.LayerNorm,
    ),
    "eurobert": _family(
        lambda backbone: backbone.layers,
        lambda layer: layer.self_attn,
        "k_proj",
        "v_proj",
        lambda layer: layer.input_layernorm,
    ),
    "modernbert": Family(
        lambda backbone: list(backbone.layers), lambda layer: layer.attn, _fused_key_value
    ),
    "nomic_bert": _family(
        lambda backbone: backbone.layers, lambda layer: layer.self_attn, "k_proj", "v_proj"
    ),
    "roberta": _BERT,
    "vit": _family(
        lambda backbone: backbone.layers,
        lambda layer: layer.attention,
        "k_proj",
        "v_proj",
        lambda layer: layer.layernorm_before,
        takes="pixel_values",
    ),
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
            + ("; ClipPromptModel takes both encoders of a clip" if model_type == "clip" else "")
        )
    return FAMILIES[model_type]


def geometry_of(backbone: PreTrainedModel) -> Geometry:
    """The sizes that prompts for this backbone have."""
    config = backbone.config
    layers = len(family_of(config.model_type).layers(backbone))
    queries = config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or queries
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // queries
    return Geometry(layers, heads, head_dim, config.hidden_size, _embedding_size(backbone))


def _embedding_size(backbone: PreTrainedModel) -> int | None:
    """The width of `inputs_embeds`; ESM's stand for more than a token's own."""
    accepted = inspect.signature(backbone.forward).parameters
    if "inputs_embeds" not in accepted or backbone.config.model_type == "esm":
        return None
    table = cast(nn.Embedding, backbone.get_input_embeddings())
    return table.embedding_dim


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
    family = family_of(backbone.config.model_type)
    bare = PromptBatch([None] * len(family.layers(backbone)), by_call_order=family.shared_modules)
    with evaluating(backbone):
        states = family.encode(backbone, {"input_ids": input_ids}, bare, True)
    assert states.hidden_states is not None
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
    heads = geometry_of(backbone).heads
    folded = torch.stack((key, value)).unflatten(-1, (heads, -1)).transpose(1, 2)
    return cast(Tensor, folded)

"""The seam with transformers: one attention function and one mask function, named "ptv2".

The prompts reach the function as the keyword argument ``prompts`` of the model's forward, so there
is no global state, and the argument survives activation checkpointing.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ptv2_kernels import RelativePositions, prefix_attention, prefix_attention_varlen

from .layout import Packed

IMPLEMENTATION = "ptv2"


class LayerPrompts(NamedTuple):
    """One layer's pool: the rows of all prompts of a batch."""

    prefix_key: Tensor  # (prefix_tokens, heads, head_dim)
    prefix_value: Tensor
    prefix_gate: Tensor | None  # (prefix_tokens, heads); None: 1 everywhere
    prompt_bounds: Tensor | None  # (prompts, 2) int32; None: one prompt, the whole pool

    def repeat_heads(self, groups: int) -> "LayerPrompts":
        """Each head for so many heads of the queries, as in grouped-query attention."""
        gate = self.prefix_gate
        return self._replace(
            prefix_key=self.prefix_key.repeat_interleave(groups, 1),
            prefix_value=self.prefix_value.repeat_interleave(groups, 1),
            prefix_gate=None if gate is None else gate.repeat_interleave(groups, 1),
        )


class PromptBatch:
    """The prompts of one forward, and the record of which layers have taken theirs.

    Args:
        layers: a pool for each layer, None where no prompt of the batch has that layer.
        prompt_ids: (sequences,) the prompt of each, -1 for none; None: prompt 0 for all.
        packed: how the sequences lie in a packed batch; None: the batch is padded.
        by_call_order: layers are told apart by the order of calls, not by `layer_idx`.
    """

    def __init__(
        self,
        layers: Sequence[LayerPrompts | None],
        prompt_ids: Tensor | None = None,
        packed: Packed | None = None,
        by_call_order: bool = False,
    ) -> None:
        self.layers = tuple(layers)
        self.prompt_ids = prompt_ids
        self.packed = packed
        self.by_call_order = by_call_order
        self.taken: list[int] = []

    def take(self, module: Any) -> LayerPrompts | None:
        """The pool for the attention module that is being called."""
        layer = len(self.taken) if self.by_call_order else int(module.layer_idx)
        if layer >= len(self.layers):
            raise RuntimeError(
                f"prompts: expected {len(self.layers)} layers to ask for theirs, got layer {layer}"
            )
        self.taken.append(layer)
        return self.layers[layer]

    def require_taken(self) -> None:
        """Raise a RuntimeError if a layer's prompt would have been ignored."""
        present = {i for i, layer in enumerate(self.layers) if layer is not None}
        if ignored := sorted(present - set(self.taken)):
            raise RuntimeError(
                f"prompts: layers {ignored} have a prompt that the forward did not use; is the "
                f"backbone's attention implementation still {IMPLEMENTATION!r}?"
            )


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    prompts: PromptBatch | None = None,
    positions: RelativePositions | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer; query is (batch, heads, length, head_dim).

    A packed batch comes as a batch of one, with its tokens as the length.

    Returns:
        The output (batch, length, heads, head_dim), and None for the attention weights.
    """
    if kwargs.get("output_attentions"):
        raise NotImplementedError("output_attentions: attention weights are never materialised")
    layer = None if prompts is None else prompts.take(module)
    if layer is None:
        empty = query.new_empty(0, key.shape[1], query.shape[3])
        layer = LayerPrompts(empty, empty, None, None)
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        layer = layer.repeat_heads(groups)
    options: dict[str, Any] = {
        "prompt_ids": None if prompts is None or not len(layer.prefix_key) else prompts.prompt_ids,
        "prefix_gate": layer.prefix_gate,
        "prompt_bounds": layer.prompt_bounds,
        "positions": positions,
        "dropout_p": dropout,
        "scale": scaling,
        "causal": getattr(module, "is_causal", False) if is_causal is None else is_causal,
        # transformers counts the token itself, as flash attention does
        "window": None if sliding_window is None else sliding_window - 1,
    }
    if prompts is None or prompts.packed is None:
        mask = _key_mask(attention_mask)
        out = prefix_attention(query, key, value, *layer[:2], key_mask=mask, **options)
        assert isinstance(out, Tensor)
        return out.transpose(1, 2), None
    out = prefix_attention_varlen(
        query[0].transpose(0, 1),  # (tokens, heads, head_dim)
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        layer.prefix_key,
        layer.prefix_value,
        prompts.packed.cu_seqlens,
        prompts.packed.max_seqlen,
        **options,
    )
    assert isinstance(out, Tensor)
    return out[None], None


def _key_mask(attention_mask: Tensor | None) -> Tensor | None:
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2:
        raise ValueError(
            "attention_mask: expected (batch, length), True or 1 = attend, got shape "
            f"{tuple(attention_mask.shape)}"
        )
    return attention_mask.bool()


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    **_: Any,
) -> Tensor | None:
    """transformers' mask hook: hand the (batch, length) mask on as it is.

    Causality and the sliding window reach `attention_forward` as arguments.
    """
    if use_vmap:
        raise NotImplementedError(
            "attention_mask: a custom mask function would be ignored; expected a plain, causal or "
            "sliding-window mask"
        )
    if q_length != kv_length:
        raise NotImplementedError(
            f"attention_mask: expected as many keys as queries (no cache), got {kv_length} keys "
            f"and {q_length} queries"
        )
    return attention_mask


def use_attention_interface(backbone: PreTrainedModel) -> None:
    """Switch a model to prompt attention through transformers' interface.

    Raises:
        NotImplementedError: the class does not dispatch through transformers' interface.
    """
    AttentionInterface.register(IMPLEMENTATION, attention_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, attention_mask)
    backbone.set_attn_implementation(IMPLEMENTATION)
    if backbone.config._attn_implementation != IMPLEMENTATION:
        raise NotImplementedError(
            f"backbone: {type(backbone).__name__} cannot switch its attention implementation"
        )

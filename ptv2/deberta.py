"""DeBERTa, whose attention transformers does not dispatch: attention modules of our own.

Scores of relative positions are added on the sequence's own columns, none on the prompt's, as in
the official P-Tuning v2 code. The modules keep the stock ones' parameters and names. A call of the
encoder hands them a `Call` in the place of `relative_pos`, which every layer gets, also under
activation checkpointing; without one they compute what the stock modules do.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.deberta.modeling_deberta import (
    DisentangledSelfAttention as StockAttention,
)
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DisentangledSelfAttention as StockAttentionV2,
)
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from ptv2_kernels import RelativePositions

from .attention import PromptBatch, attention_forward


class Call(NamedTuple):
    """What the attention of every layer needs to know of a forward."""

    prompts: PromptBatch | None
    attention_mask: Tensor | None  # (rows, length)
    bucket: Tensor | None  # (2 * length - 1,) int32; None: no relative attention


class _WithPrompt:
    """What both kinds of attention share, before the stock class in the order of methods."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Any = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The stock forward, with prompts if `relative_pos` is a `Call`."""
        if isinstance(relative_pos, Call):
            return _attend(self, hidden_states, relative_pos, rel_embeddings)
        stock = (attention_mask, output_attentions, query_states, relative_pos, rel_embeddings)
        found: tuple[Tensor, Tensor | None] = super().forward(  # type: ignore[misc]
            hidden_states, *stock
        )
        return found


class PromptAttention(_WithPrompt, StockAttention):
    """DeBERTa's (v1): one projection, in which the heads' queries, keys and values alternate."""

    def projected(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (rows, heads, length, head_dim)."""
        heads = self.num_attention_heads
        query, key, value = _split(self.in_proj(hidden_states), heads).chunk(3, -1)
        return (
            query + _split(self.q_bias[None, None], heads),
            key,
            value + _split(self.v_bias[None, None], heads),
        )

    @property
    def tables(self) -> dict[str, nn.Module | None]:
        """What projects the position embeddings to keys ("c2p") and to queries ("p2c")."""
        return {"c2p": getattr(self, "pos_proj", None), "p2c": getattr(self, "pos_q_proj", None)}

    @property
    def position_kinds(self) -> int:
        """How many scores beside that of contents share the scale, as v1 counts."""
        return len(self.pos_att_type)


class PromptAttentionV2(_WithPrompt, StockAttentionV2):
    """DeBERTa's of v2 and v3."""

    def projected(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (rows, heads, length, head_dim)."""
        projections = (self.query_proj, self.key_proj, self.value_proj)
        query, key, value = (
            _split(x(hidden_states), self.num_attention_heads) for x in projections
        )
        return query, key, value

    @property
    def tables(self) -> dict[str, nn.Module | None]:
        """What projects the position embeddings to keys ("c2p") and to queries ("p2c")."""
        if not self.relative_attention:
            return {"c2p": None, "p2c": None}
        names = {"c2p": "pos_key_proj", "p2c": "pos_query_proj"}
        if self.share_att_key:
            names = {"c2p": "key_proj", "p2c": "query_proj"}
        return {
            kind: getattr(self, name) if kind in self.pos_att_type else None
            for kind, name in names.items()
        }

    @property
    def position_kinds(self) -> int:
        """How many scores beside that of contents share the scale, as v2 counts."""
        return sum(kind in self.pos_att_type for kind in ("c2p", "p2c"))


def _attend(
    module: Any, hidden_states: Tensor, call: Call, rel_embeddings: Tensor | None
) -> tuple[Tensor, None]:
    """Attention over the prompt and the sequence, with the terms of relative positions.

    Returns:
        (rows, length, hidden_size), and None for the attention weights.
    """
    query, key, value = module.projected(hidden_states)
    positions = None
    terms = any(table is not None for table in module.tables.values())
    if call.bucket is not None and rel_embeddings is not None and terms:
        embeddings = module.pos_dropout(rel_embeddings)
        tables = {
            kind: None if table is None else table(embeddings).unflatten(-1, (query.shape[1], -1))
            for kind, table in module.tables.items()
        }
        positions = RelativePositions(tables["c2p"], tables["p2c"], call.bucket)
    kinds_of_score = 1 + module.position_kinds
    out, _ = attention_forward(
        module,
        query,
        key,
        value,
        call.attention_mask,
        scaling=(query.shape[-1] * kinds_of_score) ** -0.5,
        dropout=module.dropout.p if module.training else 0.0,
        prompts=call.prompts,
        positions=positions,
    )
    return out.flatten(-2), None


def _split(states: Tensor, heads: int) -> Tensor:
    """(rows, length, hidden_size) -> (rows, heads, length, head_dim)."""
    split: Tensor = states.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


def use_own_attention(backbone: PreTrainedModel) -> None:
    """Give the layers of a DeBERTa our attention.

    Raises:
        NotImplementedError: heads of the model talk to each other.
    """
    if getattr(backbone.config, "talking_head", False):
        raise NotImplementedError("backbone: DeBERTa with talking_head is not supported")
    for layer in backbone.encoder.layer:  # type: ignore[union-attr]
        module = layer.attention.self
        classes = {StockAttention: PromptAttention, StockAttentionV2: PromptAttentionV2}
        module.__class__ = classes.get(type(module), type(module))


def encode(
    backbone: Any, inputs: Mapping[str, Tensor], prompts: PromptBatch, output_hidden_states: bool
) -> BaseModelOutput:
    """The backbone's forward with prompts; packed if these say so.

    Raises:
        NotImplementedError: a packed batch for a backbone with a convolution.
    """
    embedded = backbone.embeddings(
        input_ids=inputs.get("input_ids"),
        token_type_ids=inputs.get("token_type_ids"),
        position_ids=inputs.get("position_ids"),
        mask=inputs.get("attention_mask"),
        inputs_embeds=inputs.get("inputs_embeds"),
    )
    packed, mask = prompts.packed, inputs.get("attention_mask")
    length = embedded.shape[1] if packed is None else packed.max_seqlen
    convolves = getattr(backbone.encoder, "conv", None) is not None
    if convolves and packed is not None:
        raise NotImplementedError(
            "cu_seqlens: the backbone has a convolution over neighbours, which a packed batch "
            "would let reach into other sequences; expected a padded batch"
        )
    everywhere = torch.ones(embedded.shape[:2], device=embedded.device) if mask is None else mask
    encoded: BaseModelOutput = backbone.encoder(
        embedded,
        # what the stock attention would see, whose (length, length) form nobody reads here
        everywhere if convolves else everywhere[:, None],
        output_hidden_states=output_hidden_states,
        relative_pos=Call(prompts, mask, _buckets(backbone, length, embedded.device)),
    )
    return encoded


def _buckets(backbone: Any, length: int, device: torch.device) -> Tensor | None:
    """The row of the position embeddings for every distance: (2 * length - 1,) int32."""
    encoder = backbone.encoder
    if not encoder.relative_attention:
        return None
    distance = torch.arange(1 - length, length, device=device)
    buckets, span = getattr(encoder, "position_buckets", -1), encoder.max_relative_positions
    if buckets > 0:
        distance = make_log_bucket_position(distance, buckets, span).long()
        span = buckets
    rows: Tensor = (distance + span).clamp(0, 2 * span - 1).int()
    return rows


def key_value(layer: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's keys and values of prompt states (..., hidden_size), for v1."""
    attention = layer.attention.self
    fused = attention.in_proj(states).unflatten(-1, (attention.num_attention_heads, -1))
    _, key, value = fused.chunk(3, -1)
    return key.flatten(-2), value.flatten(-2) + attention.v_bias

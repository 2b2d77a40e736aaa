"""Position ids: of packed batches, and of prompts whose positions count before the sequence's."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from .layout import Packed


def position_ids_of(backbone: PreTrainedModel, input_ids: Tensor | None, packed: Packed) -> Tensor:
    """The position ids of a packed batch, (1, tokens): every sequence's as if it came alone."""
    padding_id = position_padding(backbone)
    if padding_id is None:
        return packed.position[None]
    if input_ids is None:
        return packed.position[None] + padding_id + 1
    counted = (input_ids[0] != padding_id).long()  # as RoBERTa counts
    total = counted.cumsum(0)
    before = F.pad(total, (1, 0))[packed.cu_seqlens[:-1]]
    return ((total - before[packed.sequence]) * counted + padding_id)[None]


def positions_of(backbone: PreTrainedModel) -> int:
    """How many tokens a sequence may have."""
    positions = int(backbone.config.max_position_embeddings)
    padding = position_padding(backbone)
    return positions if padding is None else positions - padding - 1  # tokens count from there


def position_padding(backbone: PreTrainedModel) -> int | None:
    """The position of padding in RoBERTa and its kin, where tokens count from the next one."""
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    return cast(int | None, getattr(table, "padding_idx", None))


def is_rotary(backbone: PreTrainedModel) -> bool:
    """Whether attention rotates queries and keys by their positions."""
    config = backbone.config
    rotary = getattr(config, "position_embedding_type", None) == "rotary"  # ESM's
    return rotary or getattr(config, "rope_parameters", None) is not None


def masked_positions(mask: Tensor) -> Tensor:
    """Position ids that count tokens, not padding before them: (rows, length) -> the same.

    A rotary backbone does not need them, since it sees distances alone, but a prompt stands at a
    position of its own.
    """
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def shifted_positions(
    backbone: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    packed: Packed | None,
    offsets: Sequence[int],
) -> Tensor:
    """The position ids of a batch with those of each sequence moved on.

    Args:
        inputs: of the backbone; its `position_ids` count without the offset.
        offsets: of each sequence; one for all if there is one.

    Raises:
        ValueError: the backbone has no position for the last token of a sequence.
    """
    padding_id, device = position_padding(backbone), backbone.device
    position = inputs.get("position_ids")
    if position is None:
        mask = inputs.get("attention_mask") if is_rotary(backbone) else None
        position = (
            _padded_positions(inputs, padding_id) if mask is None else masked_positions(mask)
        )
    offset = by_token(torch.tensor(offsets, dtype=position.dtype, device=device), packed)
    shifted = position + offset
    if padding_id is not None:  # padding has a position of its own
        shifted = torch.where(position == padding_id, position, shifted)
    _require_room(backbone, inputs, packed, offsets)
    return shifted.clamp(max=int(backbone.config.max_position_embeddings) - 1)


def require_positions(
    backbone: PreTrainedModel,
    position_ids: Tensor,
    attention_mask: Tensor | None,
    offset: int,
) -> None:
    """Raise a ValueError if position ids that are given lie outside of the table once moved on."""
    positions = int(backbone.config.max_position_embeddings)
    last = position_ids if attention_mask is None else position_ids * attention_mask.bool()
    if int(last.max()) + offset >= positions:
        raise ValueError(
            f"position_ids: expected less than {positions - offset} beside a position_offset of "
            f"{offset}, got {int(last.max())}"
        )


def by_token(values: Tensor, packed: Packed | None) -> Tensor:
    """One value a sequence, or one for all, as a batch's tokens: (rows, 1) or (1, tokens)."""
    if packed is None:
        return values[:, None]
    return values.expand(len(packed.lengths))[packed.sequence][None]


def _padded_positions(inputs: Mapping[str, Tensor], padding_id: int | None) -> Tensor:
    """(rows or 1, length), as the backbone counts."""
    shape = next(iter(inputs.values())).shape
    device = next(iter(inputs.values())).device
    places = torch.arange(shape[1], device=device)[None]
    if padding_id is None:
        return places
    if "input_ids" not in inputs:
        return places + padding_id + 1
    counted = (inputs["input_ids"] != padding_id).long()
    return counted.cumsum(1) * counted + padding_id


def _require_room(
    backbone: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    packed: Packed | None,
    offsets: Sequence[int],
) -> None:
    """Raise a ValueError if a token would have no position; a mask is read only if it matters."""
    positions = positions_of(backbone)
    length = next(iter(inputs.values())).shape[1] if packed is None else packed.max_seqlen
    if length + max(offsets) <= positions:
        return
    lengths = torch.tensor([length])
    if packed is not None:
        lengths = packed.lengths.cpu()
    elif (mask := inputs.get("attention_mask")) is not None:
        if position_padding(backbone) is not None or is_rotary(backbone):  # tokens count alone
            lengths = mask.bool().sum(1).cpu()
        else:
            places = torch.arange(1, length + 1, device=mask.device)
            lengths = (mask.bool() * places).amax(1).cpu()
    needed = int((lengths + torch.tensor(offsets)).max())
    if needed > positions:
        raise ValueError(
            f"input_ids: expected at most {positions - max(offsets)} tokens beside a "
            f"position_offset of {max(offsets)}, got {needed - max(offsets)}"
        )

"""What a model's forward is given: checked, and brought into the form that the backbone takes."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .config import PromptConfig
from .layout import Packed
from .positions import position_ids_of, positions_of
from .task_model import require_nonreentrant_checkpointing


def check_inputs(
    backbone: PreTrainedModel, accepted: Collection[str], inputs: Mapping[str, Tensor]
) -> None:
    """Raise a ValueError unless the backbone takes the inputs.

    Args:
        accepted: the arguments of the backbone's forward.
    """
    if ("input_ids" in inputs) == ("inputs_embeds" in inputs):
        raise ValueError("input_ids: expected either input_ids or inputs_embeds")
    if getattr(backbone.config, "output_attentions", False):
        raise NotImplementedError("output_attentions: attention weights are never computed")
    for name, value in inputs.items():
        if value.numel() == 0:
            raise ValueError(
                f"{name}: expected at least one row and token, got {tuple(value.shape)}"
            )
        if name not in accepted:
            raise ValueError(
                f"{name}: {backbone.config.model_type} has none and would ignore it, expected None"
            )
    if backbone.training:
        require_nonreentrant_checkpointing(backbone)


def pack_inputs(
    backbone: PreTrainedModel,
    inputs: dict[str, Tensor],
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
) -> Packed | None:
    """How a packed batch lies; its position ids join the inputs. None: it is padded."""
    if cu_seqlens is None:
        if max_seqlen is not None:
            raise ValueError("max_seqlen: expected cu_seqlens with it")
        return None
    if "attention_mask" in inputs:
        raise ValueError("attention_mask: a packed batch has no padding, expected None")
    for name, value in inputs.items():
        if value.shape[0] != 1 or value.dim() != (3 if name == "inputs_embeds" else 2):
            shape = tuple(value.shape)
            raise ValueError(f"{name}: expected (1, tokens) with cu_seqlens, got {shape}")
    tokens = next(iter(inputs.values())).shape[1]
    packed = Packed(cu_seqlens, tokens if max_seqlen is None else max_seqlen, tokens)
    if "position_ids" not in inputs:
        ids = inputs.get("input_ids")
        inputs["position_ids"] = position_ids_of(backbone, ids, packed)
    return packed


def flatten_choices(
    inputs: dict[str, Tensor], choices: int | None
) -> tuple[dict[str, Tensor], int]:
    """(rows, choices, length) -> (rows * choices, length), and the number of choices."""
    for argument, value in inputs.items():
        if value.dim() < (4 if argument == "inputs_embeds" else 3):
            shape = tuple(value.shape)
            raise ValueError(f"{argument}: expected (rows, choices, length), got {shape}")
    found = next(iter(inputs.values())).shape[1]
    if choices not in (None, found):
        raise ValueError(f"choices: expected {found}, as in the inputs, or None, got {choices}")
    return {argument: value.flatten(0, 1) for argument, value in inputs.items()}, found


def task_labels(
    config: PromptConfig,
    labels: Tensor | Sequence[Any] | None,
    start: Tensor | None,
    end: Tensor | None,
) -> Tensor | None:
    """Labels as the task's loss takes them: question answering has a start and an end."""
    if config.task != "question-answering":
        if start is not None or end is not None:
            raise ValueError(f"start_positions: {config.task} takes labels, expected None")
        if labels is not None and not isinstance(labels, Tensor):
            raise ValueError(f"labels: expected a tensor, got {type(labels).__name__}")
        return labels
    if labels is not None:
        raise ValueError("labels: expected start_positions and end_positions, got labels")
    if start is None and end is None:
        return None
    if start is None or end is None:
        raise ValueError("start_positions: expected start_positions and end_positions together")
    return torch.stack((start, end), 1)


def text_of_length(
    backbone: PreTrainedModel, token_ids: Tensor | Sequence[int], length: int
) -> Tensor:
    """A text's first tokens, after repeating it if it is shorter: (1, length).

    Raises:
        ValueError: these are no token ids, or not as many positions as that.
    """
    ids = torch.as_tensor(token_ids)
    vocabulary, positions = backbone.config.vocab_size, positions_of(backbone)
    if ids.dim() != 1 or ids.is_floating_point() or not len(ids):
        raise ValueError(
            "start_from_text: expected token ids (tokens,), at least one, got "
            f"{tuple(ids.shape)} {ids.dtype}"
        )
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise ValueError(
            f"start_from_text: expected token ids below {vocabulary}, got {ids.tolist()}"
        )
    if not 0 < length <= positions:
        raise ValueError(
            f"start_from_text: expected prompt_length from 1 to {positions}, got {length}"
        )
    return ids.long().repeat(-(-length // len(ids)))[None, :length].to(backbone.device)

"""What a model's forward is given: checked, and brought into the form that the backbone takes."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .config import PromptConfig
from .families import family_of
from .layout import Packed
from .positions import (
    by_token,
    is_rotary,
    masked_positions,
    position_ids_of,
    position_padding,
    positions_of,
    shifted_positions,
)
from .task_model import require_nonreentrant_checkpointing


def check_inputs(
    backbone: PreTrainedModel, accepted: Collection[str], inputs: Mapping[str, Tensor]
) -> None:
    """Raise a ValueError unless the backbone takes the inputs.

    Args:
        accepted: the arguments of the backbone's forward.
    """
    takes = family_of(backbone.config.model_type).takes
    given = {"input_ids", "inputs_embeds", "pixel_values"} & inputs.keys()
    if given not in ({takes}, {"inputs_embeds"}):
        wanted = "either input_ids or inputs_embeds" if takes == "input_ids" else "pixel_values"
        raise ValueError(f"{takes}: expected {wanted}, got {', '.join(sorted(given)) or 'none'}")
    if getattr(backbone.config, "output_attentions", False):
        raise NotImplementedError("output_attentions: attention weights are never computed")
    for name, value in inputs.items():
        if value.numel() == 0:
            raise ValueError(
                f"{name}: expected at least one row and token, got {tuple(value.shape)}"
            )
        if name not in accepted or (name == "position_ids" and not _adds_positions(backbone)):
            raise ValueError(
                f"{name}: {backbone.config.model_type} has none and would ignore it, expected None"
            )
    if backbone.training:
        require_nonreentrant_checkpointing(backbone)


def packable(backbone: PreTrainedModel) -> bool:
    """Whether a packed batch gives every sequence what it gets alone, whatever its tokens are."""
    config = backbone.config
    convolves = getattr(getattr(backbone, "encoder", None), "conv", None) is not None
    scales = getattr(config, "token_dropout", False)  # ESM's, see _require_no_masked_token
    return family_of(config.model_type).takes == "input_ids" and not convolves and not scales


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
    if not isinstance(cu_seqlens, Tensor):
        raise ValueError(f"cu_seqlens: expected a tensor, got {type(cu_seqlens).__name__}")
    if "pixel_values" in inputs:
        raise ValueError("cu_seqlens: images of one size need no packing, expected None")
    _require_no_masked_token(backbone, inputs)
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


def _require_no_masked_token(backbone: PreTrainedModel, inputs: Mapping[str, Tensor]) -> None:
    """ESM scales a row's embeddings by its share of masked tokens: of all sequences, if packed."""
    config, ids = backbone.config, inputs.get("input_ids")
    if ids is None or not getattr(config, "token_dropout", False):
        return
    if (ids == config.mask_token_id).any():
        raise NotImplementedError(
            f"input_ids: {config.model_type} with token_dropout takes no mask token "
            f"({config.mask_token_id}) in a packed batch"
        )


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


def as_trained(
    backbone: PreTrainedModel,
    accepted: Collection[str],
    inputs: Mapping[str, Tensor],
    packed: Packed | None,
    configs: Sequence[PromptConfig | None],
) -> dict[str, Tensor]:
    """The inputs with the positions and token types that the prompts were trained with.

    Args:
        accepted: the arguments of the backbone's forward.
        configs: of each sequence's task; one for all if there is one.
    """
    changed = dict(inputs)
    offsets = [0 if config is None else config.position_offset for config in configs]
    if any(offsets):
        changed["position_ids"] = shifted_positions(backbone, inputs, packed, offsets)
        check_inputs(backbone, accepted, changed)
    elif packed is None and any(config is not None for config in configs) and is_rotary(backbone):
        mask = inputs.get("attention_mask")
        if mask is not None and "position_ids" not in inputs:
            changed["position_ids"] = masked_positions(mask)
    typed = [config is None or config.token_types for config in configs]
    if "token_type_ids" in inputs and not all(typed):
        kept = by_token(torch.tensor(typed, device=backbone.device), packed)
        changed["token_type_ids"] = inputs["token_type_ids"] * kept
    return changed


def behind_prompt(
    backbone: PreTrainedModel,
    accepted: Collection[str],
    inputs: Mapping[str, Tensor],
    prompt: Tensor,
) -> dict[str, Tensor]:
    """The inputs of a padded batch with a prompt before every row.

    Args:
        accepted: the arguments of the backbone's forward.
        prompt: (prompt_length, embedding_size).

    Raises:
        NotImplementedError: padding on the left would lie between the prompt and a text in the
            windows of local attention.
        ValueError: the backbone has no position for the last token.
    """
    embeds = inputs.get("inputs_embeds")
    if embeds is None:
        embeds = backbone.get_input_embeddings()(inputs["input_ids"])
    rows, length = embeds.shape[:2]
    before = prompt.to(embeds.dtype).expand(rows, -1, -1)
    mask = inputs.get("attention_mask")
    windows = getattr(backbone.config, "sliding_window", None) is not None
    if windows and mask is not None and not mask[:, 0].all():
        raise NotImplementedError(
            "attention_mask: expected padding on the right beside a prompt of depth 'input', as "
            f"{backbone.config.model_type} attends in windows, got some on the left"
        )
    mask = (
        torch.ones(rows, length, dtype=torch.long, device=embeds.device) if mask is None else mask
    )
    changed = {
        "inputs_embeds": torch.cat((before, embeds), 1),
        "attention_mask": F.pad(mask, (len(prompt), 0), value=1),
    }
    if "token_type_ids" in inputs:
        changed["token_type_ids"] = F.pad(inputs["token_type_ids"], (len(prompt), 0))
    if "position_ids" in accepted:
        own = shifted_positions(backbone, inputs, None, [len(prompt)]).expand(rows, -1)
        padding_id = position_padding(backbone)
        first = 0 if padding_id is None else padding_id + 1
        places = torch.arange(first, first + len(prompt), device=own.device).expand(rows, -1)
        changed["position_ids"] = torch.cat((places, own), 1)
    return changed


def without_prompt(encoded: BaseModelOutput, length: int) -> BaseModelOutput:
    """The states of the own tokens, of (rows, prompt_length + length, ...)."""
    last, every = encoded.last_hidden_state, encoded.hidden_states
    assert last is not None
    return BaseModelOutput(
        last[:, length:], None if every is None else tuple(x[:, length:] for x in every)
    )


def require_task_of_backbone(backbone: PreTrainedModel, config: PromptConfig) -> None:
    """Raise a ValueError if a backbone would ignore a part of a task, or make no sense of it."""
    family = family_of(backbone.config.model_type)
    images = family.takes == "pixel_values"
    if config.task != "feature-extraction" and images != (config.task == "image-classification"):
        wanted = "image-classification" if images else "a task on texts"
        raise ValueError(
            f"task: expected {wanted} or feature-extraction for such a backbone, got {config.task}"
        )
    if family.causal and config.pooling == "first":
        raise ValueError(
            "pooling: expected 'last' or 'mean', got 'first', a token that sees no other in a "
            "causal encoder"
        )
    if images and config.depth == "input":
        raise ValueError(
            "depth: this backbone takes no embeddings, expected 'layers', got 'input'"
        )
    if images and not config.token_types:
        raise ValueError("token_types: images have none, expected True, got False")
    if config.position_offset and (images or not _adds_positions(backbone)):
        raise ValueError(
            "position_offset: the backbone adds no positions to its input, expected 0, got "
            f"{config.position_offset}"
        )
    if config.positions and config.positions >= positions_of(backbone):
        name = "prompt_length" if config.depth == "input" else "position_offset"
        raise ValueError(
            f"{name}: expected less than the backbone's {positions_of(backbone)} positions, got "
            f"{config.positions}"
        )


def _adds_positions(backbone: PreTrainedModel) -> bool:
    """Whether position ids make a difference; DeBERTa has scores of distances instead."""
    return bool(getattr(backbone.config, "position_biased_input", True))


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
    if family_of(backbone.config.model_type).takes != "input_ids":
        raise ValueError("start_from_text: the backbone reads no text, expected None")
    if isinstance(token_ids, str):
        raise ValueError(f"start_from_text: expected token ids, got the text {token_ids!r}")
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

"""The textbook forms on stock transformers models, one unpadded row at a time, in eager attention.

Nothing here uses ptv2's seam: layers are told apart by the order of calls.
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask


def _concatenating_attention(module, query, key, value, mask, scaling=None, textbook=None, **_):
    """Eager attention over keys and values with the layer's prompt concatenated in front."""
    prompt = next(textbook)
    columns = key.shape[2]
    if prompt is not None:
        key = torch.cat((prompt[0][None], key), 2)
        value = torch.cat((prompt[1][None], value), 2)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores + torch.nn.functional.pad(mask, (key.shape[2] - columns, 0))
    return (scores.softmax(-1) @ value).transpose(1, 2), None


def register():
    AttentionInterface.register("textbook", _concatenating_attention)
    AttentionMaskInterface.register("textbook", eager_mask)


def states_with_prompt(backbone, inputs, key_value):
    """Last hidden state of one row.

    Args:
        key_value: per call of an attention (2, heads, prompt_length, head_dim) or None.
    """
    register()
    backbone.set_attn_implementation("textbook")
    return backbone(**inputs, textbook=iter(key_value)).last_hidden_state


def inject_process_slice(backbone, layers, inputs, prompts):
    """Last hidden state of one row with prompt states put before and taken off every layer.

    Args:
        layers: the layer modules in the order of calls.
        prompts: per call (prompt_length, hidden_size) or None.
    """
    backbone.set_attn_implementation("eager")
    calls = iter(prompts)
    current = []

    def inject(module, args, kwargs):
        current[:] = [next(calls)]
        prompt = current[0]
        if prompt is None:
            return None
        extra = len(prompt)
        states = torch.cat((prompt[None], args[0]), 1)
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if mask is not None:
            padded = torch.zeros(1, 1, states.shape[1], states.shape[1], dtype=mask.dtype)
            padded[..., extra:, extra:] = mask
            mask = padded
        if "position_embeddings" in kwargs:  # the prompt is not rotated: position 0
            cos, sin = kwargs["position_embeddings"]
            one = torch.ones(1, extra, cos.shape[-1])
            rotated = (torch.cat((one, cos), 1), torch.cat((0 * one, sin), 1))
            kwargs = kwargs | {"position_embeddings": rotated}
        if "attention_mask" in kwargs:
            return (states, *args[1:]), kwargs | {"attention_mask": mask}
        return (states, mask, *args[2:]), kwargs

    def cut(module, args, output):
        prompt = current[0]
        if prompt is None:
            return output
        if isinstance(output, tuple):
            return (output[0][:, len(prompt) :], *output[1:])
        return output[:, len(prompt) :]

    hooks = []
    for layer in dict.fromkeys(layers):
        hooks.append(layer.register_forward_pre_hook(inject, with_kwargs=True))
        hooks.append(layer.register_forward_hook(cut))
    try:
        return backbone(**inputs).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()

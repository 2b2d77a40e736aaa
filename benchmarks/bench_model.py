"""A prompted encoder beside the ways to prompt it that concatenate: training step and inference.

    python benchmarks/bench_model.py --output results/model.json

The encoder is BERT-base with random weights. The rival is the same encoder with the same prompts
joined to the keys and values of every layer and sample, on torch's fused attention.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from measure import (
    argument_parser,
    peak_bytes,
    provenance,
    saved_bytes,
    time_interleaved,
    write_json,
)
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, BertConfig, BertModel

from ptv2 import PromptConfig, PromptModel
from ptv2_kernels.testing import relative_l2


class Concatenated(nn.Module):
    """The prompt in front of every layer's keys and values, then torch's fused attention."""

    def __init__(self, backbone: BertModel, key_value: Tensor) -> None:
        super().__init__()
        AttentionInterface.register("concatenated", concatenated_attention)
        AttentionMaskInterface.register(
            "concatenated", lambda *_, attention_mask, **__: attention_mask
        )
        backbone.set_attn_implementation("concatenated")
        self.backbone = backbone.requires_grad_(False)
        self.key_value = nn.Parameter(key_value.clone())  # (layers, 2, heads, prompt, head_dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The last hidden state, (batch, length, hidden_size)."""
        seen = attention_mask.new_ones(len(input_ids), self.key_value.shape[3])
        return self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            prompts=self.key_value,
            visible=torch.cat((seen, attention_mask), 1)[:, None, None, :].bool(),
        ).last_hidden_state


def concatenated_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any,
    *, prompts: Tensor, visible: Tensor, dropout: float = 0.0, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What a model calls: (batch, heads, length, head_dim) -> (batch, length, heads, head_dim)."""
    pair = prompts[module.layer_idx].to(key.dtype).unsqueeze(1).expand(-1, len(key), -1, -1, -1)
    out = F.scaled_dot_product_attention(
        query,
        torch.cat((pair[0], key), 2),
        torch.cat((pair[1], value), 2),
        attn_mask=visible,
        dropout_p=dropout,
    )
    return out.transpose(1, 2).contiguous(), None


class Prompted(nn.Module):
    """The same through this package."""

    def __init__(self, backbone: BertModel, prompt_length: int) -> None:
        super().__init__()
        self.model = PromptModel(backbone)
        config = PromptConfig(task="feature-extraction", prompt_length=prompt_length)
        self.model.add_task("task", config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The last hidden state, (batch, length, hidden_size)."""
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, task="task"
        ).last_hidden_state


def train_step(model: nn.Module, batch: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Forward and backward under autocast, dropout as the encoder has it."""
    model.train()
    with torch.autocast(batch["input_ids"].device.type, dtype):
        loss = model(**batch).float().sin().mean()
    loss.backward()


def infer(model: nn.Module, batch: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The last hidden state, without gradients."""
    model.eval()
    device = batch["input_ids"].device.type
    with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
        return model(**batch)


def prompt_grad(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The gradient of the prompts, (layers, 2, heads, prompt_length, head_dim), in float32.

    Of sines: the squares of a normalised state sum to a constant.
    """
    model.eval()
    (prompts,) = (x for x in model.parameters() if x.requires_grad)
    tokens = model(**batch)[batch["attention_mask"].bool()]
    (grad,) = torch.autograd.grad(tokens.sin().mean(), prompts)
    return grad


def kept(model: nn.Module, batch: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """A training forward, for what it keeps."""
    model.train()
    with torch.autocast(batch["input_ids"].device.type, dtype):
        return model(**batch)


def measure(device: torch.device, toy: bool, prompt_length: int, shape: tuple[int, int]) -> Any:
    """Seconds and bytes of both, and how far their results are apart."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    config = BertConfig(**(sizes if toy else {}), attn_implementation="sdpa")
    backbones = [BertModel(deepcopy(config), add_pooling_layer=False).to(device) for _ in range(2)]
    backbones[1].load_state_dict(backbones[0].state_dict())
    ours = Prompted(backbones[0], prompt_length).to(device)
    theirs = Concatenated(backbones[1], ours.model.key_value("task").detach()).to(device)
    ids = torch.randint(1000, 2000, shape).to(device)
    lengths = shape[1] - torch.arange(shape[0]) * 7 % (shape[1] // 2)
    mask = (torch.arange(shape[1]) < lengths[:, None]).long().to(device)
    batch = {"input_ids": ids, "attention_mask": mask}
    models: dict[str, nn.Module] = {"ptv2": ours, "concatenated": theirs}

    states = [infer(model, batch, torch.float32)[mask.bool()] for model in models.values()]
    grads = [prompt_grad(model, batch) for model in models.values()]
    difference = max(relative_l2(*states), relative_l2(*grads))
    if not difference < 1e-3:
        raise SystemExit(f"the two disagree: {difference:.1e}; no speed is reported")
    dtype = torch.bfloat16
    parts: dict[str, Callable[..., Any]] = {"training step": train_step, "inference": infer}
    rounds = 3 if toy else 20
    result: dict[str, Any] = {"shape": shape, "prompt_length": prompt_length}
    result["difference"] = difference
    for name, function in parts.items():
        calls = {key: partial(function, model, batch, dtype) for key, model in models.items()}
        seconds = time_interleaved(calls, device, rounds)
        result[name] = {
            key: {"seconds": seconds[key], "peak bytes": peak_bytes(call, device)}
            for key, call in calls.items()
        }
    for key, model in models.items():
        saved = saved_bytes(partial(kept, model, batch, dtype))
        result["training step"][key]["saved bytes"] = saved
    return result


def main() -> None:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    cases = [(4, (2, 12))] if args.toy else [(20, (32, 128)), (128, (32, 128)), (20, (8, 512))]
    results = {"provenance": provenance(args.device), "cases": []}
    for prompt_length, shape in cases:
        found = measure(args.device, args.toy, prompt_length, shape)
        results["cases"].append(found)
        write_json(args.output, results)
        for part in ("training step", "inference"):
            times = {key: row["seconds"] for key, row in found[part].items()}
            ratio = times["concatenated"] / times["ptv2"]
            print(
                f"{shape}, prompt {prompt_length}, {part}: {ratio:.2f} times as fast", flush=True
            )


if __name__ == "__main__":
    main()

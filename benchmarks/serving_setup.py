"""What all systems of `bench_serving.py` have in common: the encoder, the tasks, the texts.

Needs torch and safetensors alone, so that it serves in any environment. Tasks are drawn from
their numbers: every process makes the same ones.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import safe_open
from torch import Tensor

LABELS = 6
"""Of a task at most; they have 2 to so many."""


class RandomTask(NamedTuple):
    """A prompt and the last layer of a head."""

    key_value: Tensor  # (layers, 2, heads, prompt_length, head_dim), keys first
    weight: Tensor  # (labels, hidden_size)
    bias: Tensor  # (labels,)


@dataclass(frozen=True)
class Setup:
    """What a process is told.

    Args:
        encoder: the folder of a BERT, with its pooler.
        texts: a JSON file with the token ids of every text.
        tasks: how many are served.
        exponent: of Zipf's law over them.
        batch_tokens: of a batch at most, where it is not ptv2's.
        memory: in bytes that copies of the encoder may take.
        dtype: of the encoder's weights, fp32, bf16 or fp16.
        same_answers: give what PEFT's sequence classification gives: the head sees the first
            token through the encoder's pooler, positions begin behind the prompt. Else ptv2 has
            its usual head on the mean.
    """

    encoder: str
    texts: str
    tasks: int
    exponent: float
    prompt_length: int
    batch_tokens: int
    device: str
    threads: int
    memory: int
    seed: int
    dtype: str = "fp32"
    same_answers: bool = True

    @classmethod
    def read(cls, text: str) -> Self:
        """From JSON."""
        return cls(**json.loads(text))

    def write(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.dtype]

    def config(self) -> dict[str, Any]:
        """The encoder's configuration."""
        return json.loads(Path(self.encoder, "config.json").read_text())

    def pooler(self) -> dict[str, Tensor]:
        """The encoder's pooler: weight and bias."""
        with safe_open(Path(self.encoder, "model.safetensors"), "pt") as file:
            return {part: file.get_tensor(f"pooler.dense.{part}") for part in ("weight", "bias")}

    def task(self, number: int) -> RandomTask:
        """The task of a number."""
        config = self.config()
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        draw = torch.Generator().manual_seed(self.seed + number)
        shape = config["num_hidden_layers"], 2, heads, self.prompt_length, hidden // heads
        labels = 2 + number % (LABELS - 1)
        return RandomTask(
            torch.randn(shape, generator=draw),
            torch.randn(labels, hidden, generator=draw) / 4,
            torch.randn(labels, generator=draw),
        )


def flat(key_value: Tensor) -> Tensor:
    """(layers, 2, heads, P, head_dim) -> (P, layers * 2 * hidden_size), as the rivals have it."""
    return key_value.permute(3, 0, 1, 2, 4).flatten(1)


def padded(ids: Sequence[list[int]], device: str) -> dict[str, Tensor]:
    """Model inputs (rows, length), filled up on the right."""
    longest = max(map(len, ids))
    rows = [row + [0] * (longest - len(row)) for row in ids]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in ids]
    return {
        "input_ids": torch.tensor(rows, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }

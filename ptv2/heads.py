"""Task heads: what turns the backbone's token states into logits and a loss."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import PromptConfig
from .layout import Layout

IGNORED = -100
"""The label of tokens and positions that count nowhere, as everywhere in transformers."""


POOLED = ("sequence-classification", "multiple-choice", "image-classification")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "gelu": F.gelu}


class Head(nn.Module):
    """Dropout and one or two linear layers, on the pooled sequence or on every token.

    Args:
        config: the task, its labels, pooling, activation and dropout.
        hidden_size: of the backbone.
    """

    def __init__(self, config: PromptConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.pools = config.task in POOLED
        self.dropout = nn.Dropout(config.head_dropout)
        if config.head_activation is not None:
            self.dense = nn.Linear(hidden_size, hidden_size)
            nn.init.normal_(self.dense.weight, std=0.02)
            nn.init.zeros_(self.dense.bias)
        self.linear = nn.Linear(hidden_size, _outputs(config))
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor, layout: Layout) -> Tensor:
        """Logits (sequences, outputs) if the head pools, else one of each token.

        Args:
            states: (rows, length, hidden_size), or packed (1, tokens, hidden_size).
            layout: how the sequences lie in them.
        """
        states = states.to(self.linear.weight.dtype)
        if self.pools:
            states = layout.pool(states, self.config.pooling)
        if self.config.head_activation is not None:
            activation = _ACTIVATIONS[self.config.head_activation]
            states = activation(self.dense(self.dropout(states)))
        return cast(Tensor, self.linear(self.dropout(states)))

    def loss(self, logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
        """Mean loss over the examples or labelled tokens.

        Args:
            logits: as `forward` returns them; for a multiple choice (examples, choices).
            layout: how the sequences lie in them.
            labels: class indices (rows,), or floats (rows,) for a regression, or 0 and 1
                (rows, labels) where a row has any number of labels; tag indices
                (rows, length) with -100 where a token has none; for question answering start
                and end (rows, 2), positions in their own sequence.
        """
        if self.config.multi_label and labels.shape != logits.shape:
            raise ValueError(f"labels: expected {tuple(logits.shape)}, got {tuple(labels.shape)}")
        if self.pools and not self.config.multi_label and labels.numel() != len(logits):
            raise ValueError(
                f"labels: expected {len(logits)}, one an example, got {tuple(labels.shape)}"
            )
        if self.config.task == "token-classification" and labels.shape != logits.shape[:-1]:
            expected = tuple(logits.shape[:-1])
            raise ValueError(f"labels: expected {expected}, got {tuple(labels.shape)}")
        match self.config.task:
            case "question-answering":
                return span_loss(logits, labels, layout)
            case "sequence-classification" if self.config.multi_label:
                wanted = labels.to(torch.float32)
                return F.binary_cross_entropy_with_logits(logits.float(), wanted)
            case "sequence-classification" if len(self.config.labels) == 1:
                return F.mse_loss(logits.float().squeeze(-1), labels.float().view(-1))
            case "token-classification":
                return cross_entropy(logits.flatten(0, 1), labels.flatten())
            case _:
                return cross_entropy(logits, labels.view(-1))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over labels other than -100; 0, not NaN, if there are none."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def span_loss(logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
    """Cross entropy of starts and of ends over the tokens of their own sequence, averaged.

    Args:
        logits: (rows, length, 2) or packed.
        labels: (rows, 2); a position that the sequence does not have counts nowhere.
    """
    lowest = torch.finfo(logits.dtype).min
    rows = layout.rows(logits, lowest)
    if labels.shape != (len(rows), 2):
        raise ValueError(
            f"start_positions: expected a start and an end of each of {len(rows)} sequences, got "
            f"labels of the shape {tuple(labels.shape)}"
        )
    inside = (labels >= 0) & (labels < rows.shape[1])
    chosen = rows.gather(1, labels.clamp(0, rows.shape[1] - 1)[:, None])[:, 0]
    labels = labels.masked_fill(~inside | (chosen == lowest), IGNORED)
    losses = [cross_entropy(rows[..., i], labels[:, i]) for i in range(2)]
    return (losses[0] + losses[1]) / 2


def _outputs(config: PromptConfig) -> int:
    match config.task:
        case "question-answering":
            return 2
        case "multiple-choice":
            return 1
        case _:
            return len(config.labels)


def build_head(config: PromptConfig, hidden_size: int) -> Head | None:
    """The head of a task; None for feature extraction."""
    return None if config.task == "feature-extraction" else Head(config, hidden_size)

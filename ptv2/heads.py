"""Task heads: what turns the backbone's token states into logits and a loss."""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from .config import PromptConfig

IGNORED = -100
"""The label of tokens and positions that count nowhere, as everywhere in transformers."""


class Head(nn.Module):
    """Dropout and a linear layer, on the pooled sequence or on every token.

    Args:
        config: the task, its labels, pooling and dropout.
        hidden_size: of the backbone.
    """

    def __init__(self, config: PromptConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.pools = config.task in ("sequence-classification", "multiple-choice")
        self.dropout = nn.Dropout(config.head_dropout)
        self.linear = nn.Linear(hidden_size, _outputs(config))
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Logits (rows, outputs) if the head pools, else (rows, length, outputs).

        Args:
            states: (rows, length, hidden_size).
            attention_mask: (rows, length), 1 = a token, 0 = padding.
        """
        states = states.to(self.linear.weight.dtype)
        if self.pools:
            states = pool(states, attention_mask, self.config.pooling)
        return cast(Tensor, self.linear(self.dropout(states)))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over the examples or labelled tokens.

        Args:
            logits: as `forward` returns them; for a multiple choice (examples, choices).
            labels: class indices (rows,), or floats (rows,) for a regression; tag indices
                (rows, length) with -100 where a token has none; start and end (rows, 2) for
                question answering.
        """
        if self.pools and labels.numel() != len(logits):
            raise ValueError(
                f"labels: expected {len(logits)}, one an example, got {tuple(labels.shape)}"
            )
        match self.config.task:
            case "question-answering":
                # a position beyond the text is one the truncation has cut off
                labels = labels.masked_fill((labels < 0) | (labels >= logits.shape[1]), IGNORED)
                losses = [cross_entropy(logits[..., i], labels[:, i]) for i in range(2)]
                return (losses[0] + losses[1]) / 2
            case "sequence-classification" if len(self.config.labels) == 1:
                return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).view(-1))
            case "token-classification":
                return cross_entropy(logits.flatten(0, 1), labels.flatten())
            case _:
                return cross_entropy(logits, labels.view(-1))


def pool(states: Tensor, attention_mask: Tensor | None, pooling: str) -> Tensor:
    """(rows, length, hidden_size) -> (rows, hidden_size): the mean token state or the first."""
    if pooling == "first":
        return states[:, 0]
    if attention_mask is None:
        return states.mean(1)
    weight = attention_mask.bool().unsqueeze(-1)
    return states.masked_fill(~weight, 0).sum(1) / weight.sum(1).clamp(min=1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over labels other than -100; 0, not NaN, if there are none."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


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

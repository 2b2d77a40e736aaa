"""Prefix attention: one softmax over a prompt and a sequence, kept as two blocks."""

from .api import prefix_attention, prefix_attention_varlen
from .arguments import RelativePositions

__all__ = ["RelativePositions", "prefix_attention", "prefix_attention_varlen"]

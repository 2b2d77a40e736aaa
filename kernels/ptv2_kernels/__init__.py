"""Prefix attention: one softmax over a prompt and a sequence, kept as two blocks."""

from .api import prefix_attention, prefix_attention_varlen

__all__ = ["prefix_attention", "prefix_attention_varlen"]

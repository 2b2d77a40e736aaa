"""Prompts of every kind of task."""

from ptv2 import PromptConfig

CLASSIFY = PromptConfig(
    task="sequence-classification", labels=("a", "b", "c"), prompt_length=5, init_std=1.0
)
TAG = PromptConfig(task="token-classification", labels=("O", "X"), prompt_length=3, init_std=1.0)
REGRESS = PromptConfig(task="sequence-classification", labels=("score",), prompt_length=2)
SEVERAL = PromptConfig("sequence-classification", ("a", "b", "c"), 2, multi_label=True)
ANSWER = PromptConfig(task="question-answering", prompt_length=4, init_std=1.0)
CHOOSE = PromptConfig(task="multiple-choice", prompt_length=4, init_std=1.0)
EMBED = PromptConfig(task="feature-extraction", prompt_length=6, init_std=1.0)

"""Settings that a prompt would not read, and prompts that leave no room for a text."""

from os import PathLike

from transformers import PreTrainedTokenizerBase

from .assets import read_asset
from .config import PromptConfig
from .predictor import Predictor
from .readers import longest_input

UNREAD = {
    "network_size": "network_size: expected parametrization mlp or lstm with it, got direct",
    "init_std": "init_std: the prompt starts with other values already, expected none",
}
"""What is wrong with a setting that no prompt reads, for those that not every prompt does."""


def reads(name: str, prompt: PromptConfig, start_from: str | PathLike[str] | None) -> bool:
    """Whether a prompt depends on one of its settings.

    Args:
        start_from: the directory of a saved prompt, whose values the prompt starts with.

    Raises:
        FileNotFoundError: there is no prompt to start from.
        ValueError: the prompt to start from is corrupt.
    """
    direct = prompt.parametrization == "direct"
    if name == "network_size":
        return not direct
    if name == "init_std" and start_from is not None:  # rows that the other lacks are random
        return direct and prompt.prompt_length > read_asset(start_from).config.prompt_length
    return True


def require_room(predictor: Predictor, name: str, positions: int) -> None:
    """Raise a ValueError unless a setting that takes so many positions leaves some to a text."""
    tokenizer = predictor.tokenizer
    if not positions or not isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    room = longest_input(predictor.model, tokenizer)
    least = tokenizer.num_special_tokens_to_add() + 1
    if positions > room - least:
        raise ValueError(
            f"{name}: expected at most {room - least}, which leaves {least} of the {room} "
            f"positions to a text, got {positions}"
        )

"""How the texts of a task are read and its answers written, for one backbone."""

from typing import Any, cast

from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer

from .config import PromptConfig
from .families import family_of
from .model import PromptModel
from .positions import positions_of
from .tasks import TASKS, Task, make_task
from .tasks.tokens import shortest


class Readers:
    """Makes the reader of any task on a backbone.

    Args:
        model: of the backbone.
        tokenizer: of the backbone; for images its image processor. None: loaded from where the
            backbone came from.
        max_length: longest input in tokens, if less than the backbone allows.

    Raises:
        ValueError: the tokenizer has no words, or more tokens than the backbone.
    """

    def __init__(
        self, model: PromptModel, tokenizer: Any = None, max_length: int | None = None
    ) -> None:
        self._images = family_of(model.backbone.config.model_type).takes == "pixel_values"
        self.tokenizer = tokenizer or load_processor(model)
        if not self._images:
            require_vocabulary(model, self.tokenizer)
        self._longest = longest_input(model, self.tokenizer)
        self._given_length = max_length

    def length_beside(self, positions: int) -> int:
        """The longest input in tokens, for a prompt that takes so many positions."""
        return shortest(self._longest - positions, self._given_length)

    def reader(self, config: PromptConfig, **options: Any) -> Task:
        """How a task reads inputs; options are fields of its class.

        Raises:
            NotImplementedError: tasks of its kind read nothing that the backbone takes.
            ValueError: an option is none of its kind, or out of its range.
        """
        if self._images and config.task == "feature-extraction":
            raise NotImplementedError(
                "task: the model itself gives features of images, expected image-classification"
            )
        room = self.length_beside(config.positions)
        return make_task(
            config.task,
            self.tokenizer,
            labels=config.labels,
            max_length=shortest(room, options.pop("max_length", None)),
            **kept_fields(config),
            **options,
        )


def kept_fields(config: PromptConfig) -> dict[str, Any]:
    """What a prompt's configuration keeps of its task's fields."""
    names = TASKS[config.task].prompt_fields if config.task in TASKS else ()
    return {name: getattr(config, name) for name in names}


def load_processor(model: PromptModel) -> Any:
    """The tokenizer, or the image processor, from where the backbone came from."""
    config = model.backbone.config
    images = family_of(config.model_type).takes == "pixel_values"
    return (AutoImageProcessor if images else AutoTokenizer).from_pretrained(config._name_or_path)


def require_vocabulary(model: PromptModel, tokenizer: Any) -> None:
    """Raise a ValueError unless the tokenizer has words, all of them the backbone's.

    Where a folder has no tokenizer, transformers makes one of special tokens alone.
    """
    source = tokenizer.name_or_path or "no folder"
    known = len(cast(Tensor, model.backbone.get_input_embeddings().weight))
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(
            f"tokenizer: expected one with words, got special tokens alone from {source!r}"
        )
    if len(tokenizer) > known:
        raise ValueError(
            f"tokenizer: expected at most the {known} tokens that the backbone has embeddings "
            f"for, got {len(tokenizer)} from {source!r}"
        )


def longest_input(model: PromptModel, tokenizer: Any) -> int:
    """How many tokens the backbone has positions for and the tokenizer gives; 1 for an image."""
    if family_of(model.backbone.config.model_type).takes == "pixel_values":
        return 1
    return min(positions_of(model.backbone), int(tokenizer.model_max_length))

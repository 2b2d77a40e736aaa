"""P-Tuning v2 for encoder models: deep prompts as a separate block of keys and values."""

from typing import TYPE_CHECKING, Any

from ptv2_kernels import prefix_attention, prefix_attention_varlen

from .clip import ClipPromptModel
from .config import PromptConfig
from .model import PromptModel, UnknownTaskError
from .outputs import MixedTaskOutput
from .task_model import TaskModel
from .version import __version__

if TYPE_CHECKING:
    from .predictor import Predictor


__all__ = [
    "ClipPromptModel",
    "MixedTaskOutput",
    "Predictor",
    "PromptConfig",
    "PromptModel",
    "TaskModel",
    "UnknownTaskError",
    "__version__",
    "prefix_attention",
    "prefix_attention_varlen",
]


def __getattr__(name: str) -> Any:
    """Import `Predictor` when it is asked for: data sets and metrics come with it."""
    if name == "Predictor":
        from .predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

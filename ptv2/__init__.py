"""P-Tuning v2 for encoder models: deep prompts as a separate block of keys and values."""

from ptv2_kernels import prefix_attention, prefix_attention_varlen

from .config import PromptConfig
from .model import PromptModel, UnknownTaskError
from .outputs import MixedTaskOutput
from .predictor import Predictor
from .task_model import TaskModel

__version__ = "0.1.0"

__all__ = [
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

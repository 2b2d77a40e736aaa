"""Which system saved a folder, and the backbone to read it for."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, CLIPModel

from ..clip import ClipPromptModel
from ..model import PromptModel
from .adapter_hub import import_adapters
from .foreign import read_json
from .peft import import_peft
from .thudm import import_thudm


def import_prompt(
    model: PromptModel | ClipPromptModel,
    directory: str | PathLike[str],
    name: str,
    labels: Sequence[str] | None = None,
) -> str:
    """Add a task from a folder of PEFT, of adapters or of the official code.

    Args:
        model: of `load_backbone`, which knows whether a pooler was pretrained.
        labels: names of the classes, if the folder has none or others.

    Returns:
        The name of the system that it is from.

    Raises:
        FileNotFoundError: there is none of their files.
        ValueError: it cannot be read, or computes what a prompt here cannot.
    """
    place = Path(directory) / "adapter_config.json"
    if place.is_file() and "peft_type" not in read_json(place):
        import_adapters(model, directory, name, labels)
        return "adapters"
    if not place.is_file() and not place.with_name("config.json").is_file():
        raise FileNotFoundError(
            f"source: expected adapter_config.json (PEFT, adapters) or config.json (the official "
            f"code) in {directory}"
        )
    if isinstance(model, ClipPromptModel):
        raise ValueError("source: expected a folder of adapters for CLIP, got one of another")
    if place.is_file():
        import_peft(model, directory, name, labels)
        return "PEFT"
    import_thudm(model, directory, name, labels)
    return "P-tuning-v2"


def load_backbone(name_or_path: str | PathLike[str]) -> PromptModel | ClipPromptModel:
    """A model whose backbone has its pooler only if that was pretrained."""
    backbone: Any
    backbone, report = AutoModel.from_pretrained(
        name_or_path, dtype=torch.float32, output_loading_info=True
    )
    if isinstance(backbone, CLIPModel):
        return ClipPromptModel(backbone)
    if any(key.startswith("pooler.") for key in report["missing_keys"]):
        backbone.pooler = None
    return PromptModel(backbone)

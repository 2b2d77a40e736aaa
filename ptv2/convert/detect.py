"""Which system saved a folder, and the backbone to read it for."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from ..model import PromptModel
from .adapter_hub import import_adapters
from .foreign import read_json
from .peft import import_peft
from .thudm import import_thudm


def import_prompt(
    model: PromptModel,
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
    if not place.is_file():
        if not place.with_name("config.json").is_file():
            raise FileNotFoundError(
                f"source: expected adapter_config.json (PEFT, adapters) or config.json (the "
                f"official code) in {directory}"
            )
        import_thudm(model, directory, name, labels)
        return "P-tuning-v2"
    if "peft_type" in read_json(place):
        import_peft(model, directory, name, labels)
        return "PEFT"
    import_adapters(model, directory, name, labels)
    return "adapters"


def load_backbone(name_or_path: str | PathLike[str]) -> PromptModel:
    """A model whose backbone has its pooler only if that was pretrained."""
    backbone: Any
    backbone, report = AutoModel.from_pretrained(
        name_or_path, dtype=torch.float32, output_loading_info=True
    )
    if any(key.startswith("pooler.") for key in report["missing_keys"]):
        backbone.pooler = None
    return PromptModel(backbone)

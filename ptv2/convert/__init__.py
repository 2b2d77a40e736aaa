"""Prompts from other systems, and for them."""

from .adapter_hub import import_adapters
from .detect import import_prompt, load_backbone
from .peft import export_peft, import_peft
from .thudm import import_thudm

__all__ = [
    "export_peft",
    "import_adapters",
    "import_peft",
    "import_prompt",
    "import_thudm",
    "load_backbone",
]

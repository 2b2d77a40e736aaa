"""The encoder as a server holds it."""

import torch

from ..model import PromptModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_backbone(
    name_or_path: str, device: torch.device, dtype: str | None = None
) -> PromptModel:
    """Load a backbone for answers alone.

    Args:
        dtype: of its weights, a name of `DTYPES`. None: bf16 on an accelerator, fp32 on a CPU.

    Raises:
        ValueError: there is no such dtype.
    """
    kind = dtype or ("fp32" if device.type == "cpu" else "bf16")
    if kind not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {kind!r}")
    return PromptModel.from_pretrained(name_or_path, dtype=DTYPES[kind]).to(device)

"""The encoder as a server holds it."""

from os import PathLike

import torch
from torch import Tensor, nn

from ..model import PromptModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_backbone(
    name_or_path: str | PathLike[str], device: torch.device, dtype: str | None = None
) -> PromptModel:
    """Load a backbone for answers alone: in bf16 on a CPU, nothing can be trained through it.

    Args:
        dtype: of its weights, a name of `DTYPES`. None: bf16 on an accelerator, fp32 on a CPU.

    Raises:
        ValueError: there is no such dtype.
    """
    kind = dtype or ("fp32" if device.type == "cpu" else "bf16")
    if kind not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {kind!r}")
    model = PromptModel.from_pretrained(name_or_path, dtype=DTYPES[kind]).to(device).eval()
    on_cpu = device.type == "cpu" and kind == "bf16"
    if on_cpu and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        _lay_out(model.backbone)
    return model


class LaidOutLinear(nn.Linear):
    """A linear layer with a second copy of its weight, in oneDNN's layout for products.

    Without it every product lays out the weight anew; in fp32 that is a small part of it.
    """

    def __init__(self, layer: nn.Linear) -> None:
        features = layer.in_features, layer.out_features
        super().__init__(*features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self._laid_out = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        product = torch.ops.mkldnn._linear_pointwise
        return product(input, self._laid_out, self.bias, "none", [], "")  # type: ignore[no-any-return]


def _lay_out(module: nn.Module) -> None:
    """Put a `LaidOutLinear` in the place of every linear layer."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, LaidOutLinear(child))
        else:
            _lay_out(child)

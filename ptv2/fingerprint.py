"""Telling backbones apart by their weights: a prompt fits only the backbone it was trained on."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

_SAMPLED = 64
_DTYPES = ("float32", "float16", "bfloat16")


class BackboneIdentity:
    """What a backbone is called and the SHA-256 of its frozen weights.

    A backbone in float32 has a fingerprint in each dtype it may be served in, so that a prompt
    trained in float32 is known to fit the same backbone in 16 bits. Pooler and buffers do not
    count. Fingerprints are computed when they are first needed, and again if weights have changed
    or moved. Writes through `.data`, which torch does not count, are seen where they change a
    sample of each weight.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        self._backbone = (backbone,)
        self._weights: Any = None
        self._fingerprints: dict[str, str] = {}  # of these weights

    def describe(self) -> dict[str, Any]:
        """name_or_path, model_type and fingerprint (dtype -> SHA-256), for an asset."""
        config = self._backbone[0].config
        return {
            "name_or_path": str(config._name_or_path),
            "model_type": config.model_type,
            "fingerprint": {dtype: self._fingerprint(dtype) for dtype in self._dtypes()},
        }

    def forget(self) -> None:
        """Take the weights for others from now on: they were moved or cast."""
        self._weights = None

    def require_same(self, other: Mapping[str, Any], what: str) -> None:
        """Raise a ValueError unless `describe` of the other backbone is of the same weights.

        Args:
            what: what was made for the other backbone, for the message.
        """
        config, theirs = self._backbone[0].config, other.get("fingerprint") or {}
        common = [dtype for dtype in self._dtypes() if dtype in theirs]
        if common and theirs[common[0]] == self._fingerprint(common[0]):
            return
        raise ValueError(
            f"{what} was trained on the backbone {other.get('name_or_path')!r} "
            f"({other.get('model_type')}), whose weights "
            f"{'differ from' if common else 'cannot be compared with'} those of "
            f"{str(config._name_or_path)!r} ({config.model_type}, {self._dtypes()[0]})"
        )

    def _dtypes(self) -> tuple[str, ...]:
        """The dtypes in which the weights can be told apart: their own and narrower ones."""
        own = str(self._backbone[0].dtype).removeprefix("torch.")
        return _DTYPES if own in ("float32", "float64") else (own,)

    def _fingerprint(self, dtype: str) -> str:
        own = self._backbone[0].dtype
        parameters = list(self._backbone[0].parameters())
        weights = [_state(x) for x in parameters], _sample(parameters)
        if weights != self._weights:
            self._weights, self._fingerprints = weights, {}
        key = f"{own} as {dtype}"
        if key not in self._fingerprints:
            self._fingerprints[key] = _sha256(self._backbone[0], getattr(torch, dtype))
        return self._fingerprints[key]


def _state(weight: torch.Tensor) -> tuple[int, int]:
    """Where a weight is, and how often it was changed there; inference tensors do not count."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _sample(weights: Sequence[torch.Tensor]) -> bytes:
    """Up to _SAMPLED values of each weight, spread over it."""
    flat = [x.detach().reshape(-1) for x in weights]
    values = [x[:: max(1, len(x) // _SAMPLED)][:_SAMPLED].float().cpu() for x in flat]
    return torch.cat(values).numpy().tobytes()


def _sha256(backbone: PreTrainedModel, dtype: torch.dtype) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(backbone.named_parameters()):
        if not name.startswith("pooler."):
            digest.update(f"{name}{tuple(weight.shape)}".encode())
            data = weight.detach().to("cpu", dtype).contiguous().flatten()
            digest.update(data.view(torch.uint8).numpy().data)
    return digest.hexdigest()

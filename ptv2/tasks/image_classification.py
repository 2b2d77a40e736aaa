"""Image classification: a class for an image."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from datasets import Dataset, Image
from torch import Tensor

from .data import check_columns, example
from .sequence_classification import SequenceClassification
from .task import Answer, Feature, Task, rows_of


@dataclass(frozen=True)
class ImageClassification(Task):
    """Images with a class each; they are read when a batch needs them.

    The task's `tokenizer` is the backbone's image processor.

    Args:
        image_column, label_column: where the data keeps its fields. An image is a path, absolute
            or from the working directory, or an image of `datasets`.
    """

    image_column: str = "image"
    label_column: str = "label"

    kind: ClassVar[str] = "image-classification"
    metric: ClassVar[str] = "accuracy"

    def fit_labels(self, *parts: Dataset) -> Self:
        fitted = self._classes.fit_labels(*parts)
        if fitted.regression or fitted.multi_label:
            raise ValueError("label_column: expected one class an image, got numbers or lists")
        return replace(self, labels=fitted.labels)

    def prepare(self, data: Dataset, labelled: bool = True) -> Dataset:
        if isinstance(data.features.get(self.image_column), Image):  # else reading would decode
            data = data.cast_column(self.image_column, Image(decode=False))
        check_columns(data, image_column=self.image_column)
        images = [_source(image) for image in data[self.image_column]]
        for place, image in enumerate(images):
            _require_image(image, example(data, place))
        features: dict[str, Any] = {"image": images, "example": list(range(len(images)))}
        if labelled:
            features["labels"] = self._classes.targets(data)
        return Dataset.from_dict(features)

    def prepare_inputs(self, inputs: Sequence[str | Path]) -> list[Feature]:
        """Features of the paths of images."""
        images = [_source(image) for image in inputs]
        for place, image in enumerate(images):
            _require_image(image, f"input {place}")
        return rows_of({"image": images, "example": list(range(len(images)))})

    def sequences(self, feature: Feature) -> list[Feature]:
        """Read the image: `pixel_values` (channels, height, width)."""
        where = feature["image"]["path"] or f"example {feature['example']}"
        try:
            with _open(feature["image"]) as image:
                rgb = _upright(image).convert("RGB")
        except OSError as error:  # the head of the file was read before
            raise ValueError(f"image_column: the image {where} cannot be read: {error}") from None
        return [{"pixel_values": self.tokenizer(rgb, return_tensors="pt")["pixel_values"][0]}]

    def lengths(self, feature: Feature) -> list[int]:
        """All images are as long as each other."""
        return [1]

    def decode(self, logits: Sequence[Tensor], features: Sequence[Feature]) -> Answer:
        """Logits (labels,) -> the "label" and its probability, "score"."""
        return self._classes.decode(logits, features)

    def references(self, data: Dataset) -> list[Any]:
        """Each image's label."""
        return self._classes.references(data)

    def score(self, answers: Sequence[Answer], references: Sequence[Any]) -> dict[str, float]:
        """Accuracy and macro-F1."""
        return self._classes.score(answers, references)

    def majority(self, references: Sequence[Any]) -> dict[str, float]:
        """The scores of always the commonest label."""
        return self._classes.majority(references)

    @property
    def _classes(self) -> SequenceClassification:
        """What there is to do with labels, whatever they are of."""
        return SequenceClassification(self.tokenizer, self.labels, label_column=self.label_column)


_DEEP = ("I", "F")
"""Pillow's modes of more than 8 bits, which it would clip."""


def _source(image: Any) -> dict[str, Any]:
    """The bytes or the path of an image, as `datasets` keeps it."""
    if isinstance(image, dict):
        return {"bytes": image.get("bytes"), "path": image.get("path")}
    return {"bytes": None, "path": str(image)}


def _open(source: dict[str, Any]) -> Any:
    """Raises an OSError too for an image that is too large to be one in earnest."""
    from PIL import Image as pillow

    place = source["path"] if source["bytes"] is None else io.BytesIO(source["bytes"])
    try:
        return pillow.open(place)
    except pillow.DecompressionBombError as error:
        raise OSError(str(error)) from None


def _require_image(source: dict[str, Any], where: str) -> None:
    if source["bytes"] is None and source["path"] is None:
        raise ValueError(f"image_column: expected bytes or a path in {where}, got neither")
    try:
        with _open(source) as image:
            if image.mode.startswith(_DEEP):
                raise ValueError(
                    f"image_column: expected 8 bits a channel in {where}, got mode {image.mode}"
                )
    except ImportError:
        raise ImportError(
            "image-classification needs pillow: pip install 'ptv2[images]'"
        ) from None
    except OSError as error:
        raise ValueError(f"image_column: no image in {where}: {error}") from None


def _upright(image: Any) -> Any:
    """Turned as its EXIF data says."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)

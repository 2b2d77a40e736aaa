"""CLIP with prompts in both of its encoders, of texts and of images."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn
from transformers import CLIPModel
from transformers.models.clip.modeling_clip import CLIPOutput, image_text_contrastive_loss

from . import storage
from .assets import CONFIG, Asset, asset_files, read_asset, require_own_card
from .config import PromptConfig
from .model import PromptModel, UnknownTaskError
from .task_model import leave_out_backbone

INDEX = "clip.json"
"""The file that says which encoders a saved task has prompts in."""

Tasks = str | Sequence[str | None] | None


class ClipPromptModel(nn.Module):
    """A frozen CLIP whose two encoders have prompts of their own.

    `text` and `images` are the encoders, as a `PromptModel` each.

    Args:
        clip: it is frozen and switched to prompt attention.
    """

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.backbone = clip.requires_grad_(False)
        for encoder in (clip.text_model, clip.vision_model):  # what prompts are saved for
            encoder.config._name_or_path = (
                encoder.config._name_or_path or clip.config._name_or_path
            )
        self.text = PromptModel(clip.text_model)
        self.images = PromptModel(clip.vision_model)
        leave_out_backbone(self)

    @classmethod
    def from_pretrained(cls, name_or_path: str | PathLike[str], **kwargs: Any) -> Self:
        """Load a CLIP as transformers does; kwargs go to its from_pretrained."""
        return cls(CLIPModel.from_pretrained(name_or_path, **kwargs))

    def add_task(
        self, name: str, text: PromptConfig | None = None, images: PromptConfig | None = None
    ) -> None:
        """Add a task with a new prompt in the encoder of texts, of images, or in both.

        Raises:
            ValueError: there is no configuration, one that does not fit its encoder, or one with
                a head, which image-text scores have no use for.
        """
        configs = {"text": text, "images": images}
        if text is None and images is None:
            raise ValueError("text: expected a configuration for text, images or both, got none")
        self.add_parts(
            name,
            {
                part: partial(getattr(self, part).add_task, name, config)
                for part, config in configs.items()
                if config is not None
            },
        )

    def add_parts(self, name: str, parts: Mapping[str, Callable[[], object]]) -> None:
        """Add a task to the encoders, to all of them or, if one raises a ValueError, to none.

        Args:
            parts: "text", "images" or both, with what adds it there.

        Raises:
            ValueError: as the parts do; or scores have no use for something in the task.
        """
        added: list[PromptModel] = []
        try:
            for part, add in parts.items():
                add()
                added.append(getattr(self, part))
                _require_no_more_than_features(part, added[-1].tasks[name])
        except ValueError:
            for encoder in added:
                encoder.remove_task(name)
            raise

    def remove_task(self, name: str) -> None:
        """Take a task away, from both encoders.

        Raises:
            UnknownTaskError: neither has it.
        """
        for encoder in self._encoders(name).values():
            encoder.remove_task(name)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        *,
        text_task: Tasks,
        image_task: Tasks,
        return_loss: bool = False,
    ) -> CLIPOutput:
        """The scores of every image with every text.

        Args:
            input_ids, attention_mask: (texts, length).
            pixel_values: (images, channels, height, width).
            text_task, image_task: a task's name for all, one a row, or None for no prompt.
            return_loss: also the contrastive loss; image i belongs to text i.

        Raises:
            UnknownTaskError: an encoder does not have the task.
            ValueError: there are not as many tasks as rows.
        """
        for argument, task, rows in (
            ("text_task", text_task, len(input_ids)),
            ("image_task", image_task, len(pixel_values)),
        ):
            if not rows:
                raise ValueError(f"{argument}: expected at least one row, got none")
            if task is not None and not isinstance(task, str) and len(task) != rows:
                raise ValueError(f"{argument}: expected {rows} names, one a row, got {len(task)}")
        for part, encoder, task in (
            ("text", self.text, text_task),
            ("images", self.images, image_task),
        ):
            for name in {task} if isinstance(task, str) else set(task or ()) - {None}:
                if name in encoder.tasks:  # added to the encoder itself, it was not looked at
                    _require_no_more_than_features(part, encoder.tasks[name])
        prompts = self.text.prompt_batch(text_task), self.images.prompt_batch(image_task)
        texts = self.backbone.get_text_features(
            input_ids=input_ids, attention_mask=attention_mask, prompts=prompts[0]
        )
        images = self.backbone.get_image_features(pixel_values=pixel_values, prompts=prompts[1])
        for batch in prompts:
            batch.require_taken()
        text_embeds = nn.functional.normalize(texts.pooler_output, dim=-1)
        image_embeds = nn.functional.normalize(images.pooler_output, dim=-1)
        scores = text_embeds @ image_embeds.T * self.backbone.logit_scale.exp()
        return CLIPOutput(
            loss=image_text_contrastive_loss(scores) if return_loss else None,
            logits_per_image=scores.T,
            logits_per_text=scores,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=texts,
            vision_model_output=images,
        )

    def save_task(self, name: str, directory: str | PathLike[str]) -> None:
        """Save a task's prompts in one step, in the folders `text` and `images`.

        Raises:
            UnknownTaskError: neither encoder has it.
            ValueError: a prompt is not finite.
            FileExistsError: the path is a file, or a README.md there is not of a saved task.
        """
        files: dict[str, bytes] = {}
        sums: dict[str, str] = {}
        for part, encoder in self._encoders(name).items():
            require_own_card(Path(directory) / part)
            own = asset_files(encoder.asset(name), type(self).__name__)
            sums[part] = hashlib.sha256(own[CONFIG]).hexdigest()
            files |= {f"{part}/{file}": data for file, data in own.items()}
        index = {"name": name, "parts": list(sums), "sha256": sums}
        files[INDEX] = (json.dumps(index) + "\n").encode()
        storage.commit(Path(directory), files)

    def load_task(self, directory: str | PathLike[str], name: str | None = None) -> str:
        """Add a saved task, under the name it was saved with if there is no other.

        Raises:
            FileNotFoundError: there is no saved task.
            ValueError: it is corrupt, of another backbone, or the name is taken.
        """
        index, assets = _read_parts(Path(directory))
        name = str(index["name"]) if name is None else name
        self.add_parts(
            name,
            {
                part: partial(
                    getattr(self, part).load_asset, asset, f"the prompt in {directory}", name
                )
                for part, asset in assets.items()
            },
        )
        return name

    def _encoders(self, name: str) -> dict[str, PromptModel]:
        found = {
            part: encoder
            for part, encoder in (("text", self.text), ("images", self.images))
            if name in encoder.tasks
        }
        if not found:
            known = ", ".join({**self.text.tasks, **self.images.tasks}) or "none"
            raise UnknownTaskError(f"task: {name!r} is unknown; the model's tasks are: {known}")
        return found


def read_index(directory: str | PathLike[str]) -> dict[str, Any]:
    """The "name" of a saved task of CLIP, and its "parts", text or images.

    Raises:
        FileNotFoundError: there is none.
        ValueError: this is no such index.
    """
    try:
        index = json.loads(storage.read(Path(directory), INDEX))
        if index["parts"] and set(index["parts"]) <= {"text", "images"}:
            return dict(index)
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        pass
    raise ValueError(f"{Path(directory) / INDEX}: expected a name and parts, text or images")


def _read_parts(directory: Path) -> tuple[dict[str, Any], dict[str, Asset]]:
    """The index of a saved task and its parts, all of one save."""
    index = read_index(directory)
    while True:
        assets = {part: read_asset(directory, part) for part in index["parts"]}
        sums = {
            part: hashlib.sha256(storage.read(directory, f"{part}/{CONFIG}")).hexdigest()
            for part in assets
        }
        if sums == index.get("sha256"):
            return index, assets
        before, index = index, read_index(directory)
        if index == before:  # else another process has saved meanwhile
            raise ValueError(f"{directory / INDEX}: corrupt, its parts are of another save")


def _require_no_more_than_features(part: str, config: PromptConfig) -> None:
    if config.task != "feature-extraction":
        raise ValueError(f"{part}: expected feature-extraction, got {config.task}")
    if config.position_offset:
        raise ValueError(f"{part}: expected position_offset 0, got {config.position_offset}")

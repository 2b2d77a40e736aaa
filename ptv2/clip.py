"""CLIP with prompts in both of its encoders, of texts and of images."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn
from transformers import CLIPModel
from transformers.models.clip.modeling_clip import CLIPOutput, image_text_contrastive_loss

from .config import PromptConfig
from .model import PromptModel, UnknownTaskError
from .task_model import leave_out_backbone

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
        for argument, config in configs.items():
            if config is not None and config.task != "feature-extraction":
                raise ValueError(f"{argument}: expected feature-extraction, got {config.task}")
            if config is not None and config.position_offset:
                raise ValueError(
                    f"{argument}: expected position_offset 0, got {config.position_offset}"
                )
        added = []
        try:
            for argument, config in configs.items():
                if config is not None:
                    encoder: PromptModel = getattr(self, argument)
                    encoder.add_task(name, config)
                    added.append(encoder)
        except ValueError:
            for encoder in added:
                encoder.remove_task(name)
            raise

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
            if task is not None and not isinstance(task, str) and len(task) != rows:
                raise ValueError(f"{argument}: expected {rows} names, one a row, got {len(task)}")
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
        """Save a task's prompts, in the folders `text` and `images`.

        Raises:
            UnknownTaskError: neither encoder has it.
        """
        for part, encoder in self._encoders(name).items():
            encoder.save_task(name, Path(directory) / part)

    def load_task(self, directory: str | PathLike[str], name: str | None = None) -> str:
        """Add a saved task, under the name it was saved with if there is no other.

        Raises:
            FileNotFoundError: there is no saved prompt.
            ValueError: one is corrupt, of another backbone, or the name is taken.
        """
        parts = [part for part in ("text", "images") if (Path(directory) / part).is_dir()]
        if not parts:
            raise FileNotFoundError(f"directory: expected text or images in {directory}")
        loaded: list[PromptModel] = []
        try:
            for part in parts:
                encoder: PromptModel = getattr(self, part)
                name = encoder.load_task(Path(directory) / part, name)
                loaded.append(encoder)
        except (ValueError, OSError):
            for encoder in loaded:
                encoder.remove_task(str(name))
            raise
        return str(name)

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

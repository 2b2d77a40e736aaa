"""One task of a PromptModel as a module that `transformers.Trainer` trains unchanged."""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .families import family_of

if TYPE_CHECKING:
    from .model import PromptModel


class TaskModel(nn.Module):
    """The backbone with one task's prompt and head.

    Its `state_dict`, and so a Trainer checkpoint, holds the prompt and the head only.

    Args:
        model: the model whose backbone, prompt and head are shared.
        task: the task's name.
        backbone_dropout: whether the backbone's own dropout acts while this module trains.
    """

    def __init__(self, model: "PromptModel", task: str, backbone_dropout: bool = True) -> None:
        super().__init__()
        self.task = task
        self.backbone_dropout = backbone_dropout
        self.backbone = model.backbone
        self.prompt = model.prompts[task]
        self.head = dict(model.heads.items()).get(task)
        self._model = (model,)  # in a tuple: a module here would register the other tasks too
        leave_out_backbone(self)

    def _apply(self, fn: Any, recurse: bool = True) -> "TaskModel":
        """Move or cast the whole model: its other tasks stay beside the backbone."""
        self._model[0]._apply(fn, recurse)
        return self

    def train(self, mode: bool = True) -> "TaskModel":
        """Set the mode; without `backbone_dropout` the backbone stays as in evaluation."""
        super().train(mode)
        if mode and not self.backbone_dropout:
            self.backbone.eval()
            for layer in family_of(self.config.model_type).layers(self.backbone):
                layer.training = True  # itself, not its parts: only such a layer checkpoints
        return self

    def _replicate_for_data_parallel(self) -> "TaskModel":
        raise NotImplementedError(
            "torch.nn.DataParallel: replicas would share one prompt; start one process a GPU "
            "with torchrun"
        )

    @property
    def config(self) -> PreTrainedConfig:
        """The backbone's configuration, which the Trainer reads."""
        return self.backbone.config

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        choices: int | None = None,
        pixel_values: Tensor | None = None,
    ) -> ModelOutput:
        """`PromptModel.forward` with every row of this task.

        Raises:
            UnknownTaskError: the task was removed.
            ValueError: there is another by its name now.
        """
        self._require_own_task()
        return self._model[0].forward(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            task=self.task,
            labels=labels,
            start_positions=start_positions,
            end_positions=end_positions,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            choices=choices,
            pixel_values=pixel_values,
        )

    def _require_own_task(self) -> None:
        model = self._model[0]
        model.task_config(self.task)
        if model.prompts[self.task] is not self.prompt:
            raise ValueError(
                f"task: {self.task!r} was removed and added anew, expected a module made since"
            )

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        *,
        keep_attention: bool = False,
        **options: Any,
    ) -> None:
        """Recompute the backbone's layers in the backward instead of storing them.

        Args:
            activation_checkpointing_kwargs: for `torch.utils.checkpoint.checkpoint`.
            keep_attention: store what attention gives, so that it is not computed again.
            options: what else transformers' method of that name takes.

        Raises:
            ValueError: use_reentrant=True, which would train no prompt; or the backbone's family
                has no checkpointing in transformers.
        """
        kwargs = {"use_reentrant": False} | (activation_checkpointing_kwargs or {})
        if kwargs["use_reentrant"]:
            raise ValueError(_REENTRANT)
        if keep_attention:
            if "context_fn" in kwargs:
                raise ValueError("keep_attention: expected False with a context_fn, got True")
            kwargs["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_attention)
        backbone = self.backbone
        if hasattr(backbone, "activation_checkpointing_enable"):
            backbone.activation_checkpointing_enable(kwargs, **options)
        else:  # its name before transformers 5.23
            backbone.gradient_checkpointing_enable(kwargs, **options)

    def activation_checkpointing_disable(self) -> None:
        """Store all that the backward needs."""
        backbone = self.backbone
        if not any(getattr(x, "gradient_checkpointing", False) for x in backbone.modules()):
            return  # also of a family that has none
        if hasattr(backbone, "activation_checkpointing_disable"):
            backbone.activation_checkpointing_disable()
        else:  # its name before transformers 5.23
            backbone.gradient_checkpointing_disable()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """`activation_checkpointing_enable` by the name that older Trainers call."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)


def _keep_attention(_: Any, function: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if function is torch.ops.ptv2.prefix_attention.default:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


_REENTRANT = (
    "use_reentrant: expected False; reentrant checkpointing sees no gradient for a prompt, which "
    "is an argument of the layers and not their input"
)


def require_nonreentrant_checkpointing(backbone: PreTrainedModel) -> None:
    """Raise a ValueError if the backbone is set to checkpoint in torch's reentrant way."""
    for layer in family_of(backbone.config.model_type).layers(backbone):
        checkpoint = getattr(layer, "_gradient_checkpointing_func", None)
        if checkpoint is not None and getattr(layer, "gradient_checkpointing", False):
            keywords = checkpoint.keywords if isinstance(checkpoint, partial) else {}
            if keywords.get("use_reentrant", True):
                raise ValueError(_REENTRANT)


def leave_out_backbone(module: nn.Module) -> None:
    """Keep the frozen backbone out of a module's state_dict, and do not miss it on loading."""
    module.register_state_dict_post_hook(_drop_backbone)
    module.register_load_state_dict_pre_hook(_add_backbone)


def _drop_backbone(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}backbone.")]:
        del state[key]


def _add_backbone(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    backbone = module.get_submodule("backbone")
    for key, weight in backbone.state_dict(prefix=f"{prefix}backbone.").items():
        state.setdefault(key, weight)

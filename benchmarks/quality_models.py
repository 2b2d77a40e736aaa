"""What bench_quality.py trains: a prompt, the whole encoder, or a prefix of PEFT's."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from ptv2 import PromptConfig, PromptModel
from ptv2.demo import encoder_directory
from ptv2.heads import Head
from ptv2.layout import Padded
from ptv2.outputs import task_output
from ptv2.tasks import Task
from ptv2.train_config import TrainConfig
from ptv2.training import prepare_module

CLASSES, TAGS = "sequence-classification", "token-classification"
Method = Callable[[Task, PromptConfig, TrainConfig], nn.Module]


class FineTuned(nn.Module):
    """The stock encoder, all of it trained, under the head that a prompt has."""

    accepts_loss_kwargs = False  # the Trainer would add an argument of its own

    def __init__(self, backbone: PreTrainedModel, config: PromptConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = Head(config, backbone.config.hidden_size)

    def forward(
        self,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **inputs: Tensor,
    ) -> ModelOutput:
        choices = None
        if self.head.config.task == "multiple-choice":
            choices = inputs["input_ids"].shape[1]
            inputs = {name: x.flatten(0, 1) for name, x in inputs.items()}
        if start_positions is not None:
            labels = torch.stack((start_positions, end_positions), 1)
        encoded = self.backbone(**inputs)
        layout = Padded(inputs["attention_mask"])
        return task_output(self.head.config, self.head, encoded, layout, labels, choices)


class Prefixed(nn.Module):
    """A model of PEFT, whose checkpoints are then those of any module: what is trained."""

    accepts_loss_kwargs = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> ModelOutput:
        return self.model(**inputs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        trained = {name for name, x in self.named_parameters() if x.requires_grad}
        state = super().state_dict(*args, **kwargs)
        return {name: x for name, x in state.items() if name in trained}

    def load_state_dict(self, state: dict[str, Tensor], *_: Any, **__: Any) -> Any:
        return super().load_state_dict(state, strict=False)


def prompted(task: Task, config: PromptConfig, train: TrainConfig) -> nn.Module:
    model = PromptModel.from_pretrained(encoder_directory())
    model.add_task("task", config)
    return prepare_module(model, "task", train)


def fine_tuned(task: Task, config: PromptConfig, train: TrainConfig) -> nn.Module:
    backbone = AutoModel.from_pretrained(
        encoder_directory(), add_pooling_layer=False, attn_implementation="sdpa"
    )
    return FineTuned(backbone, config)


def prefixed(task: Task, config: PromptConfig, train: TrainConfig) -> nn.Module:
    kinds = {
        CLASSES: (AutoModelForSequenceClassification, "SEQ_CLS"),
        TAGS: (AutoModelForTokenClassification, "TOKEN_CLS"),
        "question-answering": (AutoModelForQuestionAnswering, "QUESTION_ANS"),
        "multiple-choice": (AutoModelForMultipleChoice, None),  # PEFT names no such task
    }
    from peft import PrefixTuningConfig, get_peft_model

    model_class, task_type = kinds[task.kind]
    labels = {"num_labels": len(task.labels)} if task.labels else {}
    model = model_class.from_pretrained(encoder_directory(), **labels)
    prefix = PrefixTuningConfig(task_type=task_type, num_virtual_tokens=config.prompt_length)
    try:
        return Prefixed(get_peft_model(model, prefix))
    except KeyError as error:
        raise NotImplementedError(f"PEFT, {task.kind}: KeyError: {error}") from error


METHODS: dict[str, tuple[Method, TrainConfig]] = {
    "prompt": (prompted, TrainConfig()),
    "fine-tuning": (fine_tuned, TrainConfig(learning_rate=1e-4, weight_decay=0.01)),
    "peft": (prefixed, TrainConfig()),
}

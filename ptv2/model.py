"""PromptModel: one frozen backbone, and a prompt and a head for each task."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Self, cast

from torch import Tensor
from transformers import MODEL_MAPPING, AutoConfig, AutoModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from .attention import PromptBatch
from .config import PromptConfig
from .families import family_of
from .heads import Head
from .inputs import (
    as_trained,
    behind_prompt,
    check_inputs,
    flatten_choices,
    pack_inputs,
    task_labels,
    without_prompt,
)
from .layout import Packed, Padded
from .outputs import MixedTaskOutput, task_output
from .positions import require_positions
from .prompt_store import PromptStore, UnknownTaskError
from .task_model import TaskModel

__all__ = ["PromptModel", "UnknownTaskError"]

_WHERE = ("cache_dir", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")
"""What says where a pretrained model lies, for its configuration as for its weights."""


class PromptModel(PromptStore):
    """A frozen encoder with deep prompts, one for each task.

    Args:
        backbone: an encoder of a supported family, with or without a head of its own (which is
            left out). It is frozen and switched to prompt attention.

    Raises:
        NotImplementedError: the family is not supported.
        ValueError: the backbone is a decoder.
    """

    @classmethod
    def from_pretrained(cls, name_or_path: str | PathLike[str], **kwargs: Any) -> Self:
        """Load a backbone as `transformers.AutoModel` does; kwargs go to its from_pretrained."""
        if kwargs.get("output_loading_info"):
            raise ValueError("output_loading_info: a model alone is returned, expected False")
        where = {name: kwargs[name] for name in _WHERE if name in kwargs}
        config = kwargs.get("config") or AutoConfig.from_pretrained(name_or_path, **where)
        family_of(config.model_type)
        model_class = MODEL_MAPPING[type(config)]
        if "add_pooling_layer" in inspect.signature(model_class).parameters:  # type: ignore[arg-type]
            kwargs.setdefault("add_pooling_layer", False)
        return cls(AutoModel.from_pretrained(name_or_path, **kwargs))

    def for_task(self, name: str, backbone_dropout: bool = True) -> TaskModel:
        """One task as a module of its own, for `transformers.Trainer` or any training loop.

        It shares the backbone, the prompt and the head with this model.

        Args:
            backbone_dropout: whether the backbone's own dropout acts while the module trains.
        """
        self.task_config(name)
        return TaskModel(self, name, backbone_dropout)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        task: str | Sequence[str | None] | None,
        pixel_values: Tensor | None = None,
        labels: Tensor | Sequence[Any] | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        choices: int | None = None,
        output_hidden_states: bool | None = None,
    ) -> ModelOutput:
        """Run the backbone once, each row with its task's prompt, and the tasks' heads.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: (rows, length); for a
                multiple choice (rows, choices, length). inputs_embeds instead of input_ids: one
                more dimension of hidden_size. Packed, (1, tokens): see cu_seqlens.
            pixel_values: (rows, channels, height, width), of an encoder of images instead.
            task: a name: every row is of that task, and the output is transformers' own class for
                it. A list: a name a row (a multiple choice's row is one choice), None for the bare
                backbone; the output is a `MixedTaskOutput`. None: the bare backbone for all.
            labels: what the task's loss takes; for a list of tasks one entry a row, None for none
                (a multiple choice has its label at an example's first choice).
            start_positions, end_positions: (rows,), the labels of question answering.
            cu_seqlens: (sequences + 1,) int32: the batch is packed, sequence after sequence in
                one row without padding, and sequence s has the tokens from cu_seqlens[s] to
                cu_seqlens[s + 1]. A row is then a sequence; outputs that have an entry a token
                are (1, tokens, ...), and so are their labels. Positions count in each sequence.
            max_seqlen: of the longest of them. None: the number of tokens, which is slower.
            choices: of each example, for a packed multiple choice, whose sequences are the
                choices of the first example, then of the second; with a list of tasks, of the
                examples of its multiple choices, if not all of them are labelled.
            output_hidden_states: whether the states of every layer are given. None: what the
                backbone's configuration says.

        Raises:
            UnknownTaskError: a task that the model does not have.
            ValueError: an argument does not fit the backbone, the task or the other arguments.
        """
        if output_hidden_states is None:
            output_hidden_states = bool(self.backbone.config.output_hidden_states)
        arguments = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "pixel_values": pixel_values,
        }
        inputs = {name: value for name, value in arguments.items() if value is not None}
        self.check_inputs(inputs)
        if position_ids is not None:
            self._require_positions(position_ids, attention_mask, task)
        packed = pack_inputs(self.backbone, inputs, cu_seqlens, max_seqlen)
        if isinstance(task, str):
            wanted = task_labels(self.task_config(task), labels, start_positions, end_positions)
            return self._forward_task(task, inputs, packed, choices, wanted, output_hidden_states)
        if start_positions is not None or end_positions is not None:
            raise ValueError("start_positions: expected one task's name in task, got a list")
        if task is None:
            for name, value in (("labels", labels), ("choices", choices)):
                if value is not None:
                    raise ValueError(f"{name}: the bare backbone has no head, expected None")
            return self._encode(inputs, packed, [], None, output_hidden_states)
        return self._forward_rows(
            list(task), inputs, packed, labels, choices, output_hidden_states
        )

    def check_inputs(self, inputs: Mapping[str, Tensor]) -> None:
        """Raise a ValueError unless the backbone takes the inputs."""
        check_inputs(self.backbone, self._accepted, inputs)

    def _require_positions(
        self,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        task: str | Sequence[str | None] | None,
    ) -> None:
        names = [task] if isinstance(task, str) else task or ()
        offset = max((self.task_config(x).positions for x in names if x is not None), default=0)
        if offset:
            require_positions(self.backbone, position_ids, attention_mask, offset)

    def _forward_task(
        self,
        name: str,
        inputs: dict[str, Tensor],
        packed: Packed | None,
        choices: int | None,
        labels: Tensor | None,
        output_hidden_states: bool,
    ) -> ModelOutput:
        config = self.tasks[name]
        if config.task == "multiple-choice":
            if packed is None:
                inputs, choices = flatten_choices(inputs, choices)
            elif choices is None or (len(packed.cu_seqlens) - 1) % choices:
                raise ValueError(
                    f"choices: expected a divisor of the {len(packed.cu_seqlens) - 1} sequences "
                    f"of a packed multiple choice, got {choices}"
                )
        elif choices is not None:
            raise ValueError(f"choices: {config.task} has none, expected None, got {choices}")
        encoded = self._encode(inputs, packed, [name], None, output_hidden_states)
        layout = packed or Padded(inputs.get("attention_mask"))
        return task_output(config, self.head(name), encoded, layout, labels, choices)

    def _forward_rows(
        self,
        tasks: list[str | None],
        inputs: dict[str, Tensor],
        packed: Packed | None,
        labels: Tensor | Sequence[Any] | None,
        choices: int | None,
        output_hidden_states: bool,
    ) -> MixedTaskOutput:
        (read,) = {"input_ids", "inputs_embeds", "pixel_values"} & inputs.keys()
        rows = len(inputs[read]) if packed is None else len(packed.cu_seqlens) - 1
        if len(tasks) != rows:
            raise ValueError(f"task: expected {rows} names, one a row, got {len(tasks)}")
        names = list(dict.fromkeys(name for name in tasks if name is not None))
        for name in names:
            self.task_config(name)
        encoded = self._encode(inputs, packed, names, tasks, output_hidden_states)
        heads = {name: cast(Head, self.heads[name]) for name in names if name in self.heads}
        layout = packed or Padded(inputs.get("attention_mask"))
        return MixedTaskOutput.of_rows(tasks, heads, encoded, layout, labels, choices)

    def _encode(
        self,
        inputs: Mapping[str, Tensor],
        packed: Packed | None,
        names: Sequence[str],
        rows: Sequence[str | None] | None,
        output_hidden_states: bool,
    ) -> BaseModelOutput:
        configs = [
            None if name is None else self.tasks[name]
            for name in (names if rows is None else rows)
        ]
        before = self._input_prompt(names, rows, packed)
        if before is None:
            prompts = self._pool(names, rows, packed)
            return self.encode(inputs, prompts, configs, output_hidden_states)
        inputs = as_trained(self.backbone, self._accepted, inputs, packed, configs)
        inputs = behind_prompt(self.backbone, self._accepted, inputs, before)
        bare = self._pool([], None, None)
        encoded = self.encode(inputs, bare, [], output_hidden_states)
        return without_prompt(encoded, len(before))

    def encode(
        self,
        inputs: Mapping[str, Tensor],
        prompts: PromptBatch,
        configs: Sequence[PromptConfig | None],
        output_hidden_states: bool = False,
        call: Callable[..., BaseModelOutput] | None = None,
    ) -> BaseModelOutput:
        """Run the backbone with prompts that lie anywhere, also with none of this model's tasks.

        Args:
            inputs: of the backbone.
            prompts: of the batch; they say whether it is packed.
            configs: of each sequence's task, None for the bare backbone; one for all if there is
                one.
            call: the family's `encode`, compiled; None: as it is.
        """
        inputs = as_trained(self.backbone, self._accepted, inputs, prompts.packed, configs)
        call = call or family_of(self.backbone.config.model_type).encode
        encoded = call(self.backbone, inputs, prompts, output_hidden_states)
        prompts.require_taken()
        return BaseModelOutput(encoded.last_hidden_state, encoded.hidden_states)

    def _input_prompt(
        self,
        names: Sequence[str],
        rows: Sequence[str | None] | None,
        packed: Packed | None,
    ) -> Tensor | None:
        """The one prompt of depth "input" that stands before every row, if it is that."""
        depths = {name: self.tasks[name].depth for name in names}
        if "input" not in depths.values():
            return None
        if packed is not None or len(names) > 1 or (rows is not None and None in rows):
            raise NotImplementedError(
                f"task: prompts of depth 'input' take padded batches of one task, got "
                f"{'a packed batch' if packed is not None else list(rows or names)}"
            )
        return self._fold(self._prompt(names[0])).embeddings

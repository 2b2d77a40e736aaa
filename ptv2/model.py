"""PromptModel: one frozen backbone, and a prompt and a head for each task."""

import inspect
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from .assets import Asset, read_asset, write_asset
from .attention import PromptBatch
from .config import PromptConfig, check_task_name
from .families import (
    family_of,
    geometry_of,
    layer_inputs,
    number_layers,
    project_hidden_states,
)
from .fingerprint import BackboneIdentity
from .heads import Head, build_head
from .inputs import (
    as_trained,
    behind_prompt,
    check_inputs,
    flatten_choices,
    pack_inputs,
    require_task_of_family,
    task_labels,
    text_of_length,
    without_prompt,
)
from .layout import Packed, Padded
from .outputs import MixedTaskOutput, task_output
from .pools import FoldedPrompt, pool_prompts
from .prompts import Prompt
from .task_model import TaskModel, leave_out_backbone

_WHERE = ("cache_dir", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")
"""What says where a pretrained model lies, for its configuration as for its weights."""


class UnknownTaskError(KeyError, ValueError):
    """A task that the model does not have."""

    def __str__(self) -> str:
        return str(self.args[0])


class PromptModel(nn.Module):
    """A frozen encoder with deep prompts, one for each task.

    Args:
        backbone: an encoder of a supported family, with or without a head of its own (which is
            left out). It is frozen and switched to prompt attention.

    Raises:
        NotImplementedError: the family is not supported.
        ValueError: the backbone is a decoder.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        family_of(backbone.config.model_type)
        if getattr(backbone.config, "is_decoder", False):
            raise ValueError("backbone: expected an encoder, got a config with is_decoder=True")
        self.backbone = cast(PreTrainedModel, backbone.base_model)
        self.backbone.requires_grad_(False)
        family_of(backbone.config.model_type).prepare(self.backbone)
        number_layers(self.backbone)
        self.geometry = geometry_of(self.backbone)
        self.prompts = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self.tasks: dict[str, PromptConfig] = {}
        self._accepted = frozenset(inspect.signature(self.backbone.forward).parameters)
        self.identity = BackboneIdentity(self.backbone)
        leave_out_backbone(self)

    @classmethod
    def from_pretrained(cls, name_or_path: str | PathLike[str], **kwargs: Any) -> Self:
        """Load a backbone as `transformers.AutoModel` does; kwargs go to its from_pretrained."""
        where = {name: kwargs[name] for name in _WHERE if name in kwargs}
        config = AutoConfig.from_pretrained(name_or_path, **where)
        family_of(config.model_type)
        model_class = MODEL_MAPPING[type(config)]
        if "add_pooling_layer" in inspect.signature(model_class).parameters:  # type: ignore[arg-type]
            kwargs.setdefault("add_pooling_layer", False)
        return cls(AutoModel.from_pretrained(name_or_path, **kwargs))

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return self.backbone.device

    def add_task(
        self,
        name: str,
        config: PromptConfig,
        *,
        share_prompt_with: str | None = None,
        start_from: str | PathLike[str] | None = None,
        start_from_text: Tensor | Sequence[int] | None = None,
    ) -> None:
        """Add a task with a new prompt and head.

        Args:
            share_prompt_with: a task of the model whose prompt this one has too, the very same
                parameters; only the head is new.
            start_from: a task of the model, or else the directory of a saved prompt, whose values
                the new prompt starts with. It has the same layers; unless the new one is of
                direct keys and values, also the same parametrisation and injection. Rows that it
                does not have start at random, behind closed gates if the new prompt has gates; of
                a longer one the first rows are taken.
            start_from_text: token ids of a text, which the frozen backbone reads: the new prompt,
                trained directly, starts with the keys and values that each layer has of it. A
                shorter text is repeated, of a longer one the first tokens are taken.

        Raises:
            UnknownTaskError: there is no task to share a prompt with.
            FileNotFoundError: there is no saved prompt to start from.
            ValueError: the name is taken or malformed, or the prompt does not fit the backbone or
                the prompt that it shares or starts from.
        """
        check_task_name(name)
        if name in self.tasks:
            raise ValueError(f"name: task {name!r} exists already; remove_task it first")
        require_task_of_family(family_of(self.backbone.config.model_type), config)
        head = build_head(config, self.geometry.hidden_size)
        if share_prompt_with is None:
            prompt = Prompt(config, self.geometry)
        elif start_from is None:
            prompt = self._prompt(share_prompt_with)
            prompt.require_same(config)
        else:
            raise ValueError("start_from: a shared prompt has its values already, expected None")
        if start_from_text is not None:
            if start_from is not None or share_prompt_with is not None:
                raise ValueError(
                    "start_from_text: the prompt has its values already, expected None"
                )
            text = text_of_length(self.backbone, start_from_text, config.prompt_length)
            if config.depth == "input":
                states = [self.backbone.get_input_embeddings()(text)[0]]
            else:
                states = layer_inputs(self.backbone, text)
            prompt.to(self.device).start_from_states(states, self._project)
        if start_from is not None:
            other = self._saved_or_own_prompt(start_from)
            prompt.start_from(other, self._fold_without_dropout(other))
        self._install(name, config, prompt, head)

    def _saved_or_own_prompt(self, place: str | PathLike[str]) -> Prompt:
        if place in self.tasks:
            return self._prompt(str(place))
        asset = read_asset(place)
        self.identity.require_same(asset.backbone, f"start_from: the prompt in {place}")
        return asset.build(self.geometry)[0].to(self.device)

    def _install(self, name: str, config: PromptConfig, prompt: Prompt, head: Head | None) -> None:
        self.prompts[name] = prompt.to(self.device).train(self.training)
        if head is not None:
            self.heads[name] = head.to(self.device).train(self.training)
        self.tasks[name] = config

    def remove_task(self, name: str) -> None:
        """Take a task, its prompt and its head away."""
        self._config(name)
        del self.tasks[name], self.prompts[name]
        if name in self.heads:
            del self.heads[name]

    def key_value(self, name: str) -> Tensor:
        """A task's prompt folded to keys and values, of the layers that carry it.

        Returns:
            (layers, 2, heads, prompt_length, head_dim), keys first; without prompt dropout.
        """
        return self._fold_without_dropout(self._prompt(name)).key_value

    def _fold_without_dropout(self, prompt: Prompt) -> FoldedPrompt:
        training = prompt.training
        try:
            return self._fold(prompt.eval())
        finally:
            prompt.train(training)

    def _fold(self, prompt: Prompt) -> FoldedPrompt:
        return cast(FoldedPrompt, prompt(self._project))

    def _project(self, layer: int, states: Tensor) -> Tensor:
        return project_hidden_states(self.backbone, layer, states)

    def for_task(self, name: str, backbone_dropout: bool = True) -> TaskModel:
        """One task as a module of its own, for `transformers.Trainer` or any training loop.

        It shares the backbone, the prompt and the head with this model.

        Args:
            backbone_dropout: whether the backbone's own dropout acts while the module trains.
        """
        self._config(name)
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
        output_hidden_states: bool = False,
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
                choices of the first example, then of the second.

        Raises:
            UnknownTaskError: a task that the model does not have.
            ValueError: an argument does not fit the backbone, the task or the other arguments.
        """
        arguments = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "pixel_values": pixel_values,
        }
        inputs = {name: value for name, value in arguments.items() if value is not None}
        check_inputs(self.backbone, self._accepted, inputs)
        packed = pack_inputs(self.backbone, inputs, cu_seqlens, max_seqlen)
        if isinstance(task, str):
            wanted = task_labels(self._config(task), labels, start_positions, end_positions)
            return self._forward_task(task, inputs, packed, choices, wanted, output_hidden_states)
        if start_positions is not None or end_positions is not None:
            raise ValueError("start_positions: expected one task's name in task, got a list")
        if choices is not None:
            raise ValueError("choices: expected one task's name in task, got a list")
        if task is None:
            if labels is not None:
                raise ValueError("labels: the bare backbone has no loss, expected None")
            return self._encode(inputs, packed, [], None, output_hidden_states)
        return self._forward_rows(list(task), inputs, packed, labels, output_hidden_states)

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
        return task_output(config, self._head(name), encoded, layout, labels, choices)

    def _forward_rows(
        self,
        tasks: list[str | None],
        inputs: dict[str, Tensor],
        packed: Packed | None,
        labels: Tensor | Sequence[Any] | None,
        output_hidden_states: bool,
    ) -> MixedTaskOutput:
        first = next(iter(inputs.values()))
        rows = first.shape[0] if packed is None else len(packed.cu_seqlens) - 1
        if len(tasks) != rows:
            raise ValueError(f"task: expected {rows} names, one a row, got {len(tasks)}")
        names = list(dict.fromkeys(name for name in tasks if name is not None))
        for name in names:
            self._config(name)
        encoded = self._encode(inputs, packed, names, tasks, output_hidden_states)
        heads = {name: cast(Head, self.heads[name]) for name in names if name in self.heads}
        layout = packed or Padded(inputs.get("attention_mask"))
        return MixedTaskOutput.of_rows(tasks, heads, encoded, layout, labels)

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
        inputs = as_trained(self.backbone, self._accepted, inputs, packed, configs)
        before = self._input_prompt(names, rows, packed)
        if before is not None:
            prompts = self._pool([], None, None)
            inputs = behind_prompt(self.backbone, self._accepted, inputs, before)
        else:
            prompts = self._pool(names, rows, packed)
        family = family_of(self.backbone.config.model_type)
        encoded = family.encode(self.backbone, inputs, prompts, output_hidden_states)
        prompts.require_taken()
        last, every = encoded.last_hidden_state, encoded.hidden_states
        assert last is not None
        if before is not None:
            last, every = without_prompt(last, every, len(before))
        return BaseModelOutput(last, every)

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

    def prompt_batch(self, task: str | Sequence[str | None] | None) -> PromptBatch:
        """The argument `prompts` of the backbone's forward, for a padded batch.

        Args:
            task: as in `forward`.
        """
        if isinstance(task, str) or task is None:
            return self._pool([] if task is None else [task], None, None)
        return self._pool(list(dict.fromkeys(filter(None, task))), task, None)

    def _pool(
        self, names: Sequence[str], rows: Sequence[str | None] | None, packed: Packed | None
    ) -> PromptBatch:
        # tasks that share a prompt are one to the pool
        first: dict[Prompt, str] = {}
        same = {name: first.setdefault(self._prompt(name), name) for name in names}
        return pool_prompts(
            {name: self._fold(prompt) for prompt, name in first.items()},
            self.geometry.layers,
            None if rows is None else [None if name is None else same[name] for name in rows],
            self.device,
            packed,
            family_of(self.backbone.config.model_type).shared_modules,
        )

    def _prompt(self, name: str) -> Prompt:
        self._config(name)
        return cast(Prompt, self.prompts[name])

    def _head(self, name: str) -> Head | None:
        return cast(Head, self.heads[name]) if name in self.heads else None

    def _config(self, name: str) -> PromptConfig:
        if name not in self.tasks:
            known = ", ".join(self.tasks) or "none"
            raise UnknownTaskError(f"task: {name!r} is unknown; the model's tasks are: {known}")
        return self.tasks[name]

    def save_task(self, name: str, directory: str | PathLike[str]) -> None:
        """Save a task's prompt and head; an asset that is there is replaced in one step.

        Raises:
            UnknownTaskError: there is no such task.
            ValueError: the prompt or head is not finite.
            FileExistsError: the path is a file or holds something else.
        """
        prompt, head = self._prompt(name), self._head(name)
        identity = self.identity.describe()
        folded = self._fold_without_dropout(prompt)
        asset = Asset.of_task(name, self.tasks[name], identity, folded, prompt, head)
        write_asset(directory, asset)

    def load_task(self, directory: str | PathLike[str], name: str | None = None) -> str:
        """Add a saved task; everything is checked before the model changes.

        Args:
            name: of the task in this model. None: the name it was saved under.

        Returns:
            The task's name.

        Raises:
            FileNotFoundError: there is no saved prompt.
            ValueError: it is corrupt, was trained on another backbone, or the name is taken.
        """
        asset = read_asset(directory)
        name = asset.name if name is None else name
        check_task_name(name)
        if name in self.tasks:
            raise ValueError(f"name: task {name!r} exists already; remove_task it first")
        self.identity.require_same(asset.backbone, f"directory: the prompt in {directory}")
        prompt, head = asset.build(self.geometry)
        self._install(name, prompt.config, prompt, head)
        return name

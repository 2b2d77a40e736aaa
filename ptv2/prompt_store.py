"""The prompts and heads of many tasks on one frozen backbone: added, shared, saved and loaded."""

import inspect
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

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
from .inputs import require_task_of_backbone, text_of_length
from .layout import Packed
from .modes import evaluating
from .pools import FoldedPrompt, pool_prompts
from .prompts import Prompt
from .task_model import leave_out_backbone


class UnknownTaskError(KeyError, ValueError):
    """A task that the model does not have."""

    def __str__(self) -> str:
        return str(self.args[0])


class PromptStore(nn.Module):
    """A frozen backbone with the prompts and heads of its tasks.

    Args:
        backbone: as `PromptModel` takes it.
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
        self.train(self.backbone.training)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move or cast everything; the weights may then lie where others did."""
        self.identity.forget()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

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
        require_task_of_backbone(self.backbone, config)
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
            prompt.origin = {"start_from_text": text[0].tolist()}
        if start_from is not None:
            other = self._saved_or_own_prompt(start_from)
            prompt.start_from(other, self._fold_without_dropout(other))
            own = start_from in self.tasks
            place = str(start_from) if own else str(Path(start_from).resolve())
            prompt.origin = {"start_from": place}
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
        self.task_config(name)
        del self.tasks[name], self.prompts[name]
        if name in self.heads:
            del self.heads[name]

    def origin(self, name: str) -> dict[str, Any]:
        """What `add_task` took a prompt's first values from; empty if they are random."""
        return self._prompt(name).origin

    def key_value(self, name: str) -> Tensor:
        """A task's prompt folded to keys and values, of the layers that carry it.

        Returns:
            (layers, 2, heads, prompt_length, head_dim), keys first; without prompt dropout.

        Raises:
            UnknownTaskError: there is no such task.
            ValueError: the prompt is of depth "input".
        """
        if self.task_config(name).depth == "input":
            raise ValueError(f"name: the prompt of {name!r} is before the text, in no layer")
        return self.folded(name).key_value

    def folded(self, name: str) -> FoldedPrompt:
        """A task's prompt as attention takes it, without prompt dropout."""
        return self._fold_without_dropout(self._prompt(name))

    def _fold_without_dropout(self, prompt: Prompt) -> FoldedPrompt:
        with evaluating(prompt):
            return self._fold(prompt)

    def _fold(self, prompt: Prompt) -> FoldedPrompt:
        return cast(FoldedPrompt, prompt(self._project))

    def _project(self, layer: int, states: Tensor) -> Tensor:
        return project_hidden_states(self.backbone, layer, states)

    def prompt_batch(self, task: str | Sequence[str | None] | None) -> PromptBatch:
        """The argument `prompts` of the backbone's forward, for a padded batch.

        Args:
            task: as in `forward`.
        """
        rows = None if task is None or isinstance(task, str) else list(task)
        given = [task] if isinstance(task, str) else rows or []
        names = list(dict.fromkeys(name for name in given if name is not None))
        for name in names:
            if self.task_config(name).depth == "input":
                raise ValueError(f"task: the prompt of {name!r} is in no layer, expected others")
        return self._pool(names, rows, None)

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
        self.task_config(name)
        return cast(Prompt, self.prompts[name])

    def head(self, name: str) -> Head | None:
        """A task's head; None for feature extraction."""
        return cast(Head, self.heads[name]) if name in self.heads else None

    def task_config(self, name: str) -> PromptConfig:
        """A task's configuration.

        Raises:
            UnknownTaskError: there is no such task.
        """
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
        write_asset(directory, self.asset(name))

    def asset(self, name: str) -> Asset:
        """A task as it is saved.

        Raises:
            UnknownTaskError: there is no such task.
        """
        prompt, head = self._prompt(name), self.head(name)
        identity, folded = self.identity.describe(), self._fold_without_dropout(prompt)
        return Asset.of_task(name, self.tasks[name], identity, folded, prompt, head)

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
        return self.load_asset(read_asset(directory), f"the prompt in {directory}", name)

    def load_asset(self, asset: Asset, what: str, name: str | None = None) -> str:
        """Add a task that was read; as `load_task`.

        Args:
            what: the asset, for messages.
        """
        name = asset.name if name is None else name
        check_task_name(name)
        if name in self.tasks:
            raise ValueError(f"name: task {name!r} exists already; remove_task it first")
        self.identity.require_same(asset.backbone, f"directory: {what}")
        require_task_of_backbone(self.backbone, asset.config)
        prompt, head = asset.build(self.geometry)
        self._install(name, prompt.config, prompt, head)
        return name

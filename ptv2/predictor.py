"""Answers of a model's tasks, for rows of any of them in one batch."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .model import PromptModel
from .tasks import Task, make_task
from .tasks.tokens import progress

Row = tuple[str, dict[str, Any]]
"""A task's name and the features of one example."""


class Predictor:
    """Texts in, answers out.

    Args:
        model: with the tasks to be answered.
        tokenizer: of the backbone. None: loaded from where the backbone came from.
        max_length: longest input in tokens, if less than the backbone allows.
        batch_size: rows in a forward.
    """

    def __init__(
        self,
        model: PromptModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer or AutoTokenizer.from_pretrained(
            model.backbone.config._name_or_path
        )
        longest = longest_input(model, self.tokenizer)
        self.max_length = longest if max_length is None else min(max_length, longest)
        self.batch_size = batch_size

    def task(self, name: str, **columns: str | None) -> Task:
        """How a task of the model reads data; columns are those of its class.

        Raises:
            ValueError: the model has no such task, or tasks of its kind read no text.
        """
        if name not in self.model.tasks:
            raise ValueError(
                f"task: {name!r} is unknown; the model's tasks are {list(self.model.tasks)}"
            )
        config = self.model.tasks[name]
        return make_task(
            config.task,
            self.tokenizer,
            labels=config.labels,
            max_length=self.max_length,
            **columns,
        )

    def predict(self, requests: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
        """Answer (task name, input) requests, tasks mixed in a batch as they come.

        Args:
            requests: the input is a text or a (text, text_pair), or for a token classification a
                list of words or a text, which is split at its spaces.

        Returns:
            One answer a request, in their order: "label" and "score", or "tags".
        """
        rows: list[Row | None] = [None] * len(requests)
        tasks = {name: self.task(name) for name, _ in requests}
        for name, task in tasks.items():
            places = [place for place, (other, _) in enumerate(requests) if other == name]
            features = task.prepare_inputs([requests[place][1] for place in places])
            for place, feature in zip(places, features, strict=True):
                rows[place] = (name, feature)
        return self.answer(tasks, [row for row in rows if row is not None])

    def answer(self, tasks: dict[str, Task], rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Answers to rows of features, in their order."""
        answers: list[dict[str, Any]] = [{} for _ in rows]
        for place, logits in self.logits(rows):
            name, feature = rows[place]
            answers[place] = tasks[name].decode(logits, feature)
        return answers

    def logits(self, rows: Sequence[Row]) -> Iterator[tuple[int, Tensor]]:
        """(place, logits) of every row, without padding, rows of like length in one batch."""
        lengths = [len(feature["input_ids"]) for _, feature in rows]
        order = sorted(range(len(rows)), key=lengths.__getitem__)
        starts = range(0, len(rows), self.batch_size)
        for start in progress(starts, "predicting"):
            places = order[start : start + self.batch_size]
            batch_logits = self._forward([rows[place] for place in places])
            for place, logits in zip(places, batch_logits, strict=True):
                per_token = logits.dim() > 1
                yield place, logits[: lengths[place]] if per_token else logits

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Row]) -> list[Tensor]:
        names = [name for name, _ in rows]
        inputs = self.tokenizer.pad(
            [
                {key: feature[key] for key in self.tokenizer.model_input_names if key in feature}
                for _, feature in rows
            ],
            padding_side="right",
            return_tensors="pt",
        )
        training = self.model.training
        output = self.model.eval()(**inputs.to(self.model.device), task=names)
        self.model.train(training)
        return [logits.cpu() for logits in output.logits]


def longest_input(model: PromptModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the backbone has positions for and the tokenizer gives."""
    positions = int(model.backbone.config.max_position_embeddings)
    table = getattr(getattr(model.backbone, "embeddings", None), "position_embeddings", None)
    padding_idx = getattr(table, "padding_idx", None)
    if padding_idx is not None:
        positions -= padding_idx + 1  # RoBERTa and its kin count from there
    return min(positions, tokenizer.model_max_length)

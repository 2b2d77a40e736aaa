"""Answers of a model's tasks, for rows of any of them in one batch."""

import sys
from collections.abc import Collection, Sequence
from itertools import groupby, islice
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from .config import Pooling
from .inputs import packable
from .layout import Padded
from .model import PromptModel
from .modes import evaluating
from .readers import Readers
from .serving import Engine, Served
from .tasks import Task
from .tasks.collate import pad
from .tasks.task import Answer, Feature
from .tasks.tokens import progress

Row = tuple[str, Feature]
"""A task's name and a feature, or the model inputs of one sequence."""


class Predictor:
    """Texts in, answers out.

    Args:
        model: with the tasks to be answered.
        tokenizer: of the backbone; for images its image processor. None: loaded from where the
            backbone came from.
        max_length: longest input in tokens, if less than the backbone allows.
        batch_size: rows in a forward.

    Raises:
        ValueError: the tokenizer has no words, or more tokens than the backbone, or a batch has
            no row.
    """

    def __init__(
        self,
        model: PromptModel,
        tokenizer: Any = None,
        max_length: int | None = None,
        batch_size: int = 32,
    ) -> None:
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size: expected an int of at least 1, got {batch_size!r}")
        self.model = model
        self._readers = Readers(model, tokenizer, max_length)
        self.tokenizer = self._readers.tokenizer
        self.max_length = self.length_beside(0)
        self.batch_size = batch_size

    def length_beside(self, positions: int) -> int:
        """The longest input in tokens, for a prompt that takes so many positions."""
        return self._readers.length_beside(positions)

    def task(self, name: str, **options: Any) -> Task:
        """How a task of the model reads data; options are fields of its class.

        Raises:
            ValueError: the model has no such task, or tasks of its kind read no text.
        """
        if name not in self.model.tasks:
            raise ValueError(
                f"task: {name!r} is unknown; the model's tasks are {list(self.model.tasks)}"
            )
        return self._readers.reader(self.model.tasks[name], **options)

    def predict(self, requests: Sequence[tuple[str, Any]]) -> list[Answer]:
        """Answer (task name, input) requests, tasks mixed in a batch as they come.

        Args:
            requests: the input is what `prepare_inputs` of the kind of task takes: a text or a
                (text, text_pair); for a token classification a list of words, or a text, which
                is split at its spaces; for question answering a (question, context); for a
                multiple choice a (question, choices); for an image its path.

        Returns:
            One answer a request, in their order: of a class "label" and "score"; of any number of
            classes "labels", those above 0.5, and "scores"; of a number "value"; of tags "tags",
            one a word; of a question "answer", "score", "start" and "end" in characters; of
            choices "choice", "text" and "score"; of a vector "embedding".
        """
        tasks = {name: self.task(name) for name, _ in requests}
        features: list[list[Feature]] = [[] for _ in requests]
        for name, task in tasks.items():
            places = [place for place, (other, _) in enumerate(requests) if other == name]
            prepared = task.prepare_inputs([requests[place][1] for place in places])
            for feature in prepared:
                place = places[feature["example"]]
                features[place].append(feature | {"example": place})
        names = [name for name, _ in requests]
        return self.answer(tasks, [(names[i], f) for i, rows in enumerate(features) for f in rows])

    def answer(self, tasks: dict[str, Task], features: Sequence[Row]) -> list[Answer]:
        """One answer an example, in their order.

        Args:
            tasks: how the answers of each task are decoded.
            features: of all examples, those of an example together.
        """
        sequences = [
            _Sequence(tasks[name], name, feature, place, length)
            for name, feature in features
            for place, length in enumerate(tasks[name].lengths(feature))
        ]
        logits = iter(self._logits(sequences))
        answers = []
        for (name, _), group in groupby(features, key=lambda row: (row[0], row[1]["example"])):
            rows = [feature for _, feature in group]
            count = sum(len(tasks[name].lengths(feature)) for feature in rows)
            answers.append(tasks[name].decode(list(islice(logits, count)), rows))
        return answers

    def _logits(self, sequences: Sequence["_Sequence"]) -> list[Tensor]:
        """Logits of every sequence, without padding; sequences of like length share a batch."""
        found: list[Tensor] = [torch.empty(0)] * len(sequences)
        with evaluating(self.model):
            served = self._serve({sequence.name for sequence in sequences})
            engine = Engine(self.model, budget=sys.maxsize) if served else None
            for places in progress(self._batches(sequences, served), "predicting"):
                batch = [sequences[place] for place in places]
                if engine is not None and batch[0].name in served:
                    tasks = [served[sequence.name] for sequence in batch]
                    logits = engine.run(tasks, [sequence.inputs for sequence in batch])
                else:
                    logits = self._run_padded(batch)
                for place, own in zip(places, logits, strict=True):
                    found[place] = own
        return found

    def _serve(self, names: Collection[str]) -> dict[str, Served]:
        """The tasks, as they are now, that packed batches can answer."""
        if not packable(self.model.backbone):
            return {}
        return {
            name: Served.of_task(self.model, name)
            for name in names
            if self.model.tasks[name].depth == "layers"
        }

    def _batches(
        self, sequences: Sequence["_Sequence"], served: Collection[str]
    ) -> list[list[int]]:
        """Places of sequences that are run together: packed ones apart from padded ones, and a
        task whose prompt is before the text alone."""
        groups: dict[tuple[bool, str | None], list[int]] = {}
        for place in sorted(range(len(sequences)), key=lambda place: sequences[place].length):
            name = sequences[place].name
            alone = self.model.tasks[name].depth == "input"
            groups.setdefault((name in served, name if alone else None), []).append(place)
        return [
            places[start : start + self.batch_size]
            for places in groups.values()
            for start in range(0, len(places), self.batch_size)
        ]

    @torch.inference_mode()
    def _run_padded(self, batch: Sequence["_Sequence"]) -> list[Tensor]:
        names = [sequence.name for sequence in batch]
        padded = pad(batch[0].task, [sequence.inputs for sequence in batch])
        inputs = {name: x.to(self.model.device) for name, x in padded.items()}
        output = self.model(**inputs, task=names)
        if None in output.logits:  # feature extraction
            layout, states = Padded(inputs["attention_mask"]), output.last_hidden_state.float()
            pooled = {how: layout.pool(states, how) for how in get_args(Pooling)}
        found = []
        for row, (sequence, logits) in enumerate(zip(batch, output.logits, strict=True)):
            if logits is None:
                logits = pooled[self.model.tasks[sequence.name].pooling][row]
            found.append((logits[: sequence.length] if logits.dim() > 1 else logits).cpu())
        return found


class _Sequence(NamedTuple):
    """One sequence of a feature; its inputs are made when its batch is."""

    task: Task
    name: str
    feature: Feature
    place: int
    length: int

    @property
    def inputs(self) -> Feature:
        return self.task.sequences(self.feature)[self.place]

"""Data, settings and readings of small sweeps."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from torch import Tensor

from ptv2 import PromptModel
from ptv2.sweep.learner import Learner
from ptv2.sweep.loop import Loop
from ptv2.train_config import TrainConfig
from tests.encoder import examples

TRAIN = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=8, backbone_dropout=False)


KINDS = {
    "text": ("sequence-classification", {}),
    "pair": ("sequence-classification", {"text_pair_column": "text_pair", "label_column": "same"}),
    "tags": ("token-classification", {}),
    "answer": ("question-answering", {"stride": 2}),
    "choose": ("multiple-choice", {"label_column": "right"}),
}


def data_of(count: int, seed: int) -> Dataset:
    rows = examples(count, seed)
    for row in rows:
        city = row["tokens"][4]
        right = row["label"] == "good"
        row |= {
            "question": f"a {row['text_pair']} film",
            "context": row["text"],
            "answers": {"text": [city], "answer_start": [row["text"].index(city)]},
            "choices": [f"{row['text']} awful", f"{row['text']} great"],
            "right": int(right),
        }
    return Dataset.from_list(rows)


DATA = data_of(40, seed=0), data_of(20, seed=1)


SMALL = data_of(17, seed=2), DATA[1]


def new(encoder: Path) -> PromptModel:
    return PromptModel.from_pretrained(encoder)


def values(model: PromptModel, name: str) -> dict[str, Tensor]:
    return model.for_task(name).state_dict()


def metrics_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "metrics.json").read_text())


def stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Let the sweep die before a step, as a kill would."""
    taken = itertools.count()
    take = Loop._step

    def dying(self: Loop, learners: Sequence[Learner]) -> None:
        if next(taken) == step:
            raise KeyboardInterrupt
        take(self, learners)

    patch.setattr(Loop, "_step", dying)

"""An encoder, and runs on it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from ptv2 import PromptConfig
from ptv2.sweep import Run
from ptv2.tasks import make_task
from tests.encoder import save_encoder
from tests.sweep.runs import DATA, KINDS, TRAIN


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def tasks(encoder: Path) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    return {
        name: make_task(kind, tokenizer, max_length=20, **columns).fit_labels(*DATA)
        for name, (kind, columns) in KINDS.items()
    }


@pytest.fixture
def make(tasks: dict[str, Any]) -> Callable[..., Run]:
    """``make(name, kind, data, **settings)``: a run; settings of Run, prompt and training."""

    def run(
        name: str,
        kind: str = "text",
        data: tuple[Dataset, Dataset] = DATA,
        shared: str | None = None,
        start_from: Path | None = None,
        **settings: Any,
    ) -> Run:
        task = tasks[kind]
        own = {key: settings.pop(key) for key in list(settings) if hasattr(PromptConfig, key)}
        prompt = {"prompt_length": 4, "head_dropout": 0.0, "labels": task.labels, **own}
        prompt = PromptConfig(task=task.kind, **prompt)
        return Run(name, task, data, prompt, replace(TRAIN, **settings), shared, start_from)

    return run

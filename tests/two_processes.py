"""What two processes do with one training; started by torchrun, prints JSON from the first."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import Trainer, set_seed

from ptv2 import PromptConfig, PromptModel
from ptv2.predictor import Predictor
from ptv2.processes import is_main
from ptv2.tasks import make_task
from ptv2.train_config import TrainConfig
from ptv2.training import train
from tests.encoder import examples
from tests.training.runs import stop_at

CONFIG = TrainConfig(learning_rate=3e-2, epochs=3, batch_size=8, backbone_dropout=False)
SMALL = Dataset.from_list(examples(16)), Dataset.from_list(examples(11, seed=1))
LARGE = Dataset.from_list(examples(37)), SMALL[1]  # five batches: an odd number


def run(
    encoder: Path, output: Path, data: Any, config: TrainConfig, **options: Any
) -> dict[str, Any]:
    """Train; the digest of the prompt that each process ends with, and the metrics."""
    model = PromptModel.from_pretrained(encoder)
    task = make_task("sequence-classification", Predictor(model).tokenizer).fit_labels(*data)
    set_seed(0)
    prompt = PromptConfig(task.kind, task.labels, prompt_length=4, head_dropout=0.0)
    model.add_task("t", prompt)
    metrics = train(model, "t", task, data, output, config, **options)
    weights = b"".join(x.numpy().tobytes() for x in model.state_dict().values())
    return {
        "history": metrics["history"],
        "steps": metrics["steps"],
        "digests": gather_object([hashlib.sha256(weights).hexdigest()]),
    }


def main() -> None:
    encoder, root = Path(sys.argv[1]), Path(sys.argv[2])
    found = {"small": run(encoder, root / "small", SMALL, CONFIG)}
    found["whole"] = run(encoder, root / "whole", LARGE, replace(CONFIG, save_steps=2))
    with pytest.MonkeyPatch.context() as patch:
        stop_at(5, patch)  # within the second epoch of three steps
        with pytest.raises(KeyboardInterrupt):
            run(encoder, root / "resumed", LARGE, replace(CONFIG, save_steps=2))
    assert Trainer.training_step.__name__ == "training_step"
    found["resumed"] = run(
        encoder, root / "resumed", LARGE, replace(CONFIG, save_steps=2), resume=True
    )
    try:
        run(encoder, root / "small", SMALL, CONFIG)
    except FileExistsError as error:
        found["refused"] = gather_object([str(error)])
    try:
        run(encoder, root / f"disk{int(is_main())}" / "run", SMALL, CONFIG)
    except ValueError as error:
        found["apart"] = gather_object([str(error)])
    if is_main():
        print(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

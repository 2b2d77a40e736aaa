"""Prompts that start from another task's prompt or from a text, beside random ones.

    python benchmarks/bench_starts.py --data DATA --output benchmarks/results/starts.json

TREC starts from a prompt for SNIPS' intents, WNUT-17 from one for CrossNER's entities, each on a
part of its data, so that the start matters. Scores are those of dev after every epoch, for each
start and seed: random; another task's prompt of the same length; one of half the length; a text,
the first training texts; and the first two behind gates that are closed at first. A finished run
is written at once, and the same command goes on. `--plot` draws the curves.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from bench_quality import machine
from datasets import Dataset, concatenate_datasets
from transformers import AutoTokenizer, set_seed

from ptv2 import PromptConfig, PromptModel
from ptv2.demo import encoder_directory
from ptv2.storage import write_json
from ptv2.tasks import Task, load_data, make_task
from ptv2.train_config import TrainConfig
from ptv2.training import fit

SOURCE = "source"
"""The name of the task that is started from."""


@dataclass(frozen=True)
class Pair:
    """A data set, the one whose prompt it starts from, and how long both train."""

    kind: str
    folder: str
    source_folders: tuple[str, ...]
    prompt_length: int
    examples: int
    epochs: int


PAIRS = {
    "trec": Pair("sequence-classification", "trec", ("snips",), 32, 1000, 6),
    "wnut17": Pair(
        "token-classification", "wnut17", ("crossner_ai", "crossner_music"), 64, 1500, 6
    ),
}
SOURCE_EXAMPLES, SOURCE_EPOCHS = 4000, 6
STARTS = ("random", "other task", "half as long", "text", "gates", "gates, other task")


def read(data: Path, folder: str, examples: int) -> tuple[Dataset, Dataset]:
    """Training and dev examples, so many of the first at most."""
    train, dev = (load_data(data / folder / f"{part}.jsonl") for part in ("train", "dev"))
    return train.shuffle(seed=0).select(range(min(examples, len(train)))), dev


def read_source(data: Path, folders: tuple[str, ...]) -> tuple[Dataset, Dataset]:
    """All examples of some data sets together, a tenth of them held out."""
    places = [data / folder / f"{part}.jsonl" for folder in folders for part in ("train", "dev")]
    sets = [load_data(place) for place in places]
    names = set.intersection(*(set(x.column_names) for x in sets))
    joined = concatenate_datasets([x.select_columns(sorted(names)) for x in sets])
    joined = joined.shuffle(seed=0).select(range(min(SOURCE_EXAMPLES, len(joined))))
    parts = joined.train_test_split(test_size=0.1, seed=0)
    return parts["train"], parts["test"]


def train_task(
    model: PromptModel, name: str, task: Task, data: tuple[Dataset, Dataset], config: TrainConfig
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        features = task.prepare(data[0]), task.prepare(data[1])
        module = model.for_task(name)
        return fit(module, task, features, task.references(data[1]), Path(folder), config)


def source_prompts(data: Path, pair: Pair, saved: Path) -> dict[int, Path]:
    """Train the other task's prompt at both lengths, unless that is done: length -> folder."""
    tokenizer = AutoTokenizer.from_pretrained(encoder_directory())
    parts = read_source(data, pair.source_folders)
    task = make_task(pair.kind, tokenizer).fit_labels(*parts)
    found = {}
    for length in (pair.prompt_length, pair.prompt_length // 2):
        found[length] = saved / f"{pair.folder}-{length}"
        if found[length].is_dir():
            continue
        set_seed(0)
        model = PromptModel.from_pretrained(encoder_directory())
        model.add_task(SOURCE, PromptConfig(pair.kind, task.labels, prompt_length=length))
        config = TrainConfig(epochs=SOURCE_EPOCHS, packing=True, precision="bf16")
        best = train_task(model, SOURCE, task, parts, config)["best"]
        print(f"{pair.source_folders}, length {length}: {best}", flush=True)
        model.save_task(SOURCE, found[length])
    return found


def text_of(data: Dataset) -> str:
    """The first training texts, one after another."""
    column = "text" if "text" in data.column_names else "tokens"
    rows = data[column][:200]
    return " ".join(x if isinstance(x, str) else " ".join(x) for x in rows)


def run(data: Path, name: str, start: str, seed: int, saved: Path) -> dict[str, Any]:
    """Train once from a start, and return the scores of every epoch."""
    pair = PAIRS[name]
    sources = source_prompts(data, pair, saved)
    tokenizer = AutoTokenizer.from_pretrained(encoder_directory())
    parts = read(data, pair.folder, pair.examples)
    task = make_task(pair.kind, tokenizer).fit_labels(*parts)
    config = PromptConfig(pair.kind, task.labels, prompt_length=pair.prompt_length)
    set_seed(seed)
    model = PromptModel.from_pretrained(encoder_directory())
    given: dict[str, Any] = {
        "random": {},
        "other task": {"start_from": sources[pair.prompt_length]},
        "half as long": {"start_from": sources[pair.prompt_length // 2]},
        "text": {"start_from_text": tokenizer(text_of(parts[0]), verbose=False)["input_ids"]},
        "gates": {},
        "gates, other task": {"start_from": sources[pair.prompt_length]},
    }[start]
    model.add_task("task", replace(config, gate="gates" in start), **given)
    settings = TrainConfig(epochs=pair.epochs, packing=True, precision="bf16", seed=seed)
    found = train_task(model, "task", task, parts, settings)
    return {
        "task": name,
        "start": start,
        "seed": seed,
        "metric": task.best_metric,
        "history": found["history"],
        "environment": machine(),
    }


def curves(runs: list[dict[str, Any]], task: str) -> dict[str, list[float]]:
    """The mean score of each start after every epoch."""
    found = {}
    for start in STARTS:
        own = [
            [epoch[run["metric"]] for epoch in run["history"]]
            for run in runs
            if (run["task"], run["start"]) == (task, start)
        ]
        if own:
            found[start] = [mean(scores) for scores in zip(*own, strict=True)]
    return found


def table(runs: list[dict[str, Any]]) -> str:
    lines = []
    for task in dict.fromkeys(run["task"] for run in runs):
        metric = next(run["metric"] for run in runs if run["task"] == task)
        lines.append(f"{task}, {metric} on dev after each epoch, mean of the seeds")
        for start, scores in curves(runs, task).items():
            lines.append(f"  {start:<20}" + "".join(f"{score:8.4f}" for score in scores))
    return "\n".join(lines)


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(run["task"] for run in runs))
    figure, axes = pyplot.subplots(
        1, len(tasks), figsize=(5 * len(tasks), 4), layout="constrained", squeeze=False
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        for start, scores in curves(runs, task).items():
            axis.plot(range(1, len(scores) + 1), scores, marker="o", markersize=3, label=start)
        axis.set_title(task)
        axis.set_xlabel("epoch")
        axis.set_ylabel(next(run["metric"] for run in runs if run["task"] == task))
        axis.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--saved", type=Path, help="keeps the prompts that are started from")
    parser.add_argument("--plot", type=Path, help="draw what --output has, as a .png or .svg")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs = json.loads(args.output.read_text()) if args.output.exists() else []
    if args.plot:
        return plot(runs, args.plot)
    with tempfile.TemporaryDirectory() as folder:
        saved = args.saved or Path(folder)
        for seed in args.seeds:
            for name in args.tasks:
                for start in args.starts:
                    if (name, start, seed) not in {
                        (r["task"], r["start"], r["seed"]) for r in runs
                    }:
                        print(f"{name}, {start}, seed {seed}", flush=True)
                        runs.append(run(args.data, name, start, seed, saved))
                        write_json(args.output, runs)
    print(table(runs))


if __name__ == "__main__":
    main()

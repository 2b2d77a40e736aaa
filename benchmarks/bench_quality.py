"""Prompts beside full fine-tuning of the same encoder: same data, features, head and Trainer.

    python benchmarks/bench_quality.py --data DATA --output benchmarks/results/quality.json

`DATA` has a folder for each data set, with `train.jsonl` and `dev.jsonl`; scores are those of the
best epoch on dev, for both methods. A finished run is written at once; the same command goes on
with the runs that are missing.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, set_seed
from transformers.modeling_outputs import SequenceClassifierOutput

from ptv2 import PromptConfig, PromptModel
from ptv2.demo import encoder_directory
from ptv2.heads import Head
from ptv2.layout import Padded
from ptv2.tasks import Task, load_data, make_task
from ptv2.train_config import TrainConfig
from ptv2.training import environment, fit, write_json

Method = Callable[[Task, PromptConfig], nn.Module]


@dataclass(frozen=True)
class Problem:
    """A data set's folder, the kind of task, and how long the training and the prompt are."""

    folder: str
    kind: str
    epochs: dict[str, int]
    prompt_length: int = PromptConfig.prompt_length


PROBLEMS = {
    "sst2": Problem("sst2", "sequence-classification", {"prompt": 8, "fine-tuning": 3}),
    "trec": Problem("trec", "sequence-classification", {"prompt": 8, "fine-tuning": 3}),
    "snips-intent": Problem("snips", "sequence-classification", {"prompt": 4, "fine-tuning": 2}),
    "snips-slots": Problem("snips", "token-classification", {"prompt": 12, "fine-tuning": 3}, 128),
}


class FineTuned(nn.Module):
    """The stock encoder, all of it trained, under the head that a prompt has."""

    def __init__(self, backbone: PreTrainedModel, config: PromptConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = Head(config, backbone.config.hidden_size)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        encoded = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )
        layout = Padded(attention_mask)
        logits = self.head(encoded.last_hidden_state, layout)
        loss = None if labels is None else self.head.loss(logits, labels, layout)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def prompted(task: Task, config: PromptConfig) -> nn.Module:
    model = PromptModel.from_pretrained(encoder_directory())
    model.add_task("task", config)
    return model.for_task("task")


def fine_tuned(task: Task, config: PromptConfig) -> nn.Module:
    backbone = AutoModel.from_pretrained(
        encoder_directory(), add_pooling_layer=False, attn_implementation="sdpa"
    )
    return FineTuned(backbone, config)


METHODS: dict[str, tuple[Method, TrainConfig]] = {
    "prompt": (prompted, TrainConfig()),
    "fine-tuning": (
        fine_tuned,
        TrainConfig(learning_rate=1e-4, head_learning_rate=None, weight_decay=0.01),
    ),
}


def run(name: str, method: str, seed: int, data: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Train once and return the scores and what they depend on."""
    problem = PROBLEMS[name]
    build, config = METHODS[method]
    config = replace(config, epochs=problem.epochs[method], seed=seed)
    config = replace(config, **{k: v for k, v in changes.items() if hasattr(config, k)})
    parts = [load_data(data / problem.folder / f"{part}.jsonl") for part in ("train", "dev")]
    tokenizer = AutoTokenizer.from_pretrained(encoder_directory())
    task = make_task(problem.kind, tokenizer).fit_labels(*parts)
    prompt = PromptConfig.from_dict(
        {"task": problem.kind, "labels": task.labels, "prompt_length": problem.prompt_length}
        | {k: v for k, v in changes.items() if not hasattr(config, k)}
    )
    set_seed(seed)
    module = build(task, prompt)
    features = task.prepare(parts[0]), task.prepare(parts[1])
    references = task.references(parts[1])
    with tempfile.TemporaryDirectory() as folder:
        found = fit(module, task, features, references, Path(folder), config)
    return {
        "task": name,
        "method": method,
        "seed": seed,
        "metric": task.best_metric,
        "score": found["best"][task.best_metric],
        "trained_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "train": asdict(config),
        "prompt": prompt.to_dict() if method == "prompt" else None,
        "environment": machine(),
        **found,
    }


def machine() -> dict[str, Any]:
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    return environment() | {
        "commit": commit.stdout.strip() + ("+changes" if changed.stdout else ""),
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def table(runs: list[dict[str, Any]]) -> str:
    """A line a task: mean and standard deviation of each method over its seeds."""
    lines = [f"{'task':<14}{'score':<10}" + "".join(f"{method:>24}" for method in METHODS)]
    for name in dict.fromkeys(run["task"] for run in runs):
        cells, metric = [], ""
        for method in METHODS:
            found = [r for r in runs if (r["task"], r["method"]) == (name, method)]
            scores = [r["score"] for r in found]
            metric = found[0]["metric"] if found else metric
            spread = f" ± {stdev(scores):.4f}" if len(scores) > 1 else ""
            cells.append(f"{mean(scores):.4f}{spread} ({len(scores)})" if scores else "-")
        lines.append(f"{name:<14}{metric:<10}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", type=json.loads, default={}, help='settings, {"epochs": 1}')
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    runs = json.loads(args.output.read_text()) if args.output.exists() else []
    done = {(r["task"], r["method"], r["seed"]): r for r in runs}
    wanted = [(t, m, seed) for seed in args.seeds for t in args.tasks for m in args.methods]
    for key in done.keys() & set(wanted):
        stored = (done[key]["prompt"] or {}) | done[key]["train"]
        for name, value in args.set.items():
            if stored.get(name, value) != value:
                parser.error(f"--set: {args.output} has {key} with {name} = {stored[name]!r}")
    for name, method, seed in wanted:
        if (name, method, seed) in done:
            continue
        print(f"{name}, {method}, seed {seed}", flush=True)
        runs.append(run(name, method, seed, args.data, args.set))
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, runs)
        print(table(runs), flush=True)
    print(table(runs))


if __name__ == "__main__":
    main()

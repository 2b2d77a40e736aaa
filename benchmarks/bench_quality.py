"""Prompts beside full fine-tuning and PEFT's prefix tuning of the same encoder.

    python benchmarks/bench_quality.py --data DATA --output benchmarks/results/quality.json

Same data, features and Trainer; `PROBLEMS` has the settings, and `--set` changes them. `DATA` has
a folder for each data set, with `train.jsonl` and `dev.jsonl`; scores are those of the best epoch
on dev, for all methods. A finished run is written at once; the same command goes on with the runs
that are missing. PEFT (`pip install peft`) gets its own heads, as its users have them (for classes
BERT's pooler, frozen, under a linear layer), and as many epochs as the prompt. With `--search` the
prompt and PEFT get the best learning rate and length of the same small search, on seed 0 and a
part of the data, which the results record. What PEFT cannot do is recorded too.
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from quality_models import CLASSES, METHODS, TAGS
from transformers import AutoTokenizer, set_seed

from ptv2 import PromptConfig
from ptv2.demo import encoder_directory
from ptv2.run_directory import environment
from ptv2.storage import write_json
from ptv2.tasks import load_data, make_task
from ptv2.train_config import TrainConfig
from ptv2.training import fit

BF16: dict[str, Any] = {"precision": "bf16"}
PACKED: dict[str, Any] = BF16 | {"packing": True}


@dataclass(frozen=True)
class Problem:
    """A data set's folder, the kind of task, and how each method is trained on it."""

    folder: str
    kind: str
    epochs: dict[str, int]
    prompt_length: int = PromptConfig.prompt_length
    settings: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"prompt": BF16, "peft": BF16}
    )


BY_BF16 = {"prompt": PACKED, "fine-tuning": BF16, "peft": BF16}
"""For sets that take long on a CPU: autocast for all methods, and packed prompts."""
PROBLEMS = {
    "sst2": Problem("sst2", CLASSES, {"prompt": 8, "fine-tuning": 3}),
    "trec": Problem("trec", CLASSES, {"prompt": 8, "fine-tuning": 3}),
    "banking77": Problem("banking77", CLASSES, {"prompt": 10, "fine-tuning": 5}, settings=BY_BF16),
    "snips-intent": Problem("snips", CLASSES, {"prompt": 4, "fine-tuning": 2}),
    "snips-slots": Problem("snips", TAGS, {"prompt": 12, "fine-tuning": 3}, prompt_length=128),
    "wnut17": Problem(
        "wnut17",
        TAGS,
        {"prompt": 12, "fine-tuning": 4},
        prompt_length=64,
        settings=BY_BF16 | {"prompt": PACKED | {"learning_rate": 3e-2}},  # as --search finds
    ),
    "squadshifts": Problem(
        "squadshifts_wiki",
        "question-answering",
        {"prompt": 6, "fine-tuning": 3},
        prompt_length=64,
        settings=BY_BF16,
    ),
    "codah": Problem(
        "codah", "multiple-choice", {"prompt": 8, "fine-tuning": 4}, settings=BY_BF16
    ),
}
SEARCH = {"learning_rate": (3e-3, 1e-2, 3e-2), "prompt_length": (16, 64)}
"""What is tried for a prompt, ours or PEFT's."""
OURS = {"packing", "backbone_dropout", "checkpointing", "compile"}
"""What only the prompt's training heeds."""
SEARCH_EXAMPLES, SEARCH_EPOCHS = 2000, 4
MAX_LENGTH = 384
"""Of the windows of question answering, as usual; nothing else is that long."""


def search(
    name: str, method: str, data: Path, changes: dict[str, Any], examples: int | None
) -> list[dict[str, Any]]:
    """A method's scores with every setting of the search, on seed 0 and a part of the data."""
    found = []
    examples = min(SEARCH_EXAMPLES, examples or SEARCH_EXAMPLES)
    for values in itertools.product(*SEARCH.values()):
        setting = dict(zip(SEARCH, values, strict=True))
        wanted = {"epochs": SEARCH_EPOCHS} | changes | setting
        result = run(name, method, 0, data, wanted, examples)
        found.append({**setting, "score": result["score"]})
        print(name, method, "search", found[-1], flush=True)
    return found


def run(
    name: str,
    method: str,
    seed: int,
    data: Path,
    changes: dict[str, Any],
    examples: int | None = None,
) -> dict[str, Any]:
    """Train once and return the scores and what they depend on.

    Args:
        examples: of each part of the data at most, drawn at random; None: all.
    """
    problem = PROBLEMS[name]
    build, config = METHODS[method]
    changes = problem.settings.get(method, {}) | changes
    epochs = problem.epochs.get(method, problem.epochs["prompt"])
    config = replace(config, epochs=epochs, seed=seed)
    config = replace(config, **{k: v for k, v in changes.items() if hasattr(config, k)})
    parts = [load_data(data / problem.folder / f"{part}.jsonl") for part in ("train", "dev")]
    if examples is not None:
        parts = [x.shuffle(seed=0).select(range(min(examples, len(x)))) for x in parts]
    tokenizer = AutoTokenizer.from_pretrained(encoder_directory())
    task = make_task(problem.kind, tokenizer, max_length=MAX_LENGTH).fit_labels(*parts)
    prompt = PromptConfig.from_dict(
        {"task": problem.kind, "labels": task.labels, "prompt_length": problem.prompt_length}
        | {k: v for k, v in changes.items() if not hasattr(config, k)}
    )
    set_seed(seed)
    module = build(task, prompt, config)
    features = task.prepare(parts[0]), task.prepare(parts[1])
    references = task.references(parts[1])
    with tempfile.TemporaryDirectory() as folder:
        found = fit(module, task, features, references, Path(folder), config)
    return {
        "task": name,
        "method": method,
        "seed": seed,
        "examples": examples,
        "metric": task.best_metric,
        "score": found["best"][task.best_metric],
        "trained_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "train": asdict(config),
        "prompt": prompt.to_dict() if method != "fine-tuning" else None,
        "environment": machine(),
        **found,
    }


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """A bar for the mean score of each method on each task, with a dot for every seed."""
    try:
        from matplotlib import pyplot
    except ImportError:
        raise SystemExit("--plot: needs matplotlib; pip install matplotlib") from None
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    figure, axes = pyplot.subplots(figsize=(1.6 * len(tasks) + 2, 4), layout="constrained")
    for place, method in enumerate(METHODS):
        scores = [
            [r["score"] for r in runs if (r["task"], r["method"]) == (task, method)]
            for task in tasks
        ]
        at = [i + 0.27 * (place - 1) for i in range(len(tasks))]
        axes.bar(at, [mean(x) if x else 0 for x in scores], 0.25, label=method, alpha=0.7)
        for x, found in zip(at, scores, strict=True):
            axes.plot([x] * len(found), found, ".k", markersize=4)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_ylabel("score of the best epoch on dev")
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=150)


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
            nothing = "refused" if any("refused" in r for r in found) else "-"
            found = [r for r in found if "score" in r]
            scores = [r["score"] for r in found]
            metric = found[0]["metric"] if found else metric
            spread = f" ± {stdev(scores):.4f}" if len(scores) > 1 else ""
            cells.append(f"{mean(scores):.4f}{spread} ({len(scores)})" if scores else nothing)
        lines.append(f"{name:<14}{metric:<10}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--search", action="store_true", help="look for a prompt's settings first")
    parser.add_argument("--examples", type=int, help="of each part of the data, to try")
    parser.add_argument("--plot", type=Path, help="draw what --output has, as a .png or .svg")
    parser.add_argument("--set", type=json.loads, default={}, help='settings, {"epochs": 1}')
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    if args.plot:
        if not args.output.is_file():
            parser.error(f"--plot: there are no results in {args.output}")
        runs = json.loads(args.output.read_text())
        return plot([r for r in runs if "score" in r], args.plot)
    runs = json.loads(args.output.read_text()) if args.output.exists() else []
    done = {(r["task"], r["method"], r["seed"]): r for r in runs}
    wanted = [(t, m, seed) for seed in args.seeds for t in args.tasks for m in args.methods]
    if fault := misfit(args, [done[key] for key in wanted if key in done]):
        parser.error(fault)
    for name, method, seed in wanted:
        if (name, method, seed) in done:
            continue
        print(f"{name}, {method}, seed {seed}", flush=True)
        try:
            runs.append(one(name, method, seed, args, runs))
        except NotImplementedError as error:
            runs.append({"task": name, "method": method, "seed": seed, "refused": str(error)})
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, runs)
        print(table(runs), flush=True)
    print(table(runs))


def misfit(args: argparse.Namespace, done: list[dict[str, Any]]) -> str | None:
    """Why the options cannot be had, by the methods or beside the runs that are done."""
    if set(args.methods) != {"prompt"}:
        for name in OURS & args.set.keys():
            if args.set[name] != getattr(TrainConfig, name):
                return f"--set: the other methods have no {name}, expected --methods prompt"
    if "peft" in args.methods:
        try:
            import peft  # noqa: F401
        except ImportError as error:
            return f"--methods: {error}; pip install peft, or name the methods without it"
    if args.search and (settings := SEARCH.keys() & args.set.keys()):
        return f"--set: --search would overwrite {', '.join(sorted(settings))}"
    for run in done:
        if "refused" in run:
            continue
        stored = (run["prompt"] or {}) | run["train"] | {"examples": run.get("examples")}
        settings = PROBLEMS[run["task"]].settings.get(run["method"], {})
        settings = {k: v for k, v in settings.items() if not (args.search and k in SEARCH)}
        wanted = settings | args.set | {"examples": args.examples}
        if run["method"] != "fine-tuning":
            stored["search"], wanted["search"] = "search" in run, args.search
        for name, value in wanted.items():
            if stored.get(name, value) != value:
                key = f"{run['task']}, {run['method']}, seed {run['seed']}"
                return f"--output: has {key} with {name} {stored[name]!r}, expected {value!r}"
    return None


def one(
    name: str, method: str, seed: int, args: argparse.Namespace, runs: list[dict[str, Any]]
) -> dict[str, Any]:
    """A run; of a prompt, with the best settings of a search, which all seeds share."""
    changes, searched = args.set, None
    if method != "fine-tuning" and args.search:
        same = [r for r in runs if (r["task"], r["method"]) == (name, method)]
        before = [r["search"] for r in same if r.get("search")]
        searched = before[0] if before else None
        searched = searched or search(name, method, args.data, args.set, args.examples)
        best = max(searched, key=lambda found: found["score"])
        changes = changes | {setting: best[setting] for setting in SEARCH}
    found = run(name, method, seed, args.data, changes, args.examples)
    return found | ({"search": searched} if searched else {})


if __name__ == "__main__":
    main()

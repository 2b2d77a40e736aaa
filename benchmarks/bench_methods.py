"""Ways to adapt an encoder, side by side: quality, parameters, size, training, serving.

    benchmarks/environments.sh build/rivals
    python benchmarks/bench_methods.py --output benchmarks/results/methods.json \\
        --rivals build/rivals [--data DATA --task trec]

Every method is a process of its own and gets the same token ids and the same training (AdamW,
warm-up, linear decay, batches of 32 of like length), with the head that it has by default. First
comes a search for its learning rate, one of three, on seed 0 and a part of the data; then a run
for each seed, whose score is the best epoch's on dev. Without `--data` the data are the intents of
SNIPS that the package ships.

Then all are measured in turns: a training step, a text alone, and 128 texts of 32 tasks that are
there at once: ptv2 packs them into batches, `adapters` splits one padded batch by task, the others
run a padded batch for each task. First the answers to some of them have to be those to each alone.
What fails is in the results with its error. `--quick` trains on a part of the data, once.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from measure import default_device, provenance, write_json
from methods_process import ENVIRONMENTS
from methods_setup import Setup
from processes import Process
from transformers import AutoTokenizer
from transformers.utils import logging

from ptv2.demo import DATA as SNIPS
from ptv2.demo import encoder_directory
from ptv2.tasks import load_data

RATES = {
    "ptv2": (1e-2, 2e-2, 3e-2),
    "official": (1e-2, 2e-2, 3e-2),
    "peft-prefix": (1e-2, 2e-2, 3e-2),
    "peft-lora": (5e-4, 2e-3, 5e-3),
    "adapters-bottleneck": (5e-4, 1e-3, 3e-3),
    "adapters-prefix": (1e-2, 2e-2, 3e-2),
    "peft-prompt-tuning": (1e-2, 3e-2, 1e-1),
    "peft-p-tuning": (1e-3, 3e-3, 1e-2),
    "fine-tuning": (5e-5, 1e-4, 2e-4),
}
"""What is tried; the middle one is taken without a search."""
SEARCH_EXAMPLES, SEARCH_EPOCHS = 2000, 3
TOLERANCE = 1e-4
TASKS, ROWS, COMPARED = 32, 128, 24
DATA = ("sst2", "trec", "snips", "banking77")
QUICK = {"search": False, "seeds": [0], "examples": 400, "epochs": 1, "rounds": 4}


@dataclass(frozen=True)
class Training:
    """How a method is trained.

    Args:
        epochs: fine-tuning takes half as many, at least one.
    """

    epochs: int
    examples: int | None

    def options(self, name: str, rate: float, seed: int) -> dict[str, Any]:
        """Of `Commands.train`."""
        full = name == "fine-tuning"
        epochs = max(1, self.epochs // 2) if full else self.epochs
        return {
            "epochs": epochs,
            "learning_rate": rate,
            "weight_decay": 0.01 if full else 0.0,
            "seed": seed,
            "examples": self.examples,
        }


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, required=True)
    add("--rivals", type=Path, help="the folder of environments.sh; else what is installed here")
    add("--data", type=Path, help="has TASK/train.jsonl and TASK/dev.jsonl")
    add("--task", choices=DATA, default="trec", help="of --data")
    add("--encoder", type=Path, help="a BERT's folder; MiniLM if there is none")
    add("--methods", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS))
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--epochs", type=int, default=8)
    add("--examples", type=int, help="of the training data at most")
    add("--no-search", dest="search", action="store_false", help="take the usual learning rates")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the training")
    add("--prompt-length", type=int, default=20)
    add("--rounds", type=int, default=15, help="of the measurements")
    add("--device", default=str(default_device()))
    add("--threads", type=int, default=2)
    add("--plot", type=Path, help="draw what --output has, as an .svg")
    add("--quick", action="store_true", help="a part of the data, one seed, no search")
    args = parser.parse_args()
    if args.quick:
        parser.set_defaults(**QUICK)
        args = parser.parse_args()
    if args.plot and not args.output.is_file():
        parser.error(f"--plot: there are no results in {args.output}")
    return args


def make_setup(args: argparse.Namespace, encoder: str) -> Setup:
    """The data as token ids."""
    folder = args.data / args.task if args.data else SNIPS
    parts = [load_data(folder / f"{part}.jsonl") for part in ("train", "dev")]
    labels = {label: i for i, label in enumerate(sorted(set(parts[0]["label"])))}
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    train, dev = (
        [
            (ids, labels[label])
            for ids, label in zip(
                tokenizer(list(part["text"]), truncation=True, max_length=256)["input_ids"],
                part["label"],
                strict=True,
            )
        ]
        for part in parts
    )
    sizes = (args.prompt_length, 32, args.precision, args.device, args.threads)
    return Setup(encoder, len(labels), train, dev, *sizes)


def best(history: Sequence[dict[str, float]]) -> float:
    """The score of the best epoch."""
    return max(epoch["accuracy"] for epoch in history)


def train(name: str, process: Process, args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Search, if wanted, and a run for every seed; what is found already is kept."""
    usual = Training(args.epochs, args.examples)
    part = Training(min(SEARCH_EPOCHS, args.epochs), min(SEARCH_EXAMPLES, args.examples or 10**9))
    rate = RATES[name][1]
    if args.search:
        scores = found.setdefault("search", {})
        for tried in RATES[name]:
            if str(tried) not in scores:
                run = process.call("train", **part.options(name, tried, 0))
                scores[str(tried)] = best(run["history"])
        rate = float(max(scores, key=scores.__getitem__))
    found["learning rate"] = rate
    runs = found.setdefault("runs", {})
    for seed in args.seeds:
        if str(seed) not in runs:
            run = process.call("train", **usual.options(name, rate, seed))
            runs[str(seed)] = run | {"score": best(run["history"])}
            print(f"{name}, seed {seed}: {runs[str(seed)]['score']:.4f}", flush=True)


def measure(
    processes: dict[str, Process], rows: Sequence[Any], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every method, in turns: of a training step, of a text alone, of all rows."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in processes}
    draw = random.Random(1)
    for turn in range(rounds + 1):  # the first is not counted
        texts = draw.sample(rows, 8)
        calls: dict[str, Callable[[Process], float]] = {
            "training step": lambda process: process.call("steps", count=2),
            "text alone": lambda process, own=texts: median(
                process.call("answer", rows=[text]) for text in own
            ),
            "rows of many tasks": lambda process: process.call("answer", rows=rows),
        }
        for kind, call in calls.items():
            for name, process in processes.items():
                seconds = call(process)
                if turn:
                    found[name].setdefault(kind, []).append(seconds)
    return found


def bench(args: argparse.Namespace, folder: Path, results: dict[str, Any]) -> None:
    """Everything; the results are written after every method."""
    setup = make_setup(args, str(args.encoder or encoder_directory()))
    path = folder / "setup.json"
    setup.write(path)
    results["settings"] = {
        "encoder": "MiniLM" if args.encoder is None else args.encoder.name,
        "data": f"{args.task} of --data" if args.data else "SNIPS' intents, as shipped",
        "train": len(setup.train), "dev": len(setup.dev), "labels": setup.labels,
        "prompt length": setup.prompt_length, "epochs": args.epochs, "examples": args.examples,
        "precision": setup.precision, "tasks": TASKS, "rows": ROWS, "threads": args.threads,
    }  # fmt: skip
    methods = results.setdefault("methods", {})

    def start(name: str) -> Process:
        python = sys.executable
        if args.rivals and ENVIRONMENTS[name] != "ptv2":
            python = str(args.rivals / ENVIRONMENTS[name] / "bin" / "python")
        return Process(name, "methods_process.py", (name, str(path)), python, args.threads)

    for name in args.methods:
        process, found = start(name), methods.setdefault(name, {})
        try:
            train(name, process, args, found)
            found.pop("failed", None)
        except (NotImplementedError, RuntimeError) as error:
            found["failed"] = str(error)
            print(f"{name}: {error}", flush=True)
        finally:
            process.close()
        write_json(args.output, results)
    compare_speeds(
        {n: start(n) for n in args.methods if "failed" not in methods[n]}, setup, args, methods
    )


def compare_speeds(
    processes: dict[str, Process],
    setup: Setup,
    args: argparse.Namespace,
    methods: dict[str, Any],
) -> None:
    """Describe and measure all methods whose answers to mixed rows are right."""
    draw = random.Random(0)
    rows = [(draw.randrange(TASKS), draw.choice(setup.dev)[0]) for _ in range(ROWS)]
    try:
        for name, process in list(processes.items()):
            methods[name] |= process.call("start")
            methods[name]["bytes with all tasks"] = process.call("grow", tasks=TASKS)
            difference = process.call("compare", rows=rows[:COMPARED])
            methods[name]["difference"] = difference
            if not difference <= TOLERANCE:
                methods[name]["wrong"] = f"answers together and alone differ by {difference:.1e}"
                processes.pop(name).close()
        for name, seconds in measure(processes, rows, args.rounds).items():
            methods[name]["seconds"] = seconds
    finally:
        for process in processes.values():
            process.close()


def table(results: dict[str, Any]) -> str:
    """A line a method."""
    lines = [
        f"{'':<22}{'score':>8}{'trained':>11}{'saved kB':>10}{'step ms':>9}{'peak MiB':>10}"
        f"{'alone ms':>10}{'mixed ms':>10}"
    ]
    for name, found in results["methods"].items():
        if "seconds" not in found:
            lines.append(f"{name:<22}{found.get('failed') or found.get('wrong', 'not measured')}")
            continue
        ms = {kind: 1000 * median(x) for kind, x in found["seconds"].items()}
        score = mean(run["score"] for run in found["runs"].values())
        lines.append(
            f"{name:<22}{score:>8.4f}{found['trained parameters']:>11,}"
            f"{found['asset bytes'] / 1e3:>10,.0f}{ms['training step']:>9.1f}"
            f"{found['peak bytes'] / 2**20:>10.0f}{ms['text alone']:>10.2f}"
            f"{ms['rows of many tasks'] / ROWS:>10.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    args = options()
    if args.plot:
        from report_plots import methods as pictures  # needs matplotlib

        args.plot.write_text(next(pictures(json.loads(args.output.read_text()))))
        return
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    results = json.loads(args.output.read_text()) if args.output.exists() else {}
    results["provenance"] = provenance(torch.device(args.device))
    with tempfile.TemporaryDirectory() as folder:
        bench(args, Path(folder), results)
    write_json(args.output, results)
    print(table(results))


if __name__ == "__main__":
    main()

"""Ways to adapt an encoder, side by side: quality, parameters, size, training, serving.

    benchmarks/environments.sh build/rivals
    python benchmarks/bench_methods.py --output benchmarks/results/methods.json \\
        --rivals build/rivals [--data DATA --task trec]

Every method is a process of its own and gets the same token ids and the same training (AdamW,
warm-up, linear decay, batches of 32 of like length; fine-tuning has a weight decay of 0.01), with
the head that it has by default: ptv2 a linear layer on the mean of the tokens, `adapters` two
layers on the first one, the others a linear layer on the first one behind BERT's pooler, which is
frozen but in fine-tuning. "ptv2-pooler" is ptv2 with that head. First comes a search for the
learning rate, one of three, on seed 0 and a part of the data; then a run for each seed, whose
score is the best epoch's on dev. Without `--data` the data are the intents of SNIPS that the
package ships.

Then all are measured in turns: a training step, a text alone, and 128 texts of 32 tasks that are
there at once: ptv2 packs them into batches, LoRA and `adapters` have one padded batch for all, the
others a padded batch for each task. First the answers to some of them have to be those to each
alone, and those of the tasks to one text have to differ. What fails is in the results with its
error. `--quick` trains on 400 examples for one epoch, which tells nothing of quality.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from measure import default_device, provenance, write_json
from methods_process import ENVIRONMENTS
from methods_rounds import ROWS, TASKS, compare_speeds, recorded, train
from methods_setup import Setup
from processes import Process
from transformers import AutoTokenizer
from transformers.utils import logging

from ptv2.demo import DATA as SNIPS
from ptv2.demo import encoder_directory
from ptv2.tasks import load_data

DATA = ("sst2", "trec", "snips", "banking77")
QUICK = {"search": False, "seeds": [0], "examples": 400, "epochs": 1, "rounds": 3}


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
    for name in {ENVIRONMENTS[method] for method in args.methods} - {"ptv2"}:
        if args.rivals and not (args.rivals / name / "bin" / "python").exists():
            parser.error(
                f"--rivals: expected {name}/bin/python in {args.rivals}, see environments.sh"
            )
    if args.plot and not args.output.is_file():
        parser.error(f"--plot: there are no results in {args.output}")
    return args


def make_setup(args: argparse.Namespace, encoder: str) -> Setup:
    """The data as token ids."""
    folder = args.data / args.task if args.data else SNIPS
    parts = [load_data(folder / f"{part}.jsonl") for part in ("train", "dev")]
    labels = {
        label: i
        for i, label in enumerate(sorted({label for part in parts for label in part["label"]}))
    }
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


def bench(args: argparse.Namespace, folder: Path, results: dict[str, Any]) -> None:
    """Everything; the results are written after every method."""
    setup = make_setup(args, str(args.encoder or encoder_directory()))
    path = folder / "setup.json"
    setup.write(path)
    settings = {
        "encoder": "MiniLM" if args.encoder is None else args.encoder.name,
        "data": f"{args.task} of --data" if args.data else "SNIPS' intents, as shipped",
        "train": len(setup.train), "dev": len(setup.dev), "labels": setup.labels,
        "prompt length": setup.prompt_length, "epochs": args.epochs, "examples": args.examples,
        "precision": setup.precision, "tasks": TASKS, "rows": ROWS, "threads": args.threads,
        "quick": args.quick,
    }  # fmt: skip
    before = results.setdefault("settings", settings)
    for name, value in settings.items():
        if before.get(name) != value:
            sys.exit(f"--output: has runs with {name} {before.get(name)!r}, expected {value!r}")
    methods = results.setdefault("methods", {})

    def start(name: str) -> Process:
        python = sys.executable
        if args.rivals and ENVIRONMENTS[name] != "ptv2":
            python = str(args.rivals / ENVIRONMENTS[name] / "bin" / "python")
        return Process(name, "methods_process.py", (name, str(path)), python, args.threads)

    for name in args.methods:
        process, found = start(name), methods.setdefault(name, {})
        for key in ("failed", "wrong", "seconds"):
            found.pop(key, None)
        with recorded(name, found):
            train(name, process, args, found)
        process.close()
        write_json(args.output, results)
    processes = {name: start(name) for name in args.methods if "failed" not in methods[name]}
    try:
        compare_speeds(processes, setup.dev, args.rounds, methods)
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

        picture = next(pictures(json.loads(args.output.read_text())), None)
        if picture is None:
            sys.exit(f"--plot: no method of {args.output} was measured")
        args.plot.write_text(picture.svg)
        return
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    results = json.loads(args.output.read_text()) if args.output.exists() else {}
    results["provenance"] = provenance(torch.device(args.device))
    with tempfile.TemporaryDirectory() as folder:
        bench(args, Path(folder), results)
    write_json(args.output, results)
    print(table(results))
    own = results["methods"].get("ptv2", {})
    if why := own.get("failed") or own.get("wrong"):
        sys.exit(f"ptv2: {why}")


if __name__ == "__main__":
    main()

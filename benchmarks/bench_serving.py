"""Many tasks served from one encoder: ptv2 beside PEFT, `adapters` and a model a task.

    benchmarks/environments.sh build/rivals
    python benchmarks/bench_serving.py --data DATA --output benchmarks/results/serving.json \\
        --adapters-python build/rivals/adapters/bin/python
    python benchmarks/bench_serving.py --output benchmarks/results/serving.json --plot build

DATA has sst2/dev.jsonl; without it a few sentences stand in. `--random` needs no files: a
BERT-base of random weights and texts of random tokens. PEFT is `pip install peft`. What is not
there is left out, and the results say so. The default takes 20 minutes, `--quick` 3. Beside
the JSON file lies a CSV file of the same name.

Every system is a process of its own and answers the same requests: texts that are tokens already,
for tasks with random prompts and heads, drawn by Zipf's law, in a Poisson process that waits for
nobody. All take what waits, ptv2 up to its usual number of tokens, the others up to
`--batch-tokens`, as it is large groups that make them fast:

- ptv2: `ptv2.serving.Service`, all tasks in a packed batch;
- bare: the same without prompts, which is the least that ptv2 can cost;
- compiled: the same with the encoder compiled by torch, as `ptv2 serve --compile` has it;
- peft: PEFT's prefix tuning, one model with an adapter a task, a padded batch for each task;
- adapters: one padded batch with a `BatchSplit` over the tasks;
- copies: an encoder for every task, a padded batch for each.

First they have to give the same answers: ptv2, peft and adapters as each other, all of them in a
batch as alone. Then every round looks for the highest rate at which the 99th percentile of
latency keeps to a bound, and measures latencies at the same rates for all. A latency counts from
the moment at which a request was due. Then come memory by the number of tasks, and what a batch
of 32 costs ptv2 with prompts and without, with few tasks and with many, and what the size of
batches does.
"""

import argparse
import json
import random
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from measure import default_device, provenance, write_json
from serving_cost import MANY, engine_costs, size_costs
from serving_plot import plot, table, write_rows
from serving_process import NAMES
from serving_rounds import (
    TOLERANCE,
    Load,
    compare_answers,
    measure_load,
    measure_memory,
    running,
)
from serving_setup import Setup
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizer
from transformers.utils import logging

from ptv2.demo import encoder_directory
from ptv2.tasks import load_data

TEXTS = (
    "a fine film",
    "dull",
    "neither the story nor its people are worth the two hours that they take",
    "the camera finds more to love in this town than the script ever does",
)
QUICK = {
    "seconds": 1.5, "fewest": 30, "rounds": 1, "points": 3, "memory_tasks": [10, 32], "many": 200,
}  # fmt: skip
TOY = {
    "random": True, "systems": ["ptv2", "bare"], "tasks": 3, "prompt_length": 4, "fewest": 5,
    "seconds": 0.05, "rounds": 1, "points": 2, "memory_tasks": [2], "many": 12, "bound": 20.0,
}  # fmt: skip
TOY_SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip
RANDOM_TEXTS = 256
SHORTEST, LONGEST = 5, 50
"""Tokens of a random text."""
COMPARED = 48
"""Requests whose answers are compared."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, required=True)
    add("--data", type=Path, help="has sst2/dev.jsonl")
    add("--encoder", type=Path, default=None, help="a BERT's folder; MiniLM if there is none")
    add("--random", action="store_true", help="a BERT-base and texts without meaning")
    add("--systems", nargs="+", choices=NAMES, default=list(NAMES))
    add("--adapters-python", help="of the environment with adapters")
    add("--device", default=str(default_device()))
    add("--dtype", choices=list(TOLERANCE), default="fp32", help="of its weights")
    add("--threads", type=int, default=2)
    add("--tasks", type=int, default=32)
    add("--prompt-length", type=int, default=20)
    add("--exponent", type=float, default=1.0, help="of Zipf's law over the tasks")
    add("--batch-tokens", type=int, default=16384, help="of a batch of the others at most")
    add("--memory", type=float, default=4.0, help="GiB that copies of the encoder may take")
    add("--bound", type=float, help="ms for the 99th percentile; 500 on a CPU, 50 on a GPU")
    add("--first-rate", type=float, default=40.0, help="requests a second to begin with")
    add("--seconds", type=float, default=4.0, help="of a measurement")
    add("--fewest", type=int, default=60, help="requests of a measurement")
    add("--rounds", type=int, default=3)
    add("--points", type=int, default=5, help="rates for the latencies")
    add("--memory-tasks", nargs="+", type=int, default=[10, 32, 100, 1000])
    add("--many", type=int, default=MANY, help="tasks of the batches with many")
    add("--seed", type=int, default=0)
    add("--quick", action="store_true", help="fewer and shorter measurements")
    add("--toy", action="store_true", help="tiny, random, and ptv2 alone: does it run?")
    add("--plot", type=Path, help="a folder for pictures of what --output has")
    args = parser.parse_args()
    if args.quick or args.toy:
        parser.set_defaults(**(TOY if args.toy else QUICK))
        args = parser.parse_args()
    if args.random and (args.encoder or args.data):
        parser.error("--random: expected neither --encoder nor --data with it")
    if args.plot and not args.output.is_file():
        parser.error(f"--plot: there are no results in {args.output}")
    return args


def tokenize(encoder: str, data: Path | None, longest: int) -> list[list[int]]:
    """The token ids of all texts."""
    texts = list(TEXTS) if data is None else load_data(data / "sst2" / "dev.jsonl")["text"]
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    return tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]


def save_random_encoder(folder: Path, toy: bool, seed: int) -> None:
    """A BERT-base of random weights, or a tiny one, and a tokenizer, which requests do without."""
    torch.manual_seed(seed)
    BertModel(BertConfig(**(TOY_SIZES if toy else {}))).save_pretrained(folder)
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a")
    BertTokenizer({word: place for place, word in enumerate(words)}).save_pretrained(folder)


def random_texts(words: int, seed: int) -> list[list[int]]:
    """Token ids without meaning, of lengths that sentences have."""
    draw = random.Random(seed)
    lengths = [draw.randint(SHORTEST, LONGEST) for _ in range(RANDOM_TEXTS)]
    return [[draw.randrange(words) for _ in range(length)] for length in lengths]


def bench(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure everything."""
    bound = args.bound or (50.0 if args.device.startswith("cuda") else 500.0)
    load = Load(bound / 1000, args.seconds, args.fewest, args.rounds, args.first_rate, args.points)
    if args.random:
        args.encoder = folder / "random BERT"
        save_random_encoder(args.encoder, args.toy, args.seed)
    encoder = str(args.encoder or encoder_directory())
    setup = Setup(
        encoder, str(folder / "texts.json"), args.tasks, args.exponent, args.prompt_length,
        args.batch_tokens, args.device, args.threads, int(args.memory * 2**30), args.seed,
        args.dtype,
    )  # fmt: skip
    config = setup.config()
    texts = (
        random_texts(config["vocab_size"], args.seed)
        if args.random
        else tokenize(encoder, args.data, config["max_position_embeddings"] - args.prompt_length)
    )
    Path(setup.texts).write_text(json.dumps(texts))
    results: dict[str, Any] = {
        "provenance": provenance(torch.device(args.device)),
        "settings": {
            **asdict(setup),
            **asdict(load),
            "encoder": "MiniLM" if args.encoder is None else args.encoder.name,
            "texts": "sst2/dev.jsonl" if args.data else "random" if args.random else "built in",
        },
        "tokens of a text": sum(map(len, texts)) / len(texts),
        "left out": {},
        "versions": {},
    }
    pythons = dict.fromkeys(args.systems, sys.executable)
    if "adapters" in pythons:
        pythons["adapters"] = args.adapters_python
        if args.adapters_python is None:
            leave_out(pythons, results, "adapters", "--adapters-python does not say where it is")
    with running(pythons, setup) as processes:
        for name, process in list(processes.items()):
            try:
                results["versions"][name] = process.call("start", tasks=args.tasks)
            except NotImplementedError as error:
                leave_out(pythons, results, name, str(error))
                processes.pop(name).close()
        results["differences"] = compare_answers(
            processes, COMPARED, args.seed, TOLERANCE[args.dtype]
        )
        results["load"] = measure_load(processes, load, args.seed)
    usual = replace(setup, same_answers=False)
    for name in ("bare", "compiled"):  # a task takes as much
        pythons.pop(name, None)
    print("memory", flush=True)
    results["memory"] = measure_memory(pythons, usual, args.memory_tasks)
    print("batches", flush=True)
    results["engine"] = engine_costs(usual, texts, 20 * args.rounds, args.many)
    results["sizes"] = size_costs(usual, texts, 2 * args.rounds + 1)
    return results


def leave_out(pythons: dict[str, str], results: dict[str, Any], name: str, why: str) -> None:
    """Go on without a system, and say so."""
    del pythons[name]
    results["left out"][name] = why
    print(f"{name} is left out: {why}", flush=True)


def main() -> None:
    args = options()
    if args.plot:
        return plot(json.loads(args.output.read_text()), args.plot)
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        results = bench(args, Path(folder))
    write_json(args.output, results)
    write_rows(results, args.output.with_suffix(".csv"))
    print(table(results))


if __name__ == "__main__":
    main()

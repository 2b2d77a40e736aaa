"""Trainings killed at random moments and resumed: the end must be that of one left alone.

    python -m tests.killed_runs [--events 40] [--moments 12] [--seed 0]

Each training is a fork of this process. One half is killed (SIGKILL) at a random one of the calls
that open, rename or remove a file of the run, the other half at a random time. Prints a line of
JSON: how many were killed, and in which state each left its run.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from datasets import Dataset, disable_progress_bars
from safetensors.torch import load_file
from transformers import set_seed

from ptv2 import PromptConfig, PromptModel
from ptv2.predictor import Predictor
from ptv2.tasks import make_task
from ptv2.train_config import TrainConfig
from ptv2.training import train
from tests.encoder import examples, save_encoder

FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
CONFIG = TrainConfig(learning_rate=3e-2, epochs=2, batch_size=8, save_steps=2)
DATA = Dataset.from_list(examples(24)), Dataset.from_list(examples(8, seed=1))


def run(encoder: Path, output: Path) -> None:
    """Train, or go on training."""
    model = PromptModel.from_pretrained(encoder)
    task = make_task("sequence-classification", Predictor(model).tokenizer).fit_labels(*DATA)
    set_seed(0)
    model.add_task("t", PromptConfig(task.kind, task.labels, prompt_length=4))
    started = (output / "checkpoints" / "run_config.json").is_file()
    # what a run left that was killed before it had written its settings
    train(model, "t", task, DATA, output, CONFIG, resume=started, overwrite=not started)


def child(encoder: Path, output: Path, die_at: int | None = None) -> tuple[int, int]:
    """Run in a fork; returns its process number and the end of a pipe that gives its events."""
    reader, writer = os.pipe()
    if (process := os.fork()) != 0:
        os.close(writer)
        return process, reader
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    events = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal events
        if event in FILE_EVENTS and str(output) in str(arguments[0]):
            events += 1
            if events == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    try:
        run(encoder, output)
        os.write(writer, str(events).encode())
        os._exit(0)
    except BaseException as error:
        os.write(writer, repr(error).encode())
        os._exit(1)


def finish(process: int, reader: int) -> tuple[bool, str]:
    """Whether a child was killed, and what it said."""
    _, status = os.waitpid(process, 0)
    said = os.read(reader, 4096).decode()
    os.close(reader)
    if os.WIFSIGNALED(status):
        return True, said
    if os.WEXITSTATUS(status):
        raise RuntimeError(f"a run failed: {said}")
    return False, said


def outcome(output: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The saved prompt, and the metrics without seconds."""
    metrics = json.loads((output / "metrics.json").read_text())
    del metrics["train_seconds"]
    for entry in metrics["history"]:
        entry.pop("runtime", None)
    return load_file(output / "prompt.safetensors"), metrics


def require_same(output: Path, expected: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> None:
    tensors, metrics = outcome(output)
    if metrics != expected[1]:
        raise AssertionError(f"{output}: expected {expected[1]}, got {metrics}")
    for name, tensor in expected[0].items():
        if not torch.equal(tensors[name], tensor):
            raise AssertionError(f"{output}: {name} differs")


def state_of(output: Path) -> str:
    """What a killed run left."""
    folder = output / "checkpoints"
    if (output / "metrics.json").exists():
        return "all"
    if (output / "prompt_config.json").exists():
        return "prompt"
    steps = [int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")]
    left_over = " and a part" if (folder / ".staged").exists() else ""
    return f"checkpoint {max(steps)}{left_over}" if steps else f"no checkpoint{left_over}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=40)
    parser.add_argument("--moments", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # a fork keeps no other threads
    disable_progress_bars()
    transformers.logging.set_verbosity_error()
    draw, states = random.Random(args.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        encoder = save_encoder(root / "encoder")
        seconds = float("inf")
        for name in ("alone", "again"):  # the shorter: the machine may stand still meanwhile
            start = time.perf_counter()
            _, said = finish(*child(encoder, root / name))
            seconds = min(seconds, time.perf_counter() - start)
        expected = outcome(root / "alone")
        require_same(root / "again", expected)
        for turn in range(args.events):
            output = root / f"event-{turn}"
            killed, _ = finish(*child(encoder, output, draw.randint(1, int(said))))
            assert killed
            states[state_of(output)] += 1
            finish(*child(encoder, output))
            require_same(output, expected)
        killed_in_time = turn = 0
        while killed_in_time < args.moments:
            output, turn = root / f"moment-{turn}", turn + 1
            while True:
                process, reader = child(encoder, output)
                time.sleep(draw.uniform(0, seconds))
                os.kill(process, signal.SIGKILL)
                if not finish(process, reader)[0]:
                    break
                killed_in_time += 1
                states[state_of(output)] += 1
            require_same(output, expected)
    print(json.dumps({"killed": args.events + killed_in_time, "states": states}))


if __name__ == "__main__":
    main()

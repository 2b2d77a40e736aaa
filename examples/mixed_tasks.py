"""Tasks mixed in one batch; then served to several threads while one of them is replaced.

    python examples/mixed_tasks.py

Three prompts are trained first, all at once: intents and slots of commands to a voice assistant,
and intents in capitals, which stand for the next version of the first task.
"""

import argparse
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from transformers import set_seed

import ptv2
from ptv2.demo import DATA, REQUESTS, encoder_directory
from ptv2.serving import Service
from ptv2.sweep import Run, sweep
from ptv2.tasks import load_data, make_task
from ptv2.train_config import TrainConfig

KINDS = {
    "intent": ("sequence-classification", {}),
    "slots": ("token-classification", {}),
    "intent-2": ("sequence-classification", {"label_column": "capitals"}),
}


def train(predictor: ptv2.Predictor, data: Path, examples: int, folder: Path) -> None:
    """Add the tasks to the predictor's model, and save each in a folder of its name."""
    parts = [load_data(data / f"{part}.jsonl").shuffle(seed=0) for part in ("train", "dev")]
    parts = [x.add_column("capitals", [label.upper() for label in x["label"]]) for x in parts]
    sizes = (examples, 100)
    used = tuple(x.take(min(size, len(x))) for x, size in zip(parts, sizes, strict=True))
    config = TrainConfig(epochs=3, batch_size=16)
    runs = []
    for name, (kind, columns) in KINDS.items():
        task = make_task(kind, predictor.tokenizer, **columns).fit_labels(*parts)
        runs.append(Run(name, task, used, ptv2.PromptConfig(kind, task.labels), config))
    sweep(predictor.model, runs, folder)


def serve(service: Service, folder: Path, seconds: float) -> None:
    """Ask for "intent" from a thread for each text, and replace it in the middle."""
    loaded, stop = threading.Event(), threading.Event()
    found: dict[str, Counter[str]] = {text: Counter() for text in REQUESTS}

    def ask(text: str) -> None:
        for until in (loaded, stop):
            last = False
            while not last:
                last = until.is_set()
                (outcome,) = service.answer("intent", [text])
                found[text][outcome.answer["label"]] += 1

    with ThreadPoolExecutor(len(REQUESTS)) as pool:
        asked = [pool.submit(ask, text) for text in REQUESTS]
        try:
            while not all(found.values()):
                for failed in wait(asked, timeout=0.01).done:
                    failed.result()
            time.sleep(seconds)
            served = service.bank.load(folder / "intent-2", "intent")
            print(f"version {served.version} of {served.name!r} is loaded under load")
            loaded.set()
            time.sleep(seconds)
        finally:
            loaded.set()
            stop.set()
    for text, answers in found.items():
        print(f"{text}: {dict(answers)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", help="directory or name of the encoder; by default MiniLM")
    parser.add_argument("--data", type=Path, default=DATA, help="folder: train.jsonl, dev.jsonl")
    parser.add_argument("--examples", type=int, default=250, help="to train on")
    parser.add_argument("--seconds", type=float, default=2, help="that a version is served")
    args = parser.parse_args()
    set_seed(0)
    model = ptv2.PromptModel.from_pretrained(args.backbone or encoder_directory())
    predictor = ptv2.Predictor(model)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "prompts"
        train(predictor, args.data, args.examples, folder)
        requests = [(name, text) for text in REQUESTS for name in ("intent", "slots")]
        for (name, text), answer in zip(requests, predictor.predict(requests), strict=True):
            print(f"{text} -> {name}: {answer}")

        service = Service(model)  # its tasks are those of its bank, not those of the model
        service.bank.load(folder / "intent")
        serve(service, folder, args.seconds)
        service.close()


if __name__ == "__main__":
    main()

"""Several prompts trained at once on one encoder: two tasks, each at two learning rates.

    python examples/sweep.py --output build/sweep

Every step is one forward and backward of all runs. Each has its own optimizer and schedule and
learns what it would learn alone. The folder gets a saved prompt for each run, and sweep.json.
"""

import argparse
from pathlib import Path

from transformers import set_seed

import ptv2
from ptv2.demo import DATA, REQUESTS, encoder_directory
from ptv2.report import print_sweep
from ptv2.sweep import Run, grid, sweep
from ptv2.tasks import load_data, make_task
from ptv2.train_config import TrainConfig

KINDS = {"intent": "sequence-classification", "slots": "token-classification"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", help="directory or name of the encoder; by default MiniLM")
    parser.add_argument("--data", type=Path, default=DATA, help="folder: train.jsonl, dev.jsonl")
    parser.add_argument("--output", type=Path, required=True, help="new folder for the results")
    parser.add_argument("--examples", type=int, default=250, help="to train on")
    parser.add_argument("--epochs", type=int, default=3, help="passes over them")
    args = parser.parse_args()
    parts = [load_data(args.data / f"{part}.jsonl").shuffle(seed=0) for part in ("train", "dev")]
    sizes = (args.examples, 100)
    data = tuple(x.take(min(size, len(x))) for x, size in zip(parts, sizes, strict=True))

    set_seed(0)
    model = ptv2.PromptModel.from_pretrained(args.backbone or encoder_directory())
    predictor = ptv2.Predictor(model)
    runs = []
    for name, kind in KINDS.items():
        task = make_task(kind, predictor.tokenizer).fit_labels(*parts)
        settings = grid(
            ptv2.PromptConfig(kind, task.labels),
            TrainConfig(epochs=args.epochs, batch_size=16),
            learning_rate=(1e-2, 3e-2),
        )
        for setting, configs in settings.items():
            runs.append(Run(f"{name}-{setting}", task, data, *configs))
    table = sweep(model, runs, args.output)
    print_sweep(table)

    best = table["best"]  # of each task; all runs stay in the model, as tasks of their names
    for text in REQUESTS:
        print(text)
        for name, answer in zip(best, predictor.predict([(x, text) for x in best]), strict=True):
            print(f"  {name}: {answer}")


if __name__ == "__main__":
    main()

"""Answers for a large file of texts, offline: Ray Data with a Predictor in each of its actors.

    python examples/ray_data.py --backbone bert-base-uncased --prompt prompts/mood \
        --data texts.jsonl --output answers --actors 2

Every row keeps its columns and gets one more, "answer"; the output is Parquet. With --gpus 1 each
actor has a GPU.
"""

import argparse
from pathlib import Path

import pyarrow
import ray
import torch

import ptv2


class Answers:
    """An actor: one encoder with one prompt."""

    def __init__(self, backbone: str, prompt: Path, column: str) -> None:
        model = ptv2.PromptModel.from_pretrained(backbone)
        self._task = model.load_task(prompt)
        if torch.accelerator.is_available():
            model.to(torch.accelerator.current_accelerator())
        self._predictor = ptv2.Predictor(model)
        self._column = column

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        if "answer" in batch.column_names:
            raise ValueError("data: expected no column called answer, which is what is added")
        inputs = batch[self._column].to_pylist()
        answers = self._predictor.predict([(self._task, x) for x in inputs])
        return batch.append_column("answer", pyarrow.array(answers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", required=True, help="directory or name of the encoder")
    parser.add_argument("--prompt", required=True, type=Path, help="folder of a saved prompt")
    parser.add_argument("--data", required=True, help="JSON lines")
    parser.add_argument("--output", required=True, help="folder for the Parquet files")
    parser.add_argument("--column", default="text", help="column of the data with the inputs")
    parser.add_argument("--actors", type=int, default=1, help="encoders that work at once")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of an actor")
    parser.add_argument("--batch-size", type=int, default=256, help="rows of a call")
    args = parser.parse_args()
    answered = ray.data.read_json(args.data, lines=True).map_batches(
        Answers,
        fn_constructor_args=(args.backbone, args.prompt.resolve(), args.column),
        batch_format="pyarrow",
        batch_size=args.batch_size,
        num_gpus=args.gpus,
        compute=ray.data.ActorPoolStrategy(size=args.actors),
    )
    answered.write_parquet(args.output)


if __name__ == "__main__":
    main()

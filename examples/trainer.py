"""A prompt trained by the stock `transformers.Trainer`, saved, and loaded into another model.

    python examples/trainer.py --output build/intent

The data are commands to a voice assistant, or a folder with train.jsonl and dev.jsonl of your own,
whose lines have a "text" and a "label". All but `for_task` is as for any model of transformers.
"""

import argparse
import tempfile
from pathlib import Path

from datasets import Dataset
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)

import ptv2
from ptv2.demo import DATA, encoder_directory
from ptv2.tasks import load_data


def accuracy(found: EvalPrediction) -> dict[str, float]:
    """Share of the labels that are right."""
    return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", help="directory or name of the encoder; by default MiniLM")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data")
    parser.add_argument("--output", type=Path, required=True, help="folder for the prompt")
    parser.add_argument("--epochs", type=float, default=1, help="passes over the data")
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    backbone = args.backbone or encoder_directory()
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    train, dev = (load_data(args.data / f"{part}.jsonl") for part in ("train", "dev"))
    labels = tuple(sorted(set(train["label"])))

    def features(data: Dataset) -> Dataset:
        encoded = tokenizer(data["text"][:], truncation=True)
        return Dataset.from_dict(encoded | {"labels": [labels.index(x) for x in data["label"]]})

    set_seed(0)
    model = ptv2.PromptModel.from_pretrained(backbone)
    model.add_task("intent", ptv2.PromptConfig("sequence-classification", labels))
    module = model.for_task("intent")
    trained = sum(x.numel() for x in module.parameters() if x.requires_grad)
    print(f"{trained:,} of {sum(x.numel() for x in module.parameters()):,} parameters learn")
    with tempfile.TemporaryDirectory() as checkpoints:
        trainer = Trainer(
            module,
            TrainingArguments(
                checkpoints,
                learning_rate=2e-2,
                num_train_epochs=args.epochs,
                per_device_train_batch_size=args.batch_size,
                per_device_eval_batch_size=4 * args.batch_size,
                save_strategy="no",
                report_to="none",
            ),
            train_dataset=features(train),
            eval_dataset=features(dev),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=accuracy,
        )
        trainer.train()
        scores = trainer.evaluate()
    model.save_task("intent", args.output)

    other = ptv2.PromptModel.from_pretrained(backbone)
    other.load_task(args.output)
    answers = ptv2.Predictor(other).predict([("intent", text) for text in dev["text"]])
    right = sum(a["label"] == label for a, label in zip(answers, dev["label"], strict=True))
    print(f"accuracy in the Trainer: {scores['eval_accuracy']:.3f}")
    print(f"accuracy of the prompt in {args.output}: {right / len(dev):.3f}")


if __name__ == "__main__":
    main()

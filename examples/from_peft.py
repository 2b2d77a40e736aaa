"""A prefix-tuning adapter that PEFT has trained, as a prompt here, and back: the same logits.

    pip install peft
    python examples/from_peft.py

On the command line: ptv2 convert ADAPTER --backbone DIR --output prompts/intent
"""

import argparse
import tempfile
from pathlib import Path

import peft
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from ptv2 import Predictor
from ptv2.convert import export_peft, import_prompt, load_backbone
from ptv2.demo import DATA, REQUESTS, encoder_directory
from ptv2.report import size_kb
from ptv2.tasks import load_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", help="directory or name of the encoder; by default MiniLM")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with train.jsonl")
    parser.add_argument("--steps", type=int, default=25, help="of training in PEFT")
    parser.add_argument("--tokens", type=int, default=20, help="virtual ones of the adapter")
    args = parser.parse_args()
    backbone = args.backbone or encoder_directory()
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    data = load_data(args.data / "train.jsonl").shuffle(seed=0)
    labels = sorted(set(data["label"]))

    def stock() -> AutoModelForSequenceClassification:
        set_seed(0)
        return AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=len(labels))

    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=args.tokens)
    theirs = peft.get_peft_model(stock(), config)
    optimizer = torch.optim.AdamW([x for x in theirs.parameters() if x.requires_grad], lr=1e-2)
    for step in range(args.steps):
        rows = [data[(32 * step + row) % len(data)] for row in range(32)]
        batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        wanted = torch.tensor([labels.index(row["label"]) for row in rows])
        loss = theirs(**batch, labels=wanted).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    theirs.eval()

    batch = tokenizer(list(REQUESTS), padding=True, return_tensors="pt")
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        folder = Path(place)
        theirs.save_pretrained(folder / "adapter")
        model = load_backbone(backbone).eval()
        system = import_prompt(model, folder / "adapter", "intent", labels)
        model.save_task("intent", folder / "intent")
        kept = model.tasks["intent"]
        print(f"from {system}: {kept.prompt_length} rows, {size_kb(folder / 'intent'):,.0f} kB")
        print(f"positions of the text begin at {kept.position_offset}, as in PEFT")

        expected = theirs(**batch).logits
        got = model(**batch, task="intent").logits
        print(f"here: the logits differ by {(got - expected).abs().max():.0e}")
        export_peft(model, "intent", folder / "back")
        back = peft.PeftModel.from_pretrained(stock(), folder / "back").eval()
        print(f"back: the logits differ by {(back(**batch).logits - expected).abs().max():.0e}")
        answers = Predictor(model).predict([("intent", text) for text in REQUESTS])
    for text, answer in zip(REQUESTS, answers, strict=True):
        print(f"{text}: {answer['label']} ({answer['score']:.2f})")


if __name__ == "__main__":
    main()

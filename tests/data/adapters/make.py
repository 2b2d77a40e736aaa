"""Makes the folders beside this file: prompts of `adapters` 1.3.0, and what it computes with them.

pip install adapters==1.3.0 transformers==4.57.6 && python make.py
"""

import shutil
from pathlib import Path

import adapters
import torch
from safetensors.torch import save_file
from transformers import BertConfig, RobertaConfig

HERE = Path(__file__).parent
SIZES = dict(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=34,
    initializer_range=0.2,
)
LABELS = {0: "no", 1: "maybe", 2: "yes"}
CASES = {
    "bert-mlp": (
        "bert",
        dict(flat=False, bottleneck_size=6),
        "classification",
        dict(num_labels=3),
    ),
    "bert-flat": ("bert", dict(leave_out=[1]), "qa", {}),
    "bert-features": ("bert", {}, None, {}),
    "roberta-flat": ("roberta", {}, "tagging", dict(num_labels=3, id2label=LABELS)),
    "roberta-choice": ("roberta", {}, "multiple_choice", dict(num_choices=2)),
}


def make(name, family, prefix, head, options):
    config = {"bert": BertConfig, "roberta": RobertaConfig}[family](**SIZES, pad_token_id=1)
    model_class = {"bert": adapters.BertAdapterModel, "roberta": adapters.RobertaAdapterModel}
    model = model_class[family](config).eval()
    base = model.base_model
    weights = {key: x for key, x in base.state_dict().items() if "prompt_tuning" not in key}
    settings = adapters.PrefixTuningConfig(**{"flat": True, "prefix_length": 4} | prefix)
    model.add_adapter("task", config=settings)
    if head is not None:
        getattr(model, f"add_{head}_head")("task", **options)
    model.set_active_adapters("task")
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    model.save_adapter(str(folder), "task", with_head=head is not None)
    config.save_pretrained(folder / "backbone")
    save_file(weights, folder / "backbone" / "model.safetensors", metadata={"format": "pt"})
    shape = (3, 2, 7) if head == "multiple_choice" else (3, 7)
    ids = torch.randint(4, 40, shape)
    mask = torch.ones(shape, dtype=torch.long)
    mask[1, ..., 4:] = 0
    ids = ids.masked_fill(mask == 0, 1)
    with torch.no_grad():
        if head is None:
            found = base(input_ids=ids, attention_mask=mask)
            wanted = {"last_hidden_state": found.last_hidden_state}
        else:
            found = model(input_ids=ids, attention_mask=mask)
            names = ("start_logits", "end_logits") if head == "qa" else ("logits",)
            wanted = {x: found[x] for x in names}
    wanted = {key: x.contiguous() for key, x in wanted.items()}
    save_file({"input_ids": ids, "attention_mask": mask, **wanted}, folder / "outputs.safetensors")


if __name__ == "__main__":
    for number, (case, arguments) in enumerate(CASES.items()):
        torch.manual_seed(number)
        make(case, *arguments)

"""Makes the folders beside this file: prompts of `adapters` 1.3.0, and what it computes with them.

pip install adapters==1.3.0 transformers==4.57.6 && python make.py
"""

import shutil
from pathlib import Path

import adapters
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

HERE = Path(__file__).parent
SIZES = dict(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=34,
    initializer_range=0.2,
    pad_token_id=1,
)
IMAGES = dict(image_size=8, patch_size=4)
CLIP = dict(
    text_config=SIZES,
    vision_config=SIZES | IMAGES | dict(hidden_size=24, num_hidden_layers=2),
    projection_dim=8,
)
DEBERTA = dict(
    relative_attention=True,
    pos_att_type=["c2p", "p2c"],
    position_buckets=4,
    max_relative_positions=-1,
    share_att_key=True,
    norm_rel_ebd="layer_norm",
    position_biased_input=False,
    type_vocab_size=0,
)
LABELS = {0: "no", 1: "maybe", 2: "yes"}
MLP = dict(flat=False, bottleneck_size=6)
CLASSES = dict(num_labels=3)
CASES = {
    "bert-mlp": ("bert", {}, MLP, "classification", CLASSES),
    "bert-flat": ("bert", {}, dict(leave_out=[1]), "qa", {}),
    "bert-features": ("bert", {}, {}, None, {}),
    "roberta-flat": ("roberta", {}, {}, "tagging", CLASSES | dict(id2label=LABELS)),
    "roberta-choice": ("roberta", {}, {}, "multiple_choice", dict(num_choices=2)),
    "albert-flat": ("albert", dict(num_hidden_groups=2), {}, None, {}),
    "albert-mlp": ("albert", dict(num_hidden_groups=2), MLP | dict(leave_out=[1]), "qa", {}),
    "clip-flat": ("clip", CLIP, dict(leave_out=[1, 3]), None, {}),
    "clip-mlp": ("clip", CLIP, MLP, None, {}),
    "deberta-v2-mlp": ("deberta-v2", DEBERTA, MLP, "tagging", CLASSES),
    "distilbert-flat": (
        "distilbert",
        dict(hidden_dim=16),
        dict(leave_out=[0]),
        "classification",
        CLASSES,
    ),
    "electra-flat": ("electra", dict(embedding_size=8), {}, "tagging", CLASSES),
    "vit-mlp": ("vit", IMAGES, MLP, "image_classification", CLASSES | dict(id2label=LABELS)),
    "xlm-roberta-flat": ("xlm-roberta", {}, {}, "classification", CLASSES),
}


def draw_inputs(family, head):
    images = {"pixel_values": torch.randn(3, 3, 8, 8)}
    if family == "vit":
        return images
    shape = (3, 2, 7) if head == "multiple_choice" else (3, 7)
    ids = torch.randint(4, 40, shape)
    mask = torch.ones(shape, dtype=torch.long)
    mask[1, ..., 4:] = 0
    texts = {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}
    return texts | images if family == "clip" else texts


def make(name, family, sizes, prefix, head, options):
    config = AutoConfig.for_model(family, **SIZES | sizes)
    # under SDPA DistilBERT's prefix has other scores in batches with padding
    attention = "eager" if family == "distilbert" else None
    model = adapters.AutoAdapterModel.from_config(config, attn_implementation=attention).eval()
    base = model.base_model
    for parameter in base.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
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
    inputs = draw_inputs(family, head)
    with torch.no_grad():
        found = (base if head is None else model)(**inputs)
    names = {"qa": ("start_logits", "end_logits"), None: ("last_hidden_state",)}
    names = ("logits_per_image",) if family == "clip" else names.get(head, ("logits",))
    wanted = {x: found[x].contiguous() for x in names}
    save_file(inputs | wanted, folder / "outputs.safetensors")


if __name__ == "__main__":
    for number, (case, arguments) in enumerate(CASES.items()):
        torch.manual_seed(number)
        make(case, *arguments)

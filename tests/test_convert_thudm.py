"""Checkpoints of the official code against what it computes, and those that are refused."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.functional import gelu, linear

from ptv2 import PromptModel
from ptv2.convert import import_prompt, import_thudm
from tests.foreign_files import edit
from tests.official_deberta import CASES, official_states, tiny_deberta
from tests.textbook_model import states_with_prompt

OFFICIAL = {
    "sequence-classification": ("SequenceClassification", "classifier", 3),
    "token-classification": ("TokenClassification", "classifier", 3),
    "question-answering": ("QuestionAnswering", "qa_outputs", 2),
    "multiple-choice": ("MultipleChoice", "classifier", 1),
}
POOLED = ("sequence-classification", "multiple-choice")
CHECKPOINTS = [
    (name, kind, projection)
    for name in ("bert", "roberta", "v1", "v1-short-reach", "v3")
    for kind in OFFICIAL
    for projection in (False, True)
    if name != "v3" or kind == "token-classification"  # the only one of v2 and v3
]


def pooler_of(family):
    return "pooler.dense" if family == "deberta" else f"{family}.pooler.dense"


@pytest.fixture
def official(tiny_backbone, tmp_path):
    """Makes a folder as the official code leaves it: all weights, the prefix and the head."""

    def make(name, kind, projection=False):
        backbone = tiny_deberta(name) if name in CASES else tiny_backbone(name)
        family = backbone.config.model_type
        architecture, head, outputs = OFFICIAL[kind]
        prefix = backbone.base_model_prefix
        tensors = {f"{prefix}.{key}": x for key, x in backbone.state_dict().items()}
        shapes = {f"{head}.weight": (outputs, 32), f"{head}.bias": (outputs,)}
        if kind in POOLED:
            pooler = pooler_of(family)
            shapes |= {f"{pooler}.weight": (32, 32), f"{pooler}.bias": (32,)}
        if projection:
            shapes |= {
                "prefix_encoder.embedding.weight": (5, 32),
                "prefix_encoder.trans.0.weight": (7, 32),
                "prefix_encoder.trans.0.bias": (7,),
                "prefix_encoder.trans.2.weight": (3 * 2 * 32, 7),
                "prefix_encoder.trans.2.bias": (3 * 2 * 32,),
            }
        else:
            shapes["prefix_encoder.embedding.weight"] = (5, 3 * 2 * 32)
        tensors |= {key: torch.randn(shape) / 2 for key, shape in shapes.items()}
        folder = tmp_path / "official"
        folder.mkdir()
        torch.save(tensors, folder / "pytorch_model.bin")
        own = {"deberta": "Deberta", "deberta-v2": "DebertaV2"}.get(family, family.capitalize())
        # the official code is not at one over the name
        model = "Model" if kind == "question-answering" and family != "bert" else ""
        architectures = [f"{own}Prefix{model}For{architecture}"]
        settings = {"architectures": architectures, "model_type": family}
        settings["hidden_dropout_prob"] = 0.1
        if kind.endswith("classification"):
            settings["id2label"] = {"0": "no", "1": "maybe", "2": "yes"}
        (folder / "config.json").write_text(json.dumps(settings))
        return backbone, folder, tensors

    return make


def apply(tensors, layer, x):
    return linear(x, tensors[f"{layer}.weight"], tensors[f"{layer}.bias"])


def official_logits(backbone, kind, tensors, ids, monkeypatch):
    """Of one row: the prefix as a cache of P tokens, so that positions begin at P."""
    family = backbone.config.model_type
    flat = tensors["prefix_encoder.embedding.weight"]
    if "prefix_encoder.trans.0.weight" in tensors:
        hidden = torch.tanh(apply(tensors, "prefix_encoder.trans.0", flat))
        flat = apply(tensors, "prefix_encoder.trans.2", hidden)
    # P, layers * 2, heads, head_dim -> a pair for each layer
    pairs = flat.view(len(flat), 6, 4, 8).permute(1, 2, 0, 3).split(2)
    start = len(flat) + (2 if family == "roberta" else 0)
    positions = torch.arange(start, start + ids.shape[1])[None]
    if family.startswith("deberta"):
        states = official_states(backbone, ids, pairs, monkeypatch, position_ids=positions)[0]
    else:
        inputs = {"input_ids": ids, "position_ids": positions}
        states = states_with_prompt(backbone, inputs, pairs)[0]
    if kind in POOLED:
        activation = gelu if family == "deberta" else torch.tanh
        states = activation(apply(tensors, pooler_of(family), states[0]))
    return apply(tensors, OFFICIAL[kind][1], states)


@torch.no_grad()
@pytest.mark.parametrize(("name", "kind", "projection"), CHECKPOINTS)
def test_official_checkpoint(official, name, kind, projection, monkeypatch):
    backbone, folder, tensors = official(name, kind, projection)
    model = PromptModel(copy.deepcopy(backbone)).eval()
    assert import_prompt(model, folder, "task") == "P-tuning-v2"
    config = model.tasks["task"]
    assert config.parametrization == ("mlp" if projection else "direct")
    lengths = (9, 4)
    ids = torch.randint(4, 100, (2, 9))
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    inputs = {"input_ids": ids.masked_fill(~mask, 1), "attention_mask": mask.long()}
    if kind == "multiple-choice":
        got = model(**{key: x[None] for key, x in inputs.items()}, task="task").logits[0]
    else:
        output = model(**inputs, task="task")
        both = kind == "question-answering"
        got = torch.stack((output.start_logits, output.end_logits), -1) if both else output.logits
    for row, length in enumerate(lengths):
        wanted = official_logits(backbone, kind, tensors, ids[row, :length][None], monkeypatch)
        found = got[row, :length] if wanted.dim() == 2 else got[row].view(wanted.shape)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    if config.labels:
        assert config.labels == ("no", "maybe", "yes")


def test_the_random_pooler_of_a_checkpoint_is_not_the_backbones(official):
    """Pretrained RoBERTa has no pooler; the official code saves the one it drew."""
    backbone, folder, tensors = official("roberta", "sequence-classification")
    for key in ("weight", "bias"):
        del tensors[f"roberta.pooler.dense.{key}"]
    torch.save(tensors, folder / "pytorch_model.bin")
    model = PromptModel(backbone)
    with pytest.raises(ValueError, match=r"expected roberta\.pooler\.dense\.weight in"):
        import_thudm(model, folder, "task")
    assert not model.tasks


def change_weight(folder):
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    tensors["bert.encoder.layer.1.attention.self.key.weight"][3, 4] += 1e-3
    torch.save(tensors, folder / "pytorch_model.bin")


def poison(folder):
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    tensors["prefix_encoder.embedding.weight"][0, 0] = float("nan")
    torch.save(tensors, folder / "pytorch_model.bin")


def without_backbone(folder):
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    own = {key: x for key, x in tensors.items() if "encoder.layer" not in key}
    own.pop("bert.embeddings.word_embeddings.weight")
    torch.save(own, folder / "pytorch_model.bin")


def scalar(folder):
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    tensors["prefix_encoder.embedding.weight"] = torch.tensor(1.0)
    torch.save(tensors, folder / "pytorch_model.bin")


def cut(folder):
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[: len(data) // 2])


class Evil:
    def __reduce__(self):
        return (open, ("evil", "w"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_weight, "source: its backbone is not .*bert.encoder.layer.1.attention.self.key"),
        (poison, "prompt: expected finite values in embedding"),
        (cut, "pytorch_model.bin: not a file of tensors"),
        (lambda x: torch.save(Evil(), x / "pytorch_model.bin"), "not a file of tensors"),
        (lambda x: torch.save([1], x / "pytorch_model.bin"), "expected tensors by name, got list"),
        (lambda x: torch.save({}, x / "pytorch_model.bin"), "expected prefix_encoder.embedding"),
        (without_backbone, r"source: expected bert\.embeddings\.word_embeddings\.weight, got"),
        (scalar, "expected prefix_encoder.embedding"),
        (
            lambda x: edit(x / "config.json", hidden_dropout_prob="0.1"),
            "config.json: expected hidden_dropout_prob of type float, got '0.1'",
        ),
        (
            lambda x: edit(x / "config.json", id2label=["a"]),
            "config.json: expected id2label of type dict",
        ),
        (lambda x: (x / "pytorch_model.bin").unlink(), "expected model.safetensors or pytorch"),
        (lambda x: (x / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda x: (x / "config.json").write_text("[]"), "config.json: expected a JSON object"),
        (lambda x: (x / "config.json").unlink(), "source: expected adapter_config.json"),
        (
            lambda x: edit(x / "config.json", architectures=["BertPromptForMultipleChoice"]),
            "expected architectures that end in PrefixForSequenceClassification or .* got",
        ),
        (lambda x: edit(x / "config.json", model_type="roberta"), "expected model_type 'bert'"),
    ],
)  # fmt: skip
def test_official_checkpoints_that_are_refused(official, change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backbone, folder, _ = official("bert", "sequence-classification")
    change(folder)
    model = PromptModel(backbone)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        import_prompt(model, folder, "task")
    assert not model.tasks
    assert not Path("evil").exists()


@torch.no_grad()
def test_positions_that_deberta_does_not_add_take_no_room(official):
    """All 64 tokens fit beside a prompt, unless the backbone adds positions to its input."""
    ids = torch.randint(4, 100, (1, 64))
    for name, offset in (("v1", 0), ("v1-short-reach", 5)):
        backbone, folder, _ = official(name, "token-classification")
        model = PromptModel(backbone)
        import_prompt(model, folder, "task")
        assert model.tasks["task"].position_offset == offset
        shutil.rmtree(folder)
        if offset:
            with pytest.raises(ValueError, match="expected at most 59 tokens"):
                model(ids, task="task")
        else:
            assert model(ids, task="task").logits.isfinite().all()


def test_deberta_with_a_convolution_is_refused(official):
    """There the official code computes something else for rows with padding."""
    backbone, folder, _ = official("v2-conv", "token-classification")
    with pytest.raises(ValueError, match="conv_kernel_size: expected no convolution"):
        import_prompt(PromptModel(backbone), folder, "task")

"""Prompts of other systems against what those compute, and folders that are refused."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import linear
from typer.testing import CliRunner

from ptv2 import PromptModel
from ptv2.cli import app
from ptv2.convert import import_prompt, import_thudm, load_backbone
from tests.textbook_model import states_with_prompt

ADAPTERS = Path(__file__).parent / "data" / "adapters"
CASES = sorted(path.name for path in ADAPTERS.iterdir() if path.is_dir())


def copy_case(case, tmp_path):
    return shutil.copytree(ADAPTERS / case, tmp_path / case)


def edit(place, **changes):
    """Change fields of a JSON file; those of its "config" by their name with a dot."""
    settings = json.loads(place.read_text())
    for key, value in changes.items():
        target = settings
        *outer, last = key.split("__")
        for name in outer:
            target = target[name]
        target[last] = value
    place.write_text(json.dumps(settings))


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_adapters(case, tmp_path):
    """The folders hold what adapters 1.3.0 saved, and what it computes with it."""
    model = load_backbone(ADAPTERS / case / "backbone").eval()
    assert import_prompt(model, ADAPTERS / case, "task") == "adapters"
    model.save_task("task", tmp_path / "saved")
    model.load_task(tmp_path / "saved", "again")
    stored = load_file(ADAPTERS / case / "outputs.safetensors")
    inputs = {name: stored.pop(name) for name in ("input_ids", "attention_mask")}
    for name, expected in stored.items():
        got = model(**inputs, task="again")[name]
        if expected.shape[:2] == inputs["input_ids"].shape[:2] and name != "logits":
            valid = inputs["attention_mask"].bool()
            got, expected = got[valid], expected[valid]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    if case == "roberta-flat":
        assert model.tasks["task"].labels == ("no", "maybe", "yes")


OFFICIAL = {
    "sequence-classification": ("SequenceClassification", "classifier", 3),
    "token-classification": ("TokenClassification", "classifier", 3),
    "question-answering": ("QuestionAnswering", "qa_outputs", 2),
    "multiple-choice": ("MultipleChoice", "classifier", 1),
}


@pytest.fixture
def official(tiny_backbone, tmp_path):
    """Makes a folder as the official code leaves it: all weights, the prefix and the head."""

    def make(family, kind, projection=False):
        backbone = tiny_backbone(family)
        architecture, head, outputs = OFFICIAL[kind]
        pooled = kind in ("sequence-classification", "multiple-choice")
        tensors = {f"{family}.{key}": x for key, x in backbone.state_dict().items()}
        shapes = {f"{head}.weight": (outputs, 32), f"{head}.bias": (outputs,)}
        if pooled:
            name = f"{family}.pooler.dense"
            shapes |= {f"{name}.weight": (32, 32), f"{name}.bias": (32,)}
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
        names = ("RobertaPrefixFor" if family == "roberta" else "BertPrefixFor") + architecture
        settings = {"architectures": [names], "model_type": family, "hidden_dropout_prob": 0.1}
        if kind.endswith("classification"):
            settings["id2label"] = {"0": "no", "1": "maybe", "2": "yes"}
        (folder / "config.json").write_text(json.dumps(settings))
        return backbone, folder, tensors

    return make


def apply(tensors, layer, x):
    return linear(x, tensors[f"{layer}.weight"], tensors[f"{layer}.bias"])


def official_logits(backbone, family, kind, tensors, ids):
    """Of one row: the prefix as a cache of P tokens, so that positions begin at P."""
    flat = tensors["prefix_encoder.embedding.weight"]
    if "prefix_encoder.trans.0.weight" in tensors:
        hidden = torch.tanh(apply(tensors, "prefix_encoder.trans.0", flat))
        flat = apply(tensors, "prefix_encoder.trans.2", hidden)
    # P, layers * 2, heads, head_dim -> a pair for each layer
    pairs = flat.view(len(flat), 6, 4, 8).permute(1, 2, 0, 3).split(2)
    start = len(flat) + (2 if family == "roberta" else 0)
    positions = torch.arange(start, start + ids.shape[1])[None]
    states = states_with_prompt(backbone, {"input_ids": ids, "position_ids": positions}, pairs)[0]
    if kind in ("sequence-classification", "multiple-choice"):
        states = torch.tanh(apply(tensors, f"{family}.pooler.dense", states[0]))
    return apply(tensors, OFFICIAL[kind][1], states)


@torch.no_grad()
@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("kind", OFFICIAL)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_official_checkpoint(official, family, kind, projection):
    backbone, folder, tensors = official(family, kind, projection)
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
        wanted = official_logits(backbone, family, kind, tensors, ids[row : row + 1, :length])
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config__architecture": "lora"}, "expected architecture 'prefix_tuning', got 'lora'"),
        ({"config": None}, "expected architecture 'prefix_tuning', got None"),
        ({"config__use_gating": True}, "use_gating: gates that depend on the input"),
        (
            {"config__flat": False, "config__non_linearity": "relu"},
            "non_linearity: expected 'tanh'",
        ),
        ({"config__leave_out": []}, "prompt: expected"),
        ({"model_type": "roberta"}, "expected model_type 'bert' of .*, got 'roberta'"),
        ({"name": "other"}, "source: expected tensors of .prefix_tunings.other.self_prefix."),
        ({"config__prefix_length": 5}, "expected a prefix_length that divides"),
        ({"config__prefix_length": 2}, "prompt: expected"),
        ({"config__prefix_length": 0}, "expected a prefix_length that divides"),
    ],
)
def test_adapters_that_are_refused(changes, message, tmp_path):
    folder = copy_case("bert-flat", tmp_path)
    edit(folder / "adapter_config.json", **changes)
    model = load_backbone(folder / "backbone")
    with pytest.raises(ValueError, match=message):
        import_prompt(model, folder, "task")
    assert not model.tasks


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("bert-mlp", {"config__use_pooler": True}, "use_pooler: expected a head on the first"),
        ("bert-mlp", {"config__head_type": "causal_lm"}, "head_type: expected classification or"),
        ("bert-mlp", {"config__activation_function": "relu"}, "head_activation: expected one of"),
    ],
)
def test_heads_of_adapters_that_are_refused(case, changes, message, tmp_path):
    folder = copy_case(case, tmp_path)
    edit(folder / "head_config.json", **changes)
    with pytest.raises(ValueError, match=message):
        import_prompt(load_backbone(folder / "backbone"), folder, "task")


@pytest.mark.parametrize(
    ("case", "file", "name"),
    [
        ("bert-flat", "adapter_config.json", "name"),
        ("bert-flat", "adapter_config.json", "config.prefix_length"),
        ("bert-mlp", "adapter_config.json", "config.bottleneck_size"),
        ("bert-mlp", "head_config.json", "config"),
    ],
)
def test_adapters_without_a_field(case, file, name, tmp_path):
    folder = copy_case(case, tmp_path)
    settings = json.loads((folder / file).read_text())
    *outer, last = name.split(".")
    del (settings[outer[0]] if outer else settings)[last]
    (folder / file).write_text(json.dumps(settings))
    model = load_backbone(folder / "backbone")
    with pytest.raises(ValueError, match=f"{file}: expected {last}, got"):
        import_prompt(model, folder, "task")
    assert not model.tasks


@pytest.mark.parametrize("case", ["bert-flat", "bert-mlp"])
def test_adapters_without_a_tensor(case, tmp_path):
    for removed in range(3):
        folder = copy_case(case, tmp_path / str(removed))
        place = folder / "pytorch_adapter.bin"
        tensors = torch.load(place, weights_only=True)
        names = sorted({key.split("self_prefix.")[1] for key in tensors})
        gone = names[removed % len(names)]
        torch.save({k: x for k, x in tensors.items() if not k.endswith(gone)}, place)
        model = load_backbone(folder / "backbone")
        with pytest.raises(ValueError, match=r"(source|prompt): expected"):
            import_prompt(model, folder, "task")
        assert not model.tasks


def test_command(tmp_path):
    source, output = ADAPTERS / "bert-mlp", tmp_path / "mood"
    arguments = ["convert", str(source), "--output", str(output)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "error: backbone:" in result.stderr
    arguments += ["--backbone", str(source / "backbone")]
    wrong = CliRunner().invoke(app, [*arguments, "--labels", "no,yes"])
    assert "error: labels: expected 3" in wrong.stderr
    assert not output.exists()
    result = CliRunner().invoke(app, [*arguments, "--labels", "no,maybe,yes"])
    assert result.exit_code == 0, result.stderr
    assert "from adapters: 'mood'" in result.stdout
    again = CliRunner().invoke(app, arguments)
    assert "error: output:" in again.stderr
    refused = CliRunner().invoke(
        app, ["convert", str(output), "--output", str(tmp_path / "peft"), "--to", "peft"]
    )
    assert (
        "error: position_offset: PEFT computes with 4, got a prompt trained with 0"
        in refused.stderr
    )

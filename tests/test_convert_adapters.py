"""Prompts of adapters against what it computes, folders that are refused, and the command."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel
from typer.testing import CliRunner

from ptv2 import ClipPromptModel, PromptModel
from ptv2.cli import app
from ptv2.convert import import_prompt, load_backbone
from tests.foreign_files import edit

ADAPTERS = Path(__file__).parent / "data" / "adapters"
SIZES = dict(
    vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16
)
INPUTS = ("input_ids", "attention_mask", "pixel_values")
CASES = sorted(path.name for path in ADAPTERS.iterdir() if path.is_dir())


def copy_case(case, tmp_path):
    return shutil.copytree(ADAPTERS / case, tmp_path / case)


def computed(model, inputs):
    """What `task` gives."""
    if not isinstance(model, ClipPromptModel):
        return model(**inputs, task="task")
    tasks = {
        f"{part}_task": "task" if "task" in encoder.tasks else None
        for part, encoder in (("text", model.text), ("image", model.images))
    }
    return model(**inputs, **tasks)


@pytest.mark.filterwarnings("ignore:adapters adds 1")
@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_adapters(case, tmp_path):
    """The folders hold what adapters 1.3.0 saved, and what it computes with it."""
    imported, model = (load_backbone(ADAPTERS / case / "backbone").eval() for _ in range(2))
    assert import_prompt(imported, ADAPTERS / case, "task") == "adapters"
    imported.save_task("task", tmp_path / "saved")
    model.load_task(tmp_path / "saved")
    stored = load_file(ADAPTERS / case / "outputs.safetensors")
    inputs = {name: x for name, x in stored.items() if name in INPUTS}
    names = stored.keys() - inputs.keys()
    assert names
    mask = inputs.get("attention_mask")
    for name in names:
        got, expected = computed(model, inputs)[name], stored[name]
        if mask is not None and mask.shape == expected.shape[:2]:  # of tokens
            got, expected = got[mask.bool()], expected[mask.bool()]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    if case in ("roberta-flat", "vit-mlp"):
        assert model.tasks["task"].labels == ("no", "maybe", "yes")


@pytest.mark.filterwarnings("ignore:adapters adds 1")
def test_layers_that_are_left_out():
    """In ALBERT's groups of layers, and in CLIP, whose layers for images count on."""
    expected = {
        "bert-flat": (0, 2), "distilbert-flat": (1, 2), "albert-mlp": (0, 1), "bert-mlp": None
    }  # fmt: skip
    for case, layers in expected.items():
        model = load_backbone(ADAPTERS / case / "backbone")
        import_prompt(model, ADAPTERS / case, "task")
        assert model.tasks["task"].layers == layers
    clip = load_backbone(ADAPTERS / "clip-flat" / "backbone")
    import_prompt(clip, ADAPTERS / "clip-flat", "task")
    assert clip.text.tasks["task"].layers == (0, 2)
    assert clip.images.tasks["task"].layers == (1,)


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
        ("vit-mlp", {"config__multilabel": True}, "multilabel: expected one label an image"),
    ],
)
def test_heads_of_adapters_that_are_refused(case, changes, message, tmp_path):
    folder = copy_case(case, tmp_path)
    edit(folder / "head_config.json", **changes)
    with pytest.raises(ValueError, match=message):
        import_prompt(load_backbone(folder / "backbone"), folder, "task")


def test_a_head_with_other_layers(tmp_path):
    folder = copy_case("bert-mlp", tmp_path)
    place = folder / "pytorch_model_head.bin"
    head = torch.load(place, weights_only=True)
    torch.save(head | {"heads.task.norm.weight": torch.ones(2)}, place)
    with pytest.raises(ValueError, match="head: expected the layers of a prediction head, got"):
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


@pytest.mark.parametrize(
    ("case", "gone"),
    [("bert-flat", "control_trans"), ("bert-mlp", "wte.weight"), ("bert-mlp", "trans.0.bias"),
     ("bert-mlp", "control_trans.2.weight")],
)  # fmt: skip
def test_adapters_without_a_tensor(case, gone, tmp_path):
    folder = copy_case(case, tmp_path)
    place = folder / "pytorch_adapter.bin"
    tensors = torch.load(place, weights_only=True)
    kept = {k: x for k, x in tensors.items() if not k.endswith(gone)}
    assert len(kept) < len(tensors)
    torch.save(kept, place)
    model = load_backbone(folder / "backbone")
    with pytest.raises(ValueError, match=r"(source|prompt): expected"):
        import_prompt(model, folder, "task")
    assert not model.tasks


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("adapter_config", {"config__prefix_length": None}, "expected prefix_length of type int"),
        ("adapter_config", {"config__bottleneck_size": "6"}, "expected bottleneck_size of type"),
        ("adapter_config", {"config__dropout": [0.1]}, "expected dropout of type float"),
        ("adapter_config", {"config__leave_out": 1}, "expected leave_out of type list, got 1"),
        ("adapter_config", {"config__leave_out": [[1]]}, "expected leave_out, numbers of layers"),
        ("adapter_config", {"name": 3}, "expected name of type str, got 3"),
        ("head_config", {"config__head_type": []}, "expected head_type of type str"),
        ("head_config", {"config": None}, "expected config of type dict, got None"),
        ("head_config", {"config__label2id": ["a"]}, "expected label2id of type dict"),
        ("head_config", {"config__label2id": {"a": 0, "b": 0, "c": 2}}, "label2id: expected the"),
        ("head_config", {"config__label2id": {"a": 0, "b": "1"}}, "label2id: expected the num"),
    ],
)
def test_fields_of_adapters_that_are_odd(file, changes, message, tmp_path):
    folder = copy_case("bert-mlp", tmp_path)
    edit(folder / f"{file}.json", **changes)
    model = load_backbone(folder / "backbone")
    with pytest.raises(ValueError, match=message):
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
    result = CliRunner().invoke(app, [*arguments, "--labels", "no, maybe,yes"])
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


def test_distilbert_warns():
    """Its prefix in adapters depends on whether a batch has padding."""
    model = load_backbone(ADAPTERS / "distilbert-flat" / "backbone")
    with pytest.warns(UserWarning, match="adds 1 to the scores of DistilBERT's prefix"):
        import_prompt(model, ADAPTERS / "distilbert-flat", "task")


def test_deberta_v1_is_refused(tmp_path):
    """Its attention in adapters has a random bias, which no file has."""
    folder = copy_case("deberta-v2-mlp", tmp_path)
    edit(folder / "adapter_config.json", model_type="deberta")
    backbone = AutoModel.from_config(AutoConfig.for_model("deberta", **SIZES))
    model = PromptModel(backbone)
    with pytest.raises(ValueError, match=r"expected model_type 'deberta' of .* deberta-v2.*, got"):
        import_prompt(model, folder, "task")


def test_clip_takes_no_half_of_a_folder(tmp_path):
    folder = copy_case("clip-flat", tmp_path)
    place = folder / "pytorch_adapter.bin"
    tensors = torch.load(place, weights_only=True)
    model = load_backbone(folder / "backbone")
    bad = {k: x[:-16] if "clip_vision_model" in k else x for k, x in tensors.items()}
    torch.save(bad, place)
    with pytest.raises(ValueError, match="prompt: expected"):
        import_prompt(model, folder, "task")
    poisoned = {k: x * float("nan") if "clip_vision_model" in k else x for k, x in tensors.items()}
    torch.save(poisoned, place)
    with pytest.raises(ValueError, match="expected finite values"):
        import_prompt(model, folder, "task")
    assert not model.text.tasks
    assert not model.images.tasks
    for name in ("head_config.json", "pytorch_model_head.bin"):
        shutil.copy(ADAPTERS / "bert-mlp" / name, folder)
    with pytest.raises(ValueError, match="expected no head on CLIP"):
        import_prompt(model, folder, "task")
    edit(folder / "adapter_config.json", peft_type="PREFIX_TUNING")
    with pytest.raises(ValueError, match="expected a folder of adapters for CLIP"):
        import_prompt(model, folder, "task")


def test_command_for_clip(tmp_path):
    source, output = ADAPTERS / "clip-mlp", tmp_path / "pets"
    arguments = ["--output", str(output), "--backbone", str(source / "backbone")]
    result = CliRunner().invoke(app, ["convert", str(source), *arguments])
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in output.iterdir()) == ["clip.json", "images", "text"]

"""Prompts on disk: equal after loading, whole after a kill, refused when anything is off."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptv2 import PromptConfig, PromptModel
from ptv2.storage import write_text

CONFIG = PromptConfig(
    task="sequence-classification", labels=("a", "b"), prompt_length=4, init_std=1.0
)


@pytest.fixture
def backbone(tiny_backbone):
    return lambda **changes: tiny_backbone("bert", **changes)


@pytest.fixture
def model(backbone):
    model = PromptModel(backbone()).eval()
    model.add_task("sst2", CONFIG)
    return model


@pytest.fixture
def ids():
    return torch.randint(4, 100, (2, 6))


@pytest.mark.parametrize("injection", ["key-value", "hidden-state"])
@pytest.mark.parametrize("parametrization", ["direct", "mlp"])
def test_round_trip(model, backbone, ids, tmp_path, parametrization, injection):
    values = {"parametrization": parametrization, "injection": injection, "layers": (0, 2)}
    config = PromptConfig(**CONFIG.to_dict() | values)
    model.add_task("x", config)
    expected = model(input_ids=ids, task="x").logits
    model.save_task("x", tmp_path / "x")
    other = PromptModel(backbone()).eval()
    assert other.load_task(tmp_path / "x") == "x"
    assert torch.equal(other(input_ids=ids, task="x").logits, expected)
    assert other.tasks["x"] == config
    assert other.key_value("x").shape == (2, 2, 4, 4, 8)
    if config.folds:  # without the parametrisation it is a plain prompt that computes the same
        description = json.loads((tmp_path / "x" / "prompt_config.json").read_text())
        description["training"] = {}
        (tmp_path / "x" / "prompt_config.json").write_text(json.dumps(description))
        assert other.load_task(tmp_path / "x", name="folded") == "folded"
        folded = other(input_ids=ids, task="folded").logits
        torch.testing.assert_close(folded, expected, rtol=0, atol=1e-5)
        assert not other.tasks["folded"].folds


def test_files(model, tmp_path):
    model.save_task("sst2", tmp_path)
    names = {"README.md", "prompt.safetensors", "prompt_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    tensors = load_file(tmp_path / "prompt.safetensors")
    assert set(tensors) == {"key_value", "head.linear.weight", "head.linear.bias"}
    assert tensors["key_value"].shape == (3, 2, 4, 4, 8)


def test_saving_again_replaces_and_keeps_other_files(model, tmp_path):
    mlp = PromptConfig(**CONFIG.to_dict() | {"parametrization": "mlp"})
    model.add_task("mlp", mlp)
    model.save_task("mlp", tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    model.save_task("sst2", tmp_path)
    assert not (tmp_path / "training.safetensors").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    model.load_task(tmp_path, name="again")
    assert torch.equal(model.key_value("again"), model.key_value("sst2"))


def test_what_is_not_an_asset_is_not_overwritten(model, tmp_path):
    (tmp_path / "README.md").write_text("precious")
    with pytest.raises(FileExistsError, match="would overwrite"):
        model.save_task("sst2", tmp_path)
    assert (tmp_path / "README.md").read_text() == "precious"
    with pytest.raises(FileExistsError, match="expected a folder"):
        model.save_task("sst2", tmp_path / "README.md")


@pytest.mark.parametrize("step", ["write", "commit", "move"])
def test_a_failed_save_leaves_an_asset_whole(model, tmp_path, monkeypatch, step):
    model.save_task("sst2", tmp_path)
    old = model.key_value("sst2").clone()
    with torch.no_grad():
        model.prompts["sst2"].embedding.add_(1)
    calls = {"write": "os.fsync", "commit": "pathlib.Path.rename", "move": "pathlib.Path.replace"}
    with monkeypatch.context() as patch:
        patch.setattr(calls[step], _fail)
        with pytest.raises(OSError, match="disk"):
            model.save_task("sst2", tmp_path)
    model.load_task(tmp_path, name="after")
    # committed before the files are moved: a reader sees the new asset
    expected = old + 1 if step == "move" else old
    torch.testing.assert_close(model.key_value("after"), expected, rtol=0, atol=0)
    model.save_task("sst2", tmp_path)
    names = {"README.md", "prompt.safetensors", "prompt_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == names


def _fail(*args, **kwargs):
    raise OSError("disk full")


def test_kill_at_any_moment(tmp_path):
    """A process that saves assets of equal numbers 0, 1, 2, ... is killed at random moments."""
    script = textwrap.dedent(
        """
        import itertools, sys, torch
        from ptv2.assets import Asset, write_asset
        from ptv2.config import PromptConfig
        config = PromptConfig(task="feature-extraction", prompt_length=64)
        for number in itertools.count():
            tensors = {"key_value": torch.full((6, 2, 4, 64, 8), float(number))}
            backbone = {"name_or_path": str(number), "model_type": "bert"}
            asset = Asset("x", config, backbone, tensors, {})
            write_asset(sys.argv[1], asset)
            print(number, flush=True)
        """
    )
    from ptv2.assets import read_asset

    path = ["kernels", "."]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(os.path.abspath(p) for p in path)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        for _ in range(5):
            written = int(process.stdout.readline())
        time.sleep(float(torch.rand(1, generator=generator)) * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        asset = read_asset(tmp_path)
        values = asset.tensors["key_value"].unique()
        assert len(values) == 1
        assert float(values) == float(asset.backbone["name_or_path"]) >= written


def edit_config(directory, **changes):
    path = directory / "prompt_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip_a_byte(directory):
    path = directory / "prompt.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def replace_tensors(directory, tensors):
    """A consistent asset, checksum and shapes included, that holds other tensors."""
    import hashlib

    from ptv2.assets import _shapes

    save_file(tensors, directory / "prompt.safetensors")
    data = (directory / "prompt.safetensors").read_bytes()
    sums = {"prompt.safetensors": hashlib.sha256(data).hexdigest()}
    edit_config(directory, sha256=sums, tensors=_shapes(tensors))


def change_tensors(directory, **changes):
    tensors = load_file(directory / "prompt.safetensors") | changes
    replace_tensors(directory, {name: x for name, x in tensors.items() if x is not None})


BROKEN = {
    "version": (lambda d: edit_config(d, format_version=2), "expected format_version 1, got 2"),
    "no json": (lambda d: (d / "prompt_config.json").write_text("{"), "not valid JSON"),
    "json list": (lambda d: (d / "prompt_config.json").write_text("[]"), "expected a JSON object"),
    "field": (lambda d: edit_config(d, config={"task": "x"}), "task: expected one of"),
    "byte": (flip_a_byte, "corrupt, its SHA-256"),
    "missing tensor": (lambda d: change_tensors(d, key_value=None), "expected the tensors"),
    "extra tensor": (lambda d: change_tensors(d, more=torch.zeros(1)), "expected the tensors"),
    "shape": (
        lambda d: change_tensors(d, key_value=torch.zeros(3, 2, 4, 5, 8)),
        "expected the tensors",
    ),
    "dtype": (
        lambda d: change_tensors(d, key_value=torch.zeros(3, 2, 4, 4, 8).half()),
        "expected the tensors",
    ),
    "nan": (
        lambda d: change_tensors(d, key_value=torch.full((3, 2, 4, 4, 8), float("nan"))),
        "key_value: expected finite values",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_asset_changes_nothing(model, tmp_path, case):
    model.save_task("sst2", tmp_path)
    harm, message = BROKEN[case]
    harm(tmp_path)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        model.load_task(tmp_path, name="other")
    assert list(model.tasks) == ["sst2"]
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_missing_asset(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected prompt_config\.json in"):
        model.load_task(tmp_path / "nowhere")


def test_another_backbone(model, backbone, tmp_path):
    model.save_task("sst2", tmp_path)
    other = backbone()
    with torch.no_grad():
        other.encoder.layer[1].output.dense.weight[0, 0] += 0.1
    with pytest.raises(ValueError, match=r"was trained on the backbone .* differ from"):
        PromptModel(other).load_task(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_same_backbone_in_16_bits(model, backbone, tmp_path, dtype):
    model.save_task("sst2", tmp_path)
    PromptModel(backbone().to(dtype)).load_task(tmp_path)


def test_non_finite_prompt_is_not_saved(model, tmp_path):
    model.save_task("sst2", tmp_path)
    with torch.no_grad():
        model.prompts["sst2"].embedding[0, 0, 0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="key_value: expected finite values"):
        model.save_task("sst2", tmp_path)
    model.load_task(tmp_path, name="old")


def test_name_is_taken(model, tmp_path):
    model.save_task("sst2", tmp_path)
    with pytest.raises(ValueError, match="'sst2' exists already"):
        model.load_task(tmp_path)


def test_a_write_that_torch_does_not_count_is_another_backbone(model, backbone, tmp_path):
    model.save_task("sst2", tmp_path / "before")
    weight = next(model.backbone.encoder.layer[1].parameters())
    weight.data += 0.1
    with pytest.raises(ValueError, match="was trained on the backbone"):
        model.load_task(tmp_path / "before", name="before")
    model.save_task("sst2", tmp_path / "after")
    with pytest.raises(ValueError, match="was trained on the backbone"):
        PromptModel(backbone()).load_task(tmp_path / "after")
    weight.data -= 0.1
    weight.data.copy_(next(backbone().encoder.layer[1].parameters()))
    model.load_task(tmp_path / "before", name="before")


def test_a_committed_save_can_be_read_by_others(model, tmp_path, monkeypatch):
    folder = tmp_path / "prompt"
    model.save_task("sst2", folder)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", _fail)  # as if killed before the files are moved
        with pytest.raises(OSError, match="disk"):
            model.save_task("sst2", folder)
    assert (folder / ".committed").stat().st_mode == folder.stat().st_mode


def test_two_writers_of_a_text_leave_it_whole(tmp_path):
    texts = [json.dumps(["x" * size] * 50) for size in (10, 20_000)]
    place = tmp_path / "a.json"
    write_text(place, texts[0])
    with ThreadPoolExecutor(3) as threads:
        writes = [threads.submit(_write_often, place, text) for text in texts]
        while not all(write.done() for write in writes):
            assert place.read_text() in texts
        for write in writes:
            write.result()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "x")
    assert not list(tmp_path.parent.glob("*.part"))


def _write_often(place, text):
    for _ in range(30):
        write_text(place, text)


@pytest.mark.parametrize("described", [{}, {"name_or_path": None, "model_type": "bert"}])
def test_an_asset_names_its_backbone(model, tmp_path, described):
    model.save_task("sst2", tmp_path)
    path = tmp_path / "prompt_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"backbone": described}))
    with pytest.raises(ValueError, match=r"prompt_config\.json: .*name_or_path"):
        model.load_task(tmp_path, name="again")

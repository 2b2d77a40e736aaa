"""The examples, run as they are on a tiny encoder (those of Ray: test_examples_ray.py)."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ptv2 import PromptModel
from ptv2.demo import REQUESTS
from tests.encoder import examples, save_encoder, write_jsonl

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder, and data for it."""
    folder = tmp_path_factory.mktemp("examples")
    save_encoder(folder / "encoder")
    (folder / "data").mkdir()
    write_jsonl(folder / "data" / "train.jsonl", examples(160))
    write_jsonl(folder / "data" / "dev.jsonl", examples(40, seed=1))
    return folder


def run(script: str, *options: Any) -> str:
    """What an example prints."""
    command = [sys.executable, EXAMPLES / script, *map(str, options)]
    paths = os.pathsep.join([str(ROOT / "kernels"), str(ROOT)])
    own = os.environ | {"PYTHONPATH": paths, "COLUMNS": "120"}
    result = subprocess.run(command, env=own, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout


def numbers(pattern: str, text: str) -> list[float]:
    """What the pattern's group matches, wherever it does."""
    return [float(found) for found in re.findall(pattern, text)]


def test_the_readme_lists_every_example() -> None:
    listed = re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text())
    files = {x.name for x in EXAMPLES.iterdir() if x.suffix in (".py", ".yaml")}
    assert sorted(listed) == sorted(files)


def test_attention(work: Path) -> None:
    printed = run("attention.py", "--backbone", work / "encoder", "--steps", 10)
    bare, unprompted = numbers(r": (\S+) off the stock model", printed)
    assert bare < 1e-5
    assert unprompted < 1e-5
    before, after = numbers(r"similarity .* (-?[\d.]+)", printed)
    assert after > before


def test_own_module() -> None:
    printed = run("own_module.py", "--batch", 3, "--length", 40, "--prompt-length", 16)
    concatenating, own = numbers(r"keeps ([\d.]+) MiB", printed)
    assert own < concatenating
    assert max(numbers(r"differ by (\S+)", printed)) < 1e-5


def test_trainer(work: Path, tmp_path: Path) -> None:
    place = ("--backbone", work / "encoder", "--data", work / "data")
    options = ("--output", tmp_path / "prompt", "--batch-size", 8, "--epochs", 10)
    printed = run("trainer.py", *place, *options)
    trained, loaded = numbers(r"accuracy .*: ([\d.]+)\n", printed)
    assert trained == loaded
    assert loaded > 0.8
    assert PromptModel.from_pretrained(work / "encoder").load_task(tmp_path / "prompt") == "intent"


def test_sweep(work: Path, tmp_path: Path) -> None:
    place = ("--backbone", work / "encoder", "--data", work / "data")
    printed = run("sweep.py", *place, "--output", tmp_path / "sweep", "--epochs", 2)
    table = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    names = [row["name"] for row in table["runs"]]
    assert len(names) == 4
    model = PromptModel.from_pretrained(work / "encoder")
    for row in table["runs"]:
        assert f"{row['score']:.4f}" in printed
        assert model.load_task(tmp_path / "sweep" / row["name"]) == row["name"]
    assert {name.split("-")[0] for name in table["best"]} == {"intent", "slots"}
    for name in table["best"]:
        assert printed.count(f"  {name}: ") == len(REQUESTS)


def test_mixed_tasks(work: Path) -> None:
    place = ("--backbone", work / "encoder", "--data", work / "data")
    printed = run("mixed_tasks.py", *place, "--examples", 64, "--seconds", 0.5)
    assert len(re.findall(r"-> (intent|slots): \{'(label|tags)'", printed)) == 2 * len(REQUESTS)
    assert "version 2 of 'intent' is loaded" in printed
    for text in REQUESTS:
        (answers,) = re.findall(rf"^{text}: (.*)$", printed, re.MULTILINE)
        first, second = ast.literal_eval(answers)  # the labels, in the order of their answers
        assert (first.islower(), second.isupper()) == (True, True)


def test_from_peft(work: Path) -> None:
    pytest.importorskip("peft")
    place = ("--backbone", work / "encoder", "--data", work / "data")
    printed = run("from_peft.py", *place, "--steps", 3, "--tokens", 5)
    assert "from PEFT: 5 rows" in printed
    here, back = numbers(r"the logits differ by (\S+)", printed)
    assert here < 1e-5
    assert back < 1e-5
    assert len(re.findall(r": (?:bad|good) \(0\.\d+\)", printed)) == len(REQUESTS)

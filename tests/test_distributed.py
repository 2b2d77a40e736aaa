"""Two processes train one prompt (torchrun, gloo, CPU)."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.encoder import save_encoder
from tests.two_processes import CONFIG, SMALL, run

ROOT = Path(__file__).parents[1]


def torchrun(*arguments: object) -> str:
    """Standard output of two processes."""
    path = os.pathsep.join([str(ROOT / "kernels"), str(ROOT)])
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    result = subprocess.run(
        [sys.executable, *launch, *(str(argument) for argument in arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    save_encoder(folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    said = torchrun("-m", "tests.two_processes", folder / "encoder", folder)
    return json.loads(said.splitlines()[-1])


def test_both_processes_end_with_the_same_prompt(found: dict[str, Any]) -> None:
    for name in ("small", "whole", "resumed"):
        first, second = found[name]["digests"]
        assert first == second


def test_two_processes_equal_one_with_the_batch_of_both(
    folder: Path, found: dict[str, Any]
) -> None:
    alone = run(folder / "encoder", folder / "alone", SMALL, replace(CONFIG, batch_size=16))
    assert alone["steps"] == found["small"]["steps"] == 3
    for a, b in zip(alone["history"], found["small"]["history"], strict=True):
        assert {k: v for k, v in b.items() if k != "train_loss"} == pytest.approx(
            {k: v for k, v in a.items() if k != "train_loss"}, abs=1e-5
        )
    expected, got = (
        load_file(folder / name / "prompt.safetensors") for name in ("alone", "small")
    )
    for name, x in expected.items():
        assert (got[name] - x).abs().max() < 1e-5


def test_resuming_within_an_epoch_is_bitwise_the_same(folder: Path, found: dict[str, Any]) -> None:
    assert found["whole"]["steps"] == 9  # five batches, one repeated, in threes
    assert found["resumed"] == found["whole"]
    prompts = [(folder / n / "prompt.safetensors").read_bytes() for n in ("whole", "resumed")]
    assert prompts[0] == prompts[1]


def test_all_processes_fail_together(found: dict[str, Any]) -> None:
    assert len(found["refused"]) == 2
    assert all("small is not empty; choose another, or resume" in x for x in found["refused"])
    assert len(found["apart"]) == 2
    assert all("output: expected a directory that all machines share" in x for x in found["apart"])

"""`make gpu`, rehearsed on the CPU at toy sizes: every step runs and writes its result."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
STEPS = ("hardware", "check", "kernel", "tiles", "kernel-tuned", "host", "model", "serving")


def rehearse(folder, *arguments, **environment):
    command = [sys.executable, SCRIPT, "--rehearse", "--results", folder, *arguments]
    env = os.environ | environment
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_every_step_writes_its_result(tmp_path):
    result = rehearse(tmp_path)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    for step in STEPS:
        found = json.loads((tmp_path / "rehearsal" / f"{step}.json").read_text())
        assert found["finished"], step
        assert found["provenance"]["versions"]["torch"], step
    tiles = json.loads((tmp_path / "rehearsal" / "tiles.json").read_text())
    rows = [row for rows in tiles["tuned"].values() for row in rows]
    assert rows
    assert not [row for row in rows if "refused" in row]
    kernel = json.loads((tmp_path / "rehearsal" / "kernel.json").read_text())
    rows = {row["rival"]: row for row in kernel["problems"]["bank"]["rivals"]}
    assert rows["ptv2 triton"]["seconds"]["forward, warm"] > 0


def test_goes_on_where_it_was_stopped(tmp_path):
    """A result of the same commit is kept; an older one, or one that failed, is made again."""
    path = tmp_path / "rehearsal" / "hardware.json"
    for content, again in (
        ({"finished": True, "commit": "abc"}, False),
        ({"finished": False, "commit": "abc"}, True),
        ({"finished": True, "commit": "abd"}, True),
    ):
        path.parent.mkdir(exist_ok=True)
        stored = {"finished": content["finished"], "provenance": {"commit": content["commit"]}}
        path.write_text(json.dumps(stored))
        result = rehearse(tmp_path, "--steps", "hardware", PTV2_COMMIT="abc")
        assert result.returncode == 0, result.stderr
        assert ("hardware" in json.loads(path.read_text())) == again


def test_needs_a_gpu():
    result = subprocess.run(
        [sys.executable, SCRIPT],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "no NVIDIA GPU is visible" in result.stderr


def test_unknown_step(tmp_path):
    result = rehearse(tmp_path, "--steps", "kernels")
    assert result.returncode == 2
    assert "--steps: expected some of hardware, check" in result.stderr

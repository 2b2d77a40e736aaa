"""The CPU benchmark of a small encoder, at toy sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.encoder import write_jsonl

ROOT = Path(__file__).parents[1]


def test_measures_memory_and_time_of_both(tmp_path: Path, minilm_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    rows = [{"text": "fine " * (1 + i % 9), "label": "good"} for i in range(128)]
    write_jsonl(tmp_path / "sst2" / "train.jsonl", rows)
    output = tmp_path / "result.json"
    script = [str(ROOT / "benchmarks" / "bench_cpu_model.py"), "--toy", "--output", str(output)]
    path = os.pathsep.join([str(ROOT / "kernels"), str(ROOT)])
    subprocess.run(
        [sys.executable, *script, "--data", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        capture_output=True,
    )
    result = json.loads(output.read_text())
    for dtype in ("torch.float32", "torch.bfloat16"):
        part = result["training step"][dtype]
        assert set(part["seconds"]) == set(part["peak bytes"]) == {"ptv2", "stock"}
        assert min(part["peak bytes"].values()) > 0
    (smallest, *_) = result["packed"].values()
    assert smallest["longest"] == 9 + 2  # [CLS] and [SEP]
    assert min(smallest["seconds"].values()) > 0

"""`benchmarks/bench_overload.py` with a tiny encoder, and little of it."""

import json
from pathlib import Path

from tests.encoder import save_encoder

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_a_tiny_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench_overload

    monkeypatch.setattr(bench_overload, "encoder_directory", lambda: tmp_path / "encoder")
    measured, rates = bench_overload.capacity, []

    async def capacity(*args):
        """More than the few places, however slow the machine is."""
        rates.append(await measured(*args))
        return 50.0

    monkeypatch.setattr(bench_overload, "capacity", capacity)
    save_encoder(tmp_path / "encoder")
    output = tmp_path / "overload.json"
    options = ["--rounds", "1", "--seconds", "0.5", "--waiting", "8", "--times", "20"]
    monkeypatch.setattr("sys.argv", ["bench_overload", *options, "--output", str(output)])
    bench_overload.main()
    found = json.loads(output.read_text())
    assert found["statuses"].keys() == {"200", "429"}
    assert found["goodput"] > 0
    assert 0 < found["refused_ms"]["0.5"] <= found["refused_ms"]["0.99"]
    assert len(rates) == len(found["capacity"]) == len(found["memory_mb"]) == 2
    assert all(isinstance(rate, float) for rate in rates)

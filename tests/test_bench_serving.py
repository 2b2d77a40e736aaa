"""The benchmark of serving: its load and its search, and all of it at a tiny size."""

import csv
import json
import math
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.encoder import examples, save_encoder, write_jsonl

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks import each other as scripts do."""
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_requests_are_the_same_at_every_rate_and_follow_zipf() -> None:
    from serving_load import draw_requests

    drawn = list(islice(draw_requests([[1], [2, 3]], 4, 1.0, seed=3), 2000))
    assert drawn[:5] == list(islice(draw_requests([[1], [2, 3]], 4, 1.0, seed=3), 5))
    assert drawn[-1][0] == pytest.approx(2000, rel=0.1)
    counts = [sum(request.task == task for _, request in drawn) for task in range(4)]
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.2)
    assert counts[0] / counts[3] == pytest.approx(4, rel=0.2)


def test_latency_counts_from_the_moment_a_request_is_due() -> None:
    from serving_load import Request, Worker, measure

    batches = []

    def run(batch):
        batches.append([request.task for request in batch])
        time.sleep(0.05)
        yield list(range(len(batch))), [[0.0]] * len(batch)

    worker = Worker(run, tokens=4)
    requests = [Request(i, [1, 1]) for i in range(5)]
    found = measure(worker, requests, [0.0] * 5, bound=600.0)
    assert found["held"]
    assert found["answered"] == 5
    assert sum(batches, []) == [0, 1, 2, 3, 4]  # noqa: RUF017
    assert max(map(len, batches)) == 2
    assert found["p99"] >= 0.14  # the third batch ends after three times 0.05 s
    assert found["p50"] <= found["p95"] <= found["p99"]

    late = measure(worker, requests * 100, [0.0] * 500, bound=0.2)
    assert not late["held"]
    assert late["p99"] is None
    assert late["answered"] < 500  # it has not waited for all
    assert measure(worker, requests, [0.0] * 5, bound=600.0)["answered"] == 5


@pytest.mark.parametrize("limit", [3.0, 50.0, 700.0])
@pytest.mark.parametrize("factor", [1.25, 2.0])
def test_the_highest_rate_is_found_from_below_and_above(limit: float, factor: float) -> None:
    from serving_rounds import PRECISION, highest_rate

    rate, points = highest_rate(lambda rate: {"held": rate <= limit, "rate": rate}, 40.0, factor)
    assert rate <= limit < rate * PRECISION
    assert points[0]["rate"] == 40.0
    assert highest_rate(lambda rate: {"held": False}, 40.0, factor)[0] == 0


def test_answers_that_differ_give_no_speed() -> None:
    from serving_rounds import compare_answers

    class Answering:
        def __init__(self, together: list[float], alone: list[float]) -> None:
            self.found = {"together": [together], "alone": [alone]}

        def call(self, *_: str, **__: int) -> dict:
            return self.found

    same = {"ptv2": Answering([1, 2], [1, 2]), "peft": Answering([1, 2, 0], [1, 2, 0])}
    assert compare_answers(same, 1, 0, 1e-4) == {
        "ptv2, alone": 0,
        "peft, alone": 0,
        "peft, ptv2": 0,
    }
    wrong_answers = (
        Answering([1, 3], [1, 3]),
        Answering([1, 2.1], [1, 2.1]),
        Answering([1, 2], [math.nan, 2]),
        Answering([1, math.inf], [1, 2]),
    )
    for wrong in wrong_answers:
        with pytest.raises(SystemExit, match="no speed is reported"):
            compare_answers(same | {"adapters": wrong}, 1, 0, 1e-4)
    near = {"ptv2": Answering([1, 20], [1, 20]), "peft": Answering([1, 20.1], [1, 20.1])}
    assert compare_answers(near, 1, 0, 0.01)["peft, ptv2"] == pytest.approx(0.1)
    assert compare_answers({"copies": Answering([1], [1])}, 1, 0, 1e-4) == {"copies, alone": 0}


def setup_of(folder: Path, **changes: Any) -> Any:
    from serving_setup import Setup

    texts = folder / "texts.json"
    texts.write_text("[[2, 4, 5, 3], [2, 6, 3]]")
    given = dict(
        encoder=str(save_encoder(folder / "encoder")), texts=str(texts), tasks=3, exponent=1.0,
        prompt_length=4, batch_tokens=64, device="cpu", threads=1, memory=50_000, seed=0,
    )  # fmt: skip
    return Setup(**given | changes)


def test_a_process_answers_and_says_what_it_cannot_do(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from serving_rounds import running

    with running({"copies": sys.executable}, setup_of(tmp_path)) as processes:
        process = processes["copies"]
        with pytest.raises(NotImplementedError, match=r"3 encoders take \d+ bytes"):
            process.call("start", tasks=3)
        assert process.call("start", tasks=1)["torch"] == torch.__version__
        assert process.call("memory", tasks=1)["bytes of a task"] > 4 * 16 * 32
        with pytest.raises(RuntimeError, match="copies: the process has failed at 'nothing'"):
            process.call("nothing")
    assert "has no attribute 'nothing'" in capfd.readouterr().err


HELD = 100.0
"""Requests a second that a system in the process is said to hold, however busy the machine is."""


class InProcess:
    """A system without a process of its own, which is quicker to start."""

    def __init__(self, name: str, script: str, arguments: tuple[str, ...], *_: Any) -> None:
        from serving_process import Commands

        assert script == "serving_process.py"
        self.name = name
        self._commands = Commands(*arguments)

    def call(self, command: str, **arguments: Any) -> Any:
        if command == "measure":
            return self._measure(**arguments)
        return json.loads(json.dumps(getattr(self._commands, command)(**arguments)))

    def _measure(self, *, rate: float, count: int, bound: float, seed: int) -> Any:
        assert bound == 0.4
        found = self._commands.measure(rate=rate, count=count, bound=600.0, seed=seed)
        assert found["answered"] == count
        lost = {"held": False, "p50": None, "p95": None, "p99": None}
        return json.loads(json.dumps(found if rate <= HELD else {**found, **lost}))

    def close(self) -> None:
        pass


@pytest.mark.filterwarnings("ignore")  # PEFT warns of its own use of transformers
def test_a_tiny_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("matplotlib").use("agg")
    import bench_serving
    import serving_rounds

    monkeypatch.setattr(serving_rounds, "Process", InProcess)
    (tmp_path / "sst2").mkdir()
    write_jsonl(tmp_path / "sst2" / "dev.jsonl", examples(20))
    output = tmp_path / "serving.json"

    def bench(*more: str) -> None:
        monkeypatch.setattr("sys.argv", ["bench_serving", "--output", str(output), *more])
        bench_serving.main()

    options = {
        "--data": tmp_path, "--encoder": save_encoder(tmp_path / "encoder"), "--tasks": 3,
        "--prompt-length": 4, "--seconds": 0.05, "--fewest": 5, "--rounds": 1, "--points": 2,
        "--many": 12, "--bound": 400, "--device": "cpu", "--threads": torch.get_num_threads(),
    }  # fmt: skip
    systems = ["--systems", "ptv2", "peft", "adapters", "--memory-tasks", "2", "4"]
    bench(*(str(x) for pair in options.items() for x in pair), *systems)

    results = json.loads(output.read_text())
    assert results["left out"] == {"adapters": "--adapters-python does not say where it is"}
    assert results["versions"]["peft"]["peft"]
    assert results["differences"].keys() == {"ptv2, alone", "peft, alone", "peft, ptv2"}
    rates = results["load"]["highest rate"]
    assert all(HELD / serving_rounds.PRECISION <= rate <= HELD for rate in rates.values())
    ptv2, peft = (
        [row for row in results["memory"] if row["system"] == name] for name in ("ptv2", "peft")
    )
    assert [row["tasks"] for row in ptv2] == [row["tasks"] for row in peft] == [2, 4]
    assert peft[0]["bytes of a task"] == 4 * (4 * 2 * 2 * 16 + 6 * (16 + 1))
    kinds = {"bare", "10 tasks", "12 tasks", "12 tasks in 256 MiB"}
    assert results["engine"]["seconds"].keys() == kinds
    assert results["sizes"]["seconds"].keys() == {"8", "32", "128", "512"}
    assert results["provenance"]["versions"]["torch"]
    assert str(tmp_path) not in json.dumps(results["settings"])
    said = capsys.readouterr().out
    assert "adapters is left out" in said
    assert "times as many" in said
    with output.with_suffix(".csv").open() as file:
        measures = {(row["measure"], row["system"]) for row in csv.DictReader(file)}
    assert ("highest rate, requests a second", "peft") in measures
    assert ("latency p99, seconds", "ptv2") in measures

    bench("--plot", str(tmp_path / "pictures"))
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert len(pictures) == 3
    assert all(x.read_bytes().startswith(b"\x89PNG") for x in pictures)


def test_a_plot_needs_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_serving

    options = ["--output", str(tmp_path / "none.json"), "--plot", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["bench_serving", *options])
    with pytest.raises(SystemExit):
        bench_serving.main()


@pytest.mark.parametrize("other", ["--data", "--encoder"])
def test_random_texts_are_of_no_encoder_or_data(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    other: str,
) -> None:
    import bench_serving

    options = ["--output", str(tmp_path / "x.json"), "--random", other, str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["bench_serving", *options])
    with pytest.raises(SystemExit):
        bench_serving.main()
    assert "--random: expected neither --encoder nor --data" in capsys.readouterr().err

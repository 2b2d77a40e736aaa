"""The suite: its parts at tiny sizes, the report of them, and what differs between two results."""

import json
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ptv2.cli import app
from tests.encoder import examples, save_encoder, write_jsonl

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks import each other as scripts do."""
    monkeypatch.syspath_prepend(BENCHMARKS)


class InProcess:
    """A method without a process of its own, which is quicker to start."""

    def __init__(self, name: str, script: str, arguments: tuple[str, ...], *_: Any) -> None:
        from methods_process import Commands

        assert script == "methods_process.py"
        self._commands = Commands(*arguments)

    def call(self, command: str, **arguments: Any) -> Any:
        from processes import REFUSALS

        try:
            return json.loads(json.dumps(getattr(self._commands, command)(**arguments)))
        except REFUSALS as error:
            raise NotImplementedError(f"{type(error).__name__}: {error}") from None

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of small runs, and with those of larger ones."""
    folder, work = (tmp_path_factory.mktemp(name) for name in ("results", "work"))
    save_encoder(work / "encoder")
    (work / "trec").mkdir()
    for part in ("train", "dev"):
        write_jsonl(work / "trec" / f"{part}.jsonl", examples(24))
    methods = (
        "ptv2",
        "ptv2-pooler",
        "official",
        "peft-prefix",
        "peft-lora",
        "adapters-prefix",
        "fine-tuning",
    )
    threads = torch.get_num_threads()
    options = ["--data", str(work), "--encoder", str(work / "encoder"), "--prompt-length", "4"]
    options += ["--quick", "--epochs", "2", "--rounds", "2", "--threads", "1"]
    options += ["--device", "cpu", "--methods", *methods]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import bench_methods

        patch.setattr(bench_methods, "Process", InProcess)
        patch.setattr(
            "sys.argv", ["bench_methods", "--output", str(folder / "methods.json"), *options]
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT warns of its own use of transformers
                bench_methods.main()
        finally:
            torch.set_num_threads(threads)
    for name in ("training", "serving", "quality"):
        shutil.copy(BENCHMARKS / "results" / f"{name}.json", folder)
    shutil.copy(BENCHMARKS / "results" / "kernel-avx512.json", folder / "kernel.json")
    about = {"device": "a CPU", "python": "3", "commit": "abc", "date": "today", "versions": {}}
    about |= {"mode": "quick", "failed": None}
    names = ("kernel", "training", "methods", "serving", "quality")
    suite = {"parts": dict.fromkeys(names, about)}
    suite["parts"]["serving"] = about | {"failed": "it <ended> early"}
    (folder / "suite.json").write_text(json.dumps(suite))
    return folder


def test_methods_are_trained_checked_and_measured(results: Path) -> None:
    found = json.loads((results / "methods.json").read_text())["methods"]
    failed = found.pop("adapters-prefix")
    assert "No module named 'adapters'" in failed["failed"]
    for name, method in found.items():
        assert method["difference"] <= 1e-4, name
        assert method["between tasks"] > 10 * method["difference"], name
        history = method["runs"]["0"]["history"]
        assert len(history) == 2
        assert all(0 < epoch["loss"] < 2 for epoch in history)
        assert len(method["seconds"]["text alone"]) == 2
        assert all(x > 0 for kind in method["seconds"].values() for x in kind)
        assert method["peak bytes"] > 0
    ptv2, official = (found[name]["trained parameters"] for name in ("ptv2", "official"))
    assert ptv2 == official
    for what in ("trained parameters", "asset bytes"):
        of = {name: method[what] for name, method in found.items()}
        assert max(of, key=of.__getitem__) == "fine-tuning"


@torch.no_grad()
def test_the_official_method_is_ptv2_with_moved_positions(tmp_path: Path) -> None:
    from methods_models import OfficialModel
    from methods_setup import Setup, collate

    from ptv2 import PromptConfig, PromptModel
    from ptv2.convert.foreign import unflatten

    save_encoder(tmp_path)
    setup = Setup(str(tmp_path), 3, [], [], 4, 8, "fp32", "cpu", 1)
    official = OfficialModel(setup).eval()
    torch.nn.init.normal_(official.prefix.weight)
    model = PromptModel.from_pretrained(tmp_path).eval()
    config = PromptConfig("feature-extraction", prompt_length=4, position_offset=4)
    model.add_task("same", config)
    model.prompts["same"].embedding.data = unflatten(official.prefix.weight, model.geometry)
    inputs, _ = collate([([2, 7, 8, 9, 3], 0), ([2, 5, 3], 0)], "cpu")
    states = model(**inputs, task="same").last_hidden_state
    expected = official.classifier(official.bert.pooler(states))
    torch.testing.assert_close(official(**inputs).logits, expected, rtol=0, atol=1e-5)


def test_a_picture_of_the_methods(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    import bench_methods

    options = ["--output", str(results / "methods.json"), "--plot", str(tmp_path / "methods.svg")]
    monkeypatch.setattr("sys.argv", ["bench_methods", *options])
    bench_methods.main()
    assert "LoRA (PEFT)" in (tmp_path / "methods.svg").read_text()
    options = ["--output", str(tmp_path / "none.json"), "--plot", str(tmp_path / "methods.svg")]
    monkeypatch.setattr("sys.argv", ["bench_methods", *options])
    with pytest.raises(SystemExit):
        bench_methods.main()


def test_the_report_shows_all_parts(results: Path) -> None:
    pytest.importorskip("matplotlib")
    from report import write_report

    write_report(results)
    page, text = ((results / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert page.count("<svg") == 1 + 2 + 1 + 1 + 1  # no scores of a quick run
    assert "it &lt;ended&gt; early" in page
    assert not re.findall(r'(?:src|href)="(?!#)|url\((?!#)|<script|<link', page)
    for words in ("P-Tuning v2 (ptv2)", "No module named", "concat, sdpa flash", "wnut17"):
        assert words in page
        assert words in text
    assert "| LoRA (PEFT) |" in text


def test_the_report_as_a_page(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    import report

    shutil.copy(results / "quality.json", tmp_path)
    shutil.copy(results / "kernel.json", tmp_path)
    page = tmp_path / "report.md"
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path), str(page)])
    report.main()
    pictures = re.findall(r"!\[[^<\]]+\]\((.+)\)", page.read_text())
    assert len(pictures) == 2
    assert all((tmp_path / picture).read_text().startswith("<svg") for picture in pictures)
    assert "each run in quality.json names its own" in page.read_text()


def test_the_published_page_and_the_readme_have_the_published_results() -> None:
    pytest.importorskip("matplotlib")
    import report_tables
    from report import markdown, sections

    root = BENCHMARKS.parent
    found = sections(BENCHMARKS / "results")
    assert (root / "docs" / "report.md").read_text() == markdown(found, pictures=True)
    (table,) = report_tables.methods(json.loads((BENCHMARKS / "results/methods.json").read_text()))
    assert table.markdown() in (root / "README.md").read_text()


def test_what_differs_between_two_results(
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    after = tmp_path / "after"
    shutil.copytree(results, after)
    found = json.loads((after / "serving.json").read_text())
    found["load"]["highest rate"]["ptv2"] *= 1.5
    (after / "serving.json").write_text(json.dumps(found))
    (after / "quality.json").unlink()
    suite(monkeypatch, "--compare", results, after)
    said = capsys.readouterr().out
    first = said.splitlines()[1]
    assert "+50.0%" in first
    assert "serving: requests a second, ptv2 / " in first
    assert "ratios differ by 0.0% in the median" in said
    assert f"only in {results}: quality: sst2, " in said
    with pytest.raises(SystemExit, match="no results in common"):
        suite(monkeypatch, "--compare", results, tmp_path)


def suite(monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    """`ptv2 bench` with options."""
    import suite

    monkeypatch.setattr("sys.argv", ["suite", *map(str, options)])
    suite.main()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "expected --output"),
        (("--quick",), "expected --output"),
        (("--report", "--output", "."), "no results in"),
        (("--quick", "--only", "quality", "--output", "."), "--only quality"),
        (("--quick", "--full"), "not allowed with"),
    ],
)
def test_options_that_make_no_sense(
    options: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        suite(monkeypatch, *options)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_part_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    import suite as module

    good = tmp_path / "good.py"
    good.write_text(
        f"import shutil, sys; shutil.copy('{BENCHMARKS}/results/quality.json', sys.argv[2])"
    )
    found = (module.Part("kernel", "no_such_script.py", ()), module.Part("quality", str(good), ()))
    monkeypatch.setattr(module, "parts", lambda args: found)
    with pytest.raises(SystemExit, match=r"kernel: no_such_script.py ended with exit code 2"):
        suite(monkeypatch, "--quick", "--output", tmp_path)
    about = json.loads((tmp_path / "suite.json").read_text())
    assert about["parts"]["kernel"]["failed"]
    assert about["parts"]["quality"]["failed"] is None
    assert json.loads((tmp_path / "quality.json").read_text())
    assert "no_such_script.py ended with exit code 2" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("before", ["full", "quick"])
def test_a_full_run_goes_on_with_a_stopped_one(
    before: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    import suite as module

    script = tmp_path / "part.py"
    script.write_text(
        "import json, pathlib, sys; output = pathlib.Path(sys.argv[2]);"
        "assert 'was stopped' in output.with_name('suite.json').read_text();"
        "runs = json.loads(output.read_text()) if output.exists() else [];"
        "run = dict(task='mood', method='prompt', metric='accuracy', score=len(runs));"
        "output.write_text(json.dumps([*runs, run]))"
    )
    part = module.Part("quality", str(script), ())
    monkeypatch.setattr(module, "parts", lambda args: [part])
    for mode in (before, "full"):
        suite(monkeypatch, f"--{mode}", "--output", tmp_path)
    scores = [run["score"] for run in json.loads((tmp_path / "quality.json").read_text())]
    assert scores == ([0, 1] if before == "full" else [0])


def test_the_command_wants_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["bench", "--quick"])
    assert result.exit_code == 2
    assert "run it in a clone of the sources" in result.output


def micro_run(own: float, rival: float) -> dict[str, object]:
    """What pytest-benchmark writes, of two cases."""
    return {
        "benchmarks": [
            {
                "extra_info": {"name": "a", "own": seconds == own, "part": "forward"},
                "stats": {"min": seconds},
            }
            for seconds in (own, rival)
        ]
    }


def test_micro_ratios_that_grow_are_found() -> None:
    from micro_history import ratios, regressions

    assert ratios(micro_run(2.0, 4.0)) == {"a: forward": 0.5}
    history = [
        {"device": "cpu", "ratios": {"a: forward": x}} for x in (0.9, 0.41, 0.41, 0.4, 0.4, 0.4)
    ]
    assert regressions({"a: forward": 0.47}, history, "cpu") == []
    assert len(regressions({"a: forward": 0.5}, history, "cpu")) == 1
    assert regressions({"a: forward": 0.5}, history, "another") == []


def test_micro_history_keeps_the_median_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import micro_history

    def judge(*own: float) -> list[float]:
        runs = [tmp_path / f"run-{i}.json" for i in range(len(own))]
        for path, seconds in zip(runs, own, strict=True):
            path.write_text(json.dumps(micro_run(seconds, 10.0)))
        options = [*map(str, runs), "--history", str(tmp_path / "history.json"), "--add"]
        monkeypatch.setattr("sys.argv", ["micro_history", *options])
        micro_history.main()
        entries = json.loads((tmp_path / "history.json").read_text())
        return [entry["ratios"]["a: forward"] for entry in entries]

    assert judge(9.0, 5.0, 4.0) == [0.5]
    assert judge(5.5) == [0.5, 0.55]
    with pytest.raises(SystemExit, match=r"slower than before:\n  a: forward: 0\.70"):
        judge(7.0)
    assert judge(5.0) == [0.5, 0.55, 0.5]


def test_a_cpu_is_named_with_what_multiplies() -> None:
    from measure import BF16_PRODUCTS, device_name

    from ptv2_kernels import native

    name = device_name(torch.device("cpu"))
    assert f", {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}" in name
    assert name.endswith(BF16_PRODUCTS[native.product_format(torch.bfloat16)])


def test_problems_without_a_rival_are_counted(results: Path) -> None:
    from report_tables import headline

    found = json.loads((results / "kernel.json").read_text())
    assert "No rival was timed" not in headline(found)
    name, problem = next(iter(found["problems"].items()))
    own = [row for row in problem["rivals"] if row["rival"].startswith("ptv2")]
    found["problems"]["alone"] = {**problem, "rivals": own}
    assert headline(found).endswith("No rival was timed for 1 of the problems.")
    found["problems"] = {name: found["problems"]["alone"]}
    assert headline(found) == "No rival was timed."

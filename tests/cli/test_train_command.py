"""`ptv2 train` end to end, and one clear line for everything a user may get wrong."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ptv2 import __version__
from ptv2.cli.panels import PANELS
from tests.cli.commands import CITIES, SENTIMENT, SHORT, fails, ptv2, training
from tests.encoder import examples, write_jsonl


def test_train_shows_scores_and_writes_the_run(work: Path) -> None:
    result = ptv2(*training(work, *SENTIMENT, *SHORT, "--output", work / "again"))
    for shown in ("accuracy", "macro_f1", "again", "commonest answer", "saved in"):
        assert shown in result.stdout
    assert {path.name for path in (work / "again").iterdir()} == {
        "README.md", "checkpoints", "metrics.json", "prompt.safetensors", "prompt_config.json",
        "run_config.json",
    }  # fmt: skip


def test_a_run_is_resumed_and_overwritten(work: Path, tmp_path: Path) -> None:
    command = (*training(work, *SENTIMENT, *SHORT), "--output", tmp_path / "run")
    assert ptv2(*command).exit_code == 0
    prompt = tmp_path / "run" / "prompt.safetensors"
    first = prompt.read_bytes()
    prompt.unlink()
    assert ptv2(*command, "--resume").exit_code == 0
    assert prompt.read_bytes() == first
    assert ptv2(*command, "--overwrite", "--seed", 1).exit_code == 0
    assert prompt.read_bytes() != first
    assert "started with train.seed = 1, got 0" in fails(*command, "--resume")


def test_csv_gives_the_same_prompt_as_jsonl(work: Path) -> None:
    for kind, name in ((SENTIMENT, "sentiment"), (CITIES, "cities")):
        csv, output = work / "train.csv", work / f"{name}-csv"
        options = ("--name", name, "--train", csv, "--output", output)
        assert ptv2(*training(work, *kind, *SHORT, *options)).exit_code == 0
        tensors = [(work / run / "prompt.safetensors").read_bytes() for run in (name, output)]
        assert tensors[0] == tensors[1]


def test_train_options_reach_the_prompt(work: Path) -> None:
    options = (
        "--text-pair-column", "text_pair", "--label-column", "same", "--layers", "1",
        "--injection", "hidden-state", "--parametrization", "mlp", "--pooling", "first",
    )  # fmt: skip
    result = ptv2(*training(work, *SENTIMENT, *SHORT, *options, "--output", work / "pair"))
    assert result.exit_code == 0, result.output
    config = json.loads((work / "pair" / "prompt_config.json").read_text())["config"]
    assert config["labels"] == ["different", "same"]
    assert (config["layers"], config["pooling"]) == ([1], "first")
    pair = ("--text", "a fine film", "--text-pair", "great")
    result = ptv2("predict", "--prompt", work / "pair", *pair)
    assert json.loads(result.stdout)["answers"]["pair"]["label"] in ("different", "same")


def test_a_dry_run_says_what_training_needs(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--output", tmp_path / "run", "--dry-run", "--memory", "3MB")
    result = ptv2(*training(work, *SENTIMENT, *SHORT), *options, "--packing")
    assert result.exit_code == 0, result.output
    for shown in ("256 prompt, 34 head", "saved for the backward", "largest batch", "in 3.0 MB"):
        assert shown in result.stdout
    assert not (tmp_path / "run").exists()
    message = fails(*training(work, *SENTIMENT), "--output", tmp_path / "run", "--memory", "3MB")
    assert message == "memory: expected --dry-run with it"
    module = sys.modules["ptv2.cli.train"]  # the package has the command by its name
    monkeypatch.setattr(module, "device_memory", lambda device: 3 * 10**6)
    own = ptv2(*training(work, *SENTIMENT, *SHORT), *options[:3], "--packing")
    assert own.stdout == result.stdout


def test_a_folder_without_a_tokenizer(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "encoder", tmp_path / "encoder")
    for path in (tmp_path / "encoder").glob("*token*"):
        path.unlink()
    train = (*training(work, *SENTIMENT, "--output", tmp_path / "run"), "--backbone")
    message = fails(*train, tmp_path / "encoder")
    assert message.startswith("tokenizer: expected one with words, got special tokens alone from")
    other = AutoTokenizer.from_pretrained(work / "encoder")
    other.add_tokens(["one", "two"])
    other.save_pretrained(tmp_path / "encoder")
    message = fails(*train, tmp_path / "encoder")
    assert message.startswith("tokenizer: expected at most the 16 tokens that the backbone has em")


def test_questions_and_choices_from_files_to_answers(work: Path, tmp_path: Path) -> None:
    answers = {"text": ["rome"], "answer_start": [10]}
    question = {"ask": "a", "context": "a film in rome " + "walking " * 30, "answers": answers}
    choice = {"ask": "a film", "choices": ["fine", "in", "dull"], "label": 1}
    for kind, row, options in (
        ("question-answering", question, ("--stride", "8")),
        ("multiple-choice", choice, ("--packing",)),
    ):
        data = write_jsonl(tmp_path / f"{kind}.jsonl", [row] * 6)
        column = ("--question-column", "ask")
        files = ("--train", data, "--validation", data, "--output", tmp_path / kind)
        result = ptv2(*training(work, "--task", kind, *SHORT), *files, *column, *options)
        assert result.exit_code == 0, result.output
        result = ptv2("predict", "--prompt", tmp_path / kind, "--data", data, *column)
        line = json.loads(result.stdout.splitlines()[0])
        assert line["question"] == row["ask"]
        answer = line["answers"][kind]
        assert answer.get("text") in ("fine", "in", "dull") or answer["answer"] in row["context"]
    message = fails("predict", "--prompt", tmp_path / "multiple-choice", "--text", "a film")
    assert message == "text: multiple-choice reads lists of choices, expected --data"
    message = fails(*training(work, *SENTIMENT, "--output", tmp_path / "run", "--stride", "8"))
    assert message == "stride: sequence-classification has no such option, expected none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "tagging"), "task: expected one of sequence-classification, token-classific"),
        ((*SENTIMENT, "--label-column", "lable"), "label_column: expected one of the data's col"),
        ((*SENTIMENT, "--text-column", "b"), "text_column: expected one of the data's columns,"),
        ((*CITIES, "--tokens-column", "b"), "tokens_column: expected one of the data's columns"),
        ((*CITIES, "--text-pair-column", "b"), "text_pair_column: token-classification has no"),
        ((*SENTIMENT, "--train", "none.jsonl"), "data file none.jsonl does not exist"),
        ((*SENTIMENT, "--layers", "x"), "layers: expected numbers such as 0,1,5, got 'x'"),
        ((*SENTIMENT, "--layers", "7"), "layers: expected numbers below 2"),
        ((*SENTIMENT, "--pooling", "max"), "pooling: expected one of mean, first, last, got"),
        ((*SENTIMENT, "--epochs", "0"), "epochs: expected an int of at least 1, got 0"),
        ((*SENTIMENT, "--name", "a b"), "name: expected letters, digits, "),
        ((*SENTIMENT, "--max-length", "0"), "max_length: expected at least 3"),
        ((*SENTIMENT, "--scheduler", "zigzag"), "scheduler: expected one of"),
    ],
)
def test_bad_training_options(
    work: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    output = ("--output", tmp_path / "run")
    assert fails(*training(work, *output, *options)).startswith(message)
    assert not (tmp_path / "run").exists()


def test_an_option_that_nothing_reads(work: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "out")
    message = fails(*training(work, *CITIES, *SHORT), *output, "--pooling", "first")
    assert message == "pooling: token-classification pools nothing, expected none, got 'first'"
    message = fails(*training(work, *SENTIMENT, *SHORT), *output, "--train-split", "test")
    assert message.endswith("train.jsonl has no splits, expected None, got 'test'")
    source = ("--prompt", work / "sentiment", "--data", work / "dev.jsonl", "--split", "dev")
    for command in ("eval", "predict"):
        assert "has no splits" in fails(command, *source)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [], "bad.jsonl: expected at least one example, got none"),
        (lambda rows: [rows[0] | {"tags": ["O"]}], "tags_column: expected one tag a word, but ex"),
        (
            lambda rows: [rows[0], {"text": "a"}],
            "tags_column: example 1 (line 2 of bad.jsonl) has no 'tags'",
        ),
    ],
    ids=["empty", "ragged", "missing"],
)
def test_bad_training_data(work: Path, tmp_path: Path, change: object, message: str) -> None:
    bad = write_jsonl(tmp_path / "bad.jsonl", change(examples(2)))  # type: ignore[operator]
    output = tmp_path / "run"
    for part in ("--train", "--validation"):
        assert message in fails(*training(work, *CITIES, "--output", output, part, bad))
        assert not output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--network-size", 7), "network_size: expected parametrization mlp or lstm with it, got"),
        (
            ("--resume", "--overwrite"),
            "overwrite: expected either --resume or --overwrite, got bo",
        ),
        (("--dry-run", "--resume"), "resume: a dry run trains nothing, expected none with --dry"),
        (("--dry-run", "--overwrite"), "overwrite: a dry run trains nothing, expected none with"),
        (("--dry-run", "--save-steps", 2), "save_steps: a dry run trains nothing, expected none"),
        (("--dry-run", "--memory", ""), "memory: expected a size such as 8GB, got ''"),
        (("--batch-size", 8, "--token-budget", 90), "batch_size: a token budget takes its place"),
        (
            ("--dry-run", "--batch-size", 32, "--token-budget", 5),
            "token_budget: expected at least the longest exampl",
        ),
        (("--scheduler", "constant", "--warmup-ratio", 0.5), "warmup_ratio: the scheduler 'const"),
        (("--init-std", 1, "--start-from-text", "a film"), "init_std: the prompt starts with oth"),
        (
            ("--depth", "input", "--prompt-length", 64),
            "prompt_length: expected at most 29, which leaves 3 of the 32 positions to "
            "a text, got 64",
        ),
        (("--position-offset", 30), "position_offset: expected at most 29, which leaves 3 of the"),
    ],
)
def test_a_training_option_that_nothing_reads(
    work: Path, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    output = ("--output", tmp_path / "run")
    assert fails(*training(work, *SENTIMENT, *SHORT, *output, *options)).startswith(message)
    assert not (tmp_path / "run").exists()


def test_a_spread_is_for_rows_that_a_saved_prompt_lacks(work: Path, tmp_path: Path) -> None:
    start = ("--start-from", work / "sentiment", "--init-std", 0.5, "--output", tmp_path / "run")
    message = fails(*training(work, *SENTIMENT, *SHORT, *start))
    assert message == "init_std: the prompt starts with other values already, expected none"
    longer = ("--prompt-length", 5, "--epochs", 1)
    assert ptv2(*training(work, *SENTIMENT, *start, *longer)).exit_code == 0


def test_an_unknown_backbone(work: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "run", "--backbone", tmp_path / "nowhere")
    assert "nowhere" in fails(*training(work, *SENTIMENT), *output)
    assert not (tmp_path / "run").exists()


def test_files_are_not_overwritten(work: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    output.write_text("mine")
    refused = f"output: {output} exists; choose another or give --overwrite"
    to_file = ("--data", work / "dev.jsonl", "--output", output)
    for command in ("eval", "predict"):
        assert fails(command, "--prompt", work / "sentiment", *to_file) == refused
        assert output.read_text() == "mine"
    for run, message in ((work / "sentiment", "is not empty"), (output, "is a file, expected a")):
        before = run.stat().st_mtime_ns
        assert message in fails(*training(work, *SENTIMENT, *SHORT), "--output", run)
        assert run.stat().st_mtime_ns == before
    assert ptv2("eval", "--prompt", work / "sentiment", *to_file, "--overwrite").exit_code == 0
    assert "accuracy" in json.loads(output.read_text())


def test_help() -> None:
    result = ptv2("--help")
    for command in ("train", "sweep", "eval", "predict", "convert", "info", "demo"):
        assert command in result.stdout
    assert ptv2("--version").stdout.strip() == __version__
    pages = {command: ptv2(command, "--help").stdout for command in ("train", "sweep")}
    for page in pages.values():
        assert all(panel in page for panel in PANELS)
        assert "multiple-choice" in page
        assert "feature-extraction" not in page
    assert "image-classification" in pages["train"]
    assert "image-classification" not in pages["sweep"]

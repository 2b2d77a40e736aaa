"""The commands end to end, and one clear line for everything a user may get wrong."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from ptv2.assets import read_asset
from ptv2.cli import app
from tests.encoder import examples, save_encoder, write_csv, write_jsonl

SENTIMENT = ("--task", "sequence-classification")
CITIES = ("--task", "token-classification")
SHORT = ("--epochs", "2", "--prompt-length", "4", "--batch-size", "8")


def ptv2(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(*arguments: object) -> str:
    """The one line that a command prints when it refuses what it was given."""
    result = ptv2(*arguments)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return lines[0].removeprefix("error: ")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder, data, and two trained prompts."""
    work = tmp_path_factory.mktemp("work")
    save_encoder(work / "encoder")
    write_jsonl(work / "train.jsonl", examples(32))
    write_csv(work / "train.csv", examples(32))
    write_jsonl(work / "dev.jsonl", examples(16, seed=1))
    for kind, name in ((SENTIMENT, "sentiment"), (CITIES, "cities")):
        result = ptv2(*training(work, *kind, *SHORT), "--output", work / name)
        assert result.exit_code == 0, result.output
    return work


def training(work: Path, *options: object) -> tuple[object, ...]:
    files = ("--train", work / "train.jsonl", "--validation", work / "dev.jsonl")
    return ("train", "--backbone", work / "encoder", *files, *options)


def test_train_shows_scores_and_writes_the_run(work: Path) -> None:
    result = ptv2(*training(work, *SENTIMENT, *SHORT, "--output", work / "again"))
    for shown in ("accuracy", "macro_f1", "again", "commonest answer", "saved in"):
        assert shown in result.stdout
    assert {path.name for path in (work / "again").iterdir()} == {
        "README.md", "checkpoints", "metrics.json", "prompt.safetensors", "prompt_config.json",
        "run_config.json",
    }  # fmt: skip


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


def test_a_dry_run_says_what_training_needs(work: Path, tmp_path: Path) -> None:
    options = ("--output", tmp_path / "run", "--dry-run", "--memory", "3MB")
    result = ptv2(*training(work, *SENTIMENT, *SHORT), *options, "--packing")
    assert result.exit_code == 0, result.output
    for shown in ("256 prompt, 34 head", "saved for the backward", "largest batch", "in 3.0 MB"):
        assert shown in result.stdout
    assert not (tmp_path / "run").exists()
    message = fails(*training(work, *SENTIMENT), "--output", tmp_path / "run", "--memory", "3MB")
    assert message == "memory: expected --dry-run with it"


def test_eval_agrees_with_training(work: Path, tmp_path: Path) -> None:
    for name, metric in (("sentiment", "accuracy"), ("cities", "f1")):
        output = tmp_path / f"{name}.json"
        data = ("--data", work / "dev.jsonl", "--output", output)
        result = ptv2("eval", "--prompt", work / name, *data)
        assert result.exit_code == 0, result.output
        assert metric in result.stdout
        best = json.loads((work / name / "metrics.json").read_text())["best"]
        assert json.loads(output.read_text())[metric] == best[metric]


def test_data_is_read_as_in_training(work: Path, tmp_path: Path) -> None:
    """Columns and length are those of the run, unless they are given."""
    rows = [{"said": r["text"], "then": r["text_pair"], "kind": r["same"]} for r in examples(16)]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    columns = ("--text-column", "said", "--text-pair-column", "then", "--label-column", "kind")
    files = ("--train", data, "--validation", data, "--output", tmp_path / "pairs")
    result = ptv2(*training(work, *SENTIMENT, *SHORT), *columns, "--max-length", 6, *files)
    assert result.exit_code == 0, result.output
    best = json.loads((tmp_path / "pairs" / "metrics.json").read_text())["best"]

    def score(*options: object) -> float:
        output = ("--output", tmp_path / "scores.json", "--overwrite")
        result = ptv2("eval", "--prompt", tmp_path / "pairs", "--data", data, *output, *options)
        assert result.exit_code == 0, result.output
        return float(json.loads((tmp_path / "scores.json").read_text())["macro_f1"])

    assert score() == score(*columns, "--max-length", 6) == best["macro_f1"]
    predict = ("predict", "--prompt", tmp_path / "pairs")
    (line, *_) = ptv2(*predict, "--data", data).stdout.splitlines()
    assert (json.loads(line)["text"], json.loads(line)["text_pair"]) == tuple(rows[0].values())[:2]
    assert ptv2(*predict, "--text", "a film", "--text-pair", "fine").exit_code == 0
    message = fails("eval", "--prompt", tmp_path / "pairs", "--data", work / "dev.jsonl")
    assert message.startswith("text_column: expected one of the data's columns, text")


def test_the_length_of_training_is_kept(
    work: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = write_jsonl(tmp_path / "long.jsonl", [examples(1)[0] | {"text": "a film " * 8}] * 2)
    run = ("--max-length", 6, "--output", tmp_path / "run")
    assert ptv2(*training(work, *SENTIMENT, *SHORT), *run).exit_code == 0
    for options, cut in (((), "2 of 2 inputs were cut to 6"), (("--max-length", 32), "")):
        caplog.clear()
        for command in ("eval", "predict"):
            arguments = ("--prompt", tmp_path / "run", "--data", long, *options)
            assert ptv2(command, *arguments).exit_code == 0
        assert caplog.text.count("inputs were cut") == (2 if cut else 0)
        assert cut in caplog.text


def test_a_broken_run_config(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "sentiment", tmp_path / "prompt")
    for text in ("{", "{}", "[]", '{"task": 1}'):
        (tmp_path / "prompt" / "run_config.json").write_text(text)
        message = fails("eval", "--prompt", tmp_path / "prompt", "--data", work / "dev.jsonl")
        assert "run_config.json: expected the settings of a run, got" in message


def test_a_folder_without_a_tokenizer(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "encoder", tmp_path / "encoder")
    for path in (tmp_path / "encoder").glob("*token*"):
        path.unlink()
    train = (*training(work, *SENTIMENT, "--output", tmp_path / "run"), "--backbone")
    message = fails(*train, tmp_path / "encoder")
    assert message.startswith("tokenizer: expected one whose words are among the 16 of the back")


def test_a_device_that_is_not_there(work: Path) -> None:
    predict = ("predict", "--prompt", work / "sentiment", "--text", "a fine film")
    for name in ("gpu", "cuda:99"):
        assert fails(*predict, "--device", name).startswith(f"device: '{name}' cannot be used: ")
    assert ptv2(*predict, "--device", "cpu").exit_code == 0


def test_predict_answers_two_tasks_in_one_batch(work: Path, tmp_path: Path) -> None:
    prompts = ("--prompt", work / "sentiment", "--prompt", work / "cities")
    result = ptv2("predict", *prompts, "--text", "a fine film", "--text", "rome")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["text"] for line in lines] == ["a fine film", "rome"]
    assert set(lines[0]["answers"]) == {"sentiment", "cities"}
    assert len(lines[0]["answers"]["cities"]["tags"]) == 3

    output = tmp_path / "answers.jsonl"
    result = ptv2("predict", *prompts, "--data", work / "dev.jsonl", "--output", output)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 16
    assert all(len(row["answers"]["cities"]["tags"]) == len(row["tokens"]) for row in rows)


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


def test_info(work: Path) -> None:
    result = ptv2("info", work / "sentiment")
    for shown in ("bad, good", "4 keys and values in each of 2 layers", "validation"):
        assert shown in result.stdout


def test_help() -> None:
    result = ptv2("--help")
    for command in ("train", "sweep", "eval", "predict", "convert", "info", "demo"):
        assert command in result.stdout


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


def test_unknown_label_in_evaluation_data(work: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "bad.jsonl", [examples(1)[0] | {"label": "so-so"}])
    message = fails("eval", "--prompt", work / "sentiment", "--data", data)
    assert message == (
        "label: expected one of the task's labels, bad, good, got 'so-so' "
        "in example 0 (line 1 of bad.jsonl)"
    )


def test_a_long_text_is_cut_and_that_is_said(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts = ("--prompt", work / "sentiment", "--prompt", work / "cities")
    result = ptv2("predict", *prompts, "--text", "film " * 50)
    assert result.exit_code == 0
    assert caplog.messages.count("1 of 1 inputs were cut to 32 tokens") == 1
    tags = json.loads(result.stdout)["answers"]["cities"]["tags"]  # which reads windows instead
    assert (len(tags), tags.count(None)) == (50, 0)


def test_a_prompt_for_another_backbone(work: Path, tmp_path: Path) -> None:
    other = save_encoder(tmp_path / "other", seed=1)
    text = ("--text", "a film", "--backbone", other)
    assert "was trained on the backbone" in fails("predict", "--prompt", work / "sentiment", *text)


def test_a_corrupt_prompt(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "sentiment", tmp_path / "broken")
    with (tmp_path / "broken" / "prompt.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    broken = ("--prompt", tmp_path / "broken")
    assert "corrupt" in fails("eval", *broken, "--data", work / "dev.jsonl")
    assert "expected prompt_config.json" in fails("info", tmp_path)


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


def test_predict_has_no_options_for_labels(work: Path) -> None:
    result = ptv2("predict", "--prompt", work / "sentiment", "--text", "a", "--label-column", "x")
    assert result.exit_code == 2
    assert "No such option" in result.stderr
    mixed = ("--prompt", work / "sentiment", "--prompt", work / "cities", "--stride", "8")
    assert ptv2("predict", *mixed, "--text", "a film").exit_code == 0  # cities has one
    message = fails("predict", *mixed, "--text", "a film", "--tokens-column", "x")
    assert message == "tokens_column: columns are of --data, expected none with --text"


def test_predict_needs_one_source(work: Path) -> None:
    prompt = ("--prompt", work / "sentiment")
    assert fails("predict", *prompt) == "text: expected either --text or --data"
    both = ("--text", "a", "--data", work / "dev.jsonl")
    assert fails("predict", *prompt, *both) == "text: expected either --text or --data"
    pairs = ("--text", "a", "--text-pair", "b", "--text-pair", "c")
    assert fails("predict", *prompt, *pairs) == "text_pair: expected one for each --text, 1, got 2"


def test_an_unknown_backbone(work: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "run", "--backbone", tmp_path / "nowhere")
    assert "nowhere" in fails(*training(work, *SENTIMENT), *output)
    assert not (tmp_path / "run").exists()


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
        (("--dry-run", "--token-budget", 5), "token_budget: expected at least the longest exampl"),
        (("--scheduler", "constant", "--warmup-ratio", 0.5), "warmup_ratio: the scheduler 'const"),
        (("--init-std", 1, "--start-from-text", "a film"), "init_std: the prompt starts with oth"),
        (
            ("--depth", "input", "--prompt-length", 64),
            "prompt_length: expected at most 29, which leaves 3 of the backbone's 32 positions to "
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


def sweeping(work: Path, *extra: object) -> list[object]:
    return ["sweep", "--backbone", work / "encoder", "--epochs", 1, *extra]


def test_a_sweep_of_repeated_options(work: Path, tmp_path: Path) -> None:
    data = ("--train", work / "train.jsonl", "--validation", work / "dev.jsonl")
    grid = ("--learning-rate", 1e-2, "--learning-rate", 3e-2, "--prompt-length", 3, "--seed", 0)
    grid += ("--seed", 1, "--layers", "0,1", "--gate")
    output = tmp_path / "sweep"
    result = ptv2(*sweeping(work, *SENTIMENT, *data, *grid, "--output", output))
    assert result.exit_code == 0, result.output
    table = json.loads((output / "sweep.json").read_text())
    names = ["lr1e-2-seed0", "lr1e-2-seed1", "lr3e-2-seed0", "lr3e-2-seed1"]
    assert [row["name"] for row in table["runs"]] == names
    assert read_asset(output / "best").config.gate
    assert all(name in result.stdout for name in names)
    assert result.stdout.count("best") == 1
    text = ptv2("predict", "--prompt", output / "best", "--text", "a great film")
    assert table["best"][0] in json.loads(text.stdout)["answers"]

    one = ptv2(*sweeping(work, *SENTIMENT, *data, "--output", tmp_path / "one"))
    assert one.exit_code == 0, one.output
    assert (tmp_path / "one" / "run" / "prompt.safetensors").exists()


def test_a_sweep_over_layers(work: Path, tmp_path: Path) -> None:
    data = ("--train", work / "train.jsonl", "--validation", work / "dev.jsonl")
    layers = ("--layers", "0", "--layers", "0,1", "--prompt-length", 3)
    result = ptv2(*sweeping(work, *SENTIMENT, *data, *layers, "--output", tmp_path / "sweep"))
    assert result.exit_code == 0, result.output
    for name, expected in (("layers-0", (0,)), ("layers-0-1", (0, 1))):
        assert read_asset(tmp_path / "sweep" / name).config.layers == expected


def test_settings_reach_the_runs_of_a_sweep(work: Path, tmp_path: Path) -> None:
    data = ("--train", work / "train.jsonl", "--validation", work / "dev.jsonl")
    options = (
        "--parametrization", "mlp", "--network-size", 6, "--network-size", 8, "--prompt-length", 3,
        "--prompt-dropout", 0.2, "--head-dropout", 0.3, "--head-activation", "gelu", "--pooling",
        "last", "--position-offset", 2, "--no-token-types", "--token-budget", 60,
        "--checkpointing", "layers", "--scheduler", "polynomial", "--weight-decay", 0.1,
    )  # fmt: skip
    result = ptv2(*sweeping(work, *SENTIMENT, *data, *options, "--output", tmp_path / "sweep"))
    assert result.exit_code == 0, result.output
    for size in (6, 8):
        run = json.loads((tmp_path / f"sweep/network-size{size}/run_config.json").read_text())
        prompt = {
            "parametrization": "mlp", "network_size": size, "prompt_dropout": 0.2,
            "head_dropout": 0.3, "head_activation": "gelu", "pooling": "last",
            "position_offset": 2, "token_types": False,
        }  # fmt: skip
        train = {"token_budget": 60, "checkpointing": "layers", "scheduler": "polynomial"}
        assert prompt.items() <= run["prompt"].items()
        assert train.items() <= run["train"].items()


def test_a_sweep_by_plan(work: Path, tmp_path: Path) -> None:
    data = f"train = '{work / 'train.jsonl'}'\nvalidation = '{work / 'dev.jsonl'}'\nepochs = 1\n"
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f"""
        [mood]
        task = "sequence-classification"
        prompt_length = 3
        shared = "both"
        {data}
        [cities]
        task = "token-classification"
        prompt_length = 3
        shared = "both"
        {data}
        [mood-again]
        task = "sequence-classification"
        start_from = '{work / "sentiment"}'
        prompt_length = 4
        learning_rate = [1e-3, 1e-2]
        {data}
        """
    )
    options = ("sweep", "--backbone", work / "encoder", "--plan", plan)
    result = ptv2(*options, "--output", tmp_path / "sweep")
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["runs"]
    assert [(row["name"], row["data"], row["metric"]) for row in rows] == [
        ("mood", 0, "accuracy"),
        ("cities", 1, "f1"),
        ("mood-again-lr1e-3", 0, "accuracy"),
        ("mood-again-lr1e-2", 0, "accuracy"),
    ]
    for change, message in (
        ("[mood]\ntask = 'x'", "plan: mood: expected train, a text, got None"),
        (f"[mood]\ntask = 'x'\n{data}", "task: expected one of sequence-classification, "),
        (
            f"[a]\ntask = 'token-classification'\n{data}lr = 1",
            "plan: a: 'lr' is unknown, expected some of",
        ),
        (
            f"[a]\ntask = 'token-classification'\n{data}pooling = 'first'",
            "plan: a: pooling: token",
        ),
        (f"[a]\ntask = 'token-classification'\n{data}seed = []", "seed: expected a list of dist"),
        (
            f"[a]\ntask = 'token-classification'\n{data}batch_size = 'x'",
            "batch_size: expected an int of at least 1, got 'x'",
        ),
        (
            f"[a]\ntask = 'token-classification'\n{data}max_length = 'x'",
            "plan: a: a setting has a wrong type: ",
        ),
        *(
            (
                f"[a]\ntask = 'token-classification'\n{data}{field} = 3",
                f"plan: a: expected {field}, a text, got 3",
            )
            for field in ("start_from", "shared", "train_split", "validation_split")
        ),
        (
            f"[a]\ntask = 'token-classification'\n{data}network_size = [6, 8]",
            "network_size: expected parametrization mlp or lstm with it, got direct",
        ),
        (
            f"[a]\ntask = 'token-classification'\n{data}network_size = [6, 8]\n"
            "parametrization = ['mlp', 'direct']",
            "network_size: expected parametrization mlp or lstm with it, got direct",
        ),
        (
            f"[a]\ntask = 'sequence-classification'\n{data}init_std = [1.0, 2.0]\n"
            f"prompt_length = 4\nstart_from = '{work / 'sentiment'}'",
            "init_std: the prompt starts with other values already, expected none",
        ),
        (
            f"[a]\ntask = 'token-classification'\n{data}position_offset = [0, 30]",
            "position_offset: expected at most 29, which leaves 3 of",
        ),
        ("mood = 1", "plan: expected tables such as [mood], got mood = 1"),
        ("mood", f"plan: {plan} is not TOML: "),
    ):
        plan.write_text(change)
        assert fails(*options, "--output", tmp_path / "other").startswith(message[:40])
    assert not (tmp_path / "other").exists()


def test_sweeps_that_are_refused(work: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "sweep")
    assert fails(*sweeping(work, *output)) == "task: expected --task or a --plan"
    plan = ("--plan", tmp_path / "plan.toml")
    message = fails(*sweeping(work, *output, *plan))
    assert message == "epochs: the plan says it, expected none with --plan"
    data = ("--train", work / "train.jsonl", "--validation", work / "dev.jsonl")
    message = fails(*sweeping(work, *CITIES, *data, *output, "--text-column", "text"))
    assert message == "text_column: token-classification has no such option, expected none"
    rates = ("--learning-rate", "nan", "--learning-rate", 1e-2)
    message = fails(*sweeping(work, *CITIES, *data, *output, *rates))
    assert message == "learning_rate: expected a finite number above 0, got nan"
    message = fails(*sweeping(work, *CITIES, *data, *output, "--resume", "--overwrite"))
    assert message == "overwrite: expected either resume or overwrite, got both"
    message = fails(*sweeping(work, *CITIES, *data, *output, "--network-size", 7))
    assert message == "network_size: expected parametrization mlp or lstm with it, got direct"
    assert not (tmp_path / "sweep").exists()


def test_serving_is_refused_without_prompts(work: Path, tmp_path: Path) -> None:
    options = ("serve", "--backbone", work / "encoder", "--prompts")
    assert fails(*options, tmp_path / "none").startswith("prompts: there is no directory")
    assert fails(*options, tmp_path).startswith("prompts: expected a saved prompt in a folder of")
    memory = (work, "--prompt-memory", "much")
    assert fails(*options, *memory).startswith("memory: expected a size such as 8GB, got 'much'")

"""`ptv2 sweep` with options and with plans."""

import json
from pathlib import Path

from ptv2.assets import read_asset
from tests.cli.commands import CITIES, SENTIMENT, fails, ptv2


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


def test_a_sweep_is_resumed_and_overwritten(work: Path, tmp_path: Path) -> None:
    data = ("--train", work / "train.jsonl", "--validation", work / "dev.jsonl")
    output = ("--prompt-length", 3, "--output", tmp_path / "sweep", "--no-plot")
    command = (*sweeping(work, *SENTIMENT, *data, *output), "--seed", 0)
    assert ptv2(*command).exit_code == 0
    table = tmp_path / "sweep" / "sweep.json"
    runs = json.loads(table.read_text())["runs"]
    table.unlink()
    result = ptv2(*command, "--resume")
    assert result.exit_code == 0, result.output
    assert json.loads(table.read_text())["runs"] == runs
    result = ptv2(*command, "--seed", 1, "--overwrite")
    assert result.exit_code == 0, result.output
    folders = {path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()}
    assert folders == {"checkpoints", "best", "seed0", "seed1"}
    assert "resume: the run was started with order" in fails(*command, "--resume")


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
            "plan: a: network_size: expected parametrization mlp or lstm with it, got direct",
        ),
        (
            f"[a]\ntask = 'token-classification'\n{data}network_size = [6, 8]\n"
            "parametrization = ['mlp', 'direct']",
            "plan: a: network_size: expected parametrization mlp or lstm with it, got direct",
        ),
        (
            f"[a]\ntask = 'sequence-classification'\n{data}init_std = [1.0, 2.0]\n"
            f"prompt_length = 4\nstart_from = '{work / 'sentiment'}'",
            "plan: a: init_std: the prompt starts with other values already, expected none",
        ),
        (
            f"[a]\ntask = 'token-classification'\n{data}position_offset = [0, 30]",
            "position_offset: expected at most 29, which leaves 3 of",
        ),
        ("mood = 1", "plan: expected tables such as [mood], got mood = 1"),
        ("mood", f"plan: {plan} is not TOML: "),
    ):
        plan.write_text(change)
        assert fails(*options, "--output", tmp_path / "other").startswith(message)
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

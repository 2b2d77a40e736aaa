"""`ptv2 eval`, `predict`, `info` and `serve` with the prompts that training leaves."""

import json
import shutil
from pathlib import Path

import pytest

from ptv2 import Predictor, PromptConfig, PromptModel
from ptv2.cli.use import trained_with
from ptv2.tasks import load_data, make_task
from ptv2.train_config import TrainConfig
from ptv2.training import train
from tests.cli.commands import SENTIMENT, SHORT, fails, ptv2, training
from tests.encoder import examples, save_encoder, write_jsonl


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
    message = fails(*predict, "--text", "a film")
    assert message == "text_pair: 'pairs' was trained on pairs, expected one for each --text"
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


def test_a_prompt_trained_in_python(work: Path, tmp_path: Path) -> None:
    """A task that leaves its length to the tokenizer has none among its settings."""
    model = PromptModel.from_pretrained(work / "encoder")
    data = load_data(work / "train.jsonl")
    task = make_task("sequence-classification", Predictor(model).tokenizer).fit_labels(data)
    model.add_task("t", PromptConfig(task.kind, task.labels, prompt_length=2))
    best = train(model, "t", task, (data, data), tmp_path / "run", TrainConfig(epochs=1))["best"]
    output = tmp_path / "scores.json"
    options = ("--data", work / "train.jsonl", "--output", output)
    assert ptv2("eval", "--prompt", tmp_path / "run", *options).exit_code == 0
    assert json.loads(output.read_text())["accuracy"] == best["accuracy"]


def test_prompts_that_read_different_columns(work: Path, tmp_path: Path) -> None:
    rows = [{"said": "a fine film", "then": "a dull film", "label": x} for x in ("a", "b")]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    prompts: list[object] = []
    for column in ("said", "then"):
        files = ("--train", data, "--validation", data, "--output", tmp_path / column)
        result = ptv2(*training(work, *SENTIMENT, *SHORT), *files, "--text-column", column)
        assert result.exit_code == 0, result.output
        prompts += ["--prompt", tmp_path / column]
    line = json.loads(ptv2("predict", *prompts, "--data", data).stdout.splitlines()[0])
    answers = line.pop("answers")
    assert line == {"said": "a fine film", "then": "a dull film"}
    assert set(answers) == {"said", "then"}


def test_all_of_a_task_is_as_in_training(work: Path, tmp_path: Path) -> None:
    """Also what no option of the command line sets."""
    plan = tmp_path / "plan.toml"
    answers = {"text": ["rome"], "answer_start": [10]}
    rows = [{"question": "a", "context": "a film in rome", "answers": answers}] * 4
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    plan.write_text(
        f"[a]\ntask = 'question-answering'\ntrain = '{data}'\nvalidation = '{data}'\n"
        "epochs = 1\nprompt_length = 2\nmax_answer_length = 1\n"
    )
    sweep = ("sweep", "--backbone", work / "encoder", "--plan", plan, "--no-plot")
    result = ptv2(*sweep, "--output", tmp_path / "sweep")
    assert result.exit_code == 0, result.output
    prompt = tmp_path / "sweep" / "a"
    assert trained_with(prompt, "question-answering", None)["max_answer_length"] == 1
    result = ptv2("predict", "--prompt", prompt, "--data", data)
    assert " " not in json.loads(result.stdout.splitlines()[0])["answers"]["a"]["answer"]


def test_a_broken_run_config(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "sentiment", tmp_path / "prompt")
    for text in ("{", "{}", "[]", '{"task": 1}'):
        (tmp_path / "prompt" / "run_config.json").write_text(text)
        message = fails("eval", "--prompt", tmp_path / "prompt", "--data", work / "dev.jsonl")
        assert "run_config.json: expected the settings of a run, got" in message


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


def test_info(work: Path) -> None:
    result = ptv2("info", work / "sentiment")
    for shown in ("bad, good", "4 keys and values in each of 2 layers", "validation"):
        assert shown in result.stdout


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


def test_predict_has_no_options_for_labels(work: Path) -> None:
    result = ptv2("predict", "--prompt", work / "sentiment", "--text", "a", "--label-column", "x")
    assert result.exit_code == 2
    assert "No such option" in result.stderr
    mixed = ("--prompt", work / "sentiment", "--prompt", work / "cities", "--stride", "8")
    assert ptv2("predict", *mixed, "--text", "a film").exit_code == 0  # cities has one
    message = fails("predict", *mixed, "--text", "a film", "--tokens-column", "x")
    assert message == "tokens_column: columns are of --data, expected none with --text"


def test_a_second_text_goes_to_those_that_read_one(work: Path, tmp_path: Path) -> None:
    """Beside a task that was trained on pairs, one of texts answers as it does alone."""
    pairs = ("--text-pair-column", "text_pair", "--label-column", "same")
    run = (*training(work, *SENTIMENT, *SHORT), *pairs, "--output", tmp_path / "same")
    assert ptv2(*run).exit_code == 0
    prompts = ("--prompt", work / "sentiment")
    texts = ("--text", "a fine film")
    alone = json.loads(ptv2("predict", *prompts, *texts).stdout)["answers"]
    mixed = ("--prompt", tmp_path / "same", "--text-pair", "a dull film")
    beside = json.loads(ptv2("predict", *prompts, *texts, *mixed).stdout)["answers"]
    assert beside["sentiment"] == alone["sentiment"]
    swapped = json.loads(ptv2("predict", *prompts, *mixed, "--text", "a dull film").stdout)
    assert swapped["answers"]["same"] != beside["same"]


def test_what_predict_would_ignore_is_refused(work: Path) -> None:
    predict = ("predict", "--prompt", work / "sentiment", "--text", "a fine film")
    message = fails(*predict, "--text-pair", "a dull film")
    assert message == "text_pair: expected none for sentiment, which reads texts alone"
    assert fails(*predict, "--split", "dev") == "split: expected none with --text, got 'dev'"
    assert fails(*predict, "--overwrite") == "overwrite: expected --output with it, got none"
    message = fails(*predict, "--output", work, "--overwrite")
    assert message == f"output: expected a file, got the folder {work}"


def test_a_number_is_shown_with_its_answer(work: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [{"text": 5}])
    result = ptv2("predict", "--prompt", work / "sentiment", "--data", data)
    assert json.loads(result.stdout)["text"] == 5


def test_predict_needs_one_source(work: Path) -> None:
    prompt = ("--prompt", work / "sentiment")
    assert fails("predict", *prompt) == "text: expected either --text or --data"
    both = ("--text", "a", "--data", work / "dev.jsonl")
    assert fails("predict", *prompt, *both) == "text: expected either --text or --data"
    pairs = ("--text", "a", "--text-pair", "b", "--text-pair", "c")
    assert fails("predict", *prompt, *pairs) == "text_pair: expected one for each --text, 1, got 2"


def test_serving_is_refused_without_prompts(work: Path, tmp_path: Path) -> None:
    options = ("serve", "--backbone", work / "encoder", "--prompts")
    assert fails(*options, tmp_path / "none").startswith("prompts: there is no directory")
    assert fails(*options, tmp_path).startswith("prompts: expected a saved prompt in a folder of")
    memory = (work, "--prompt-memory", "much")
    assert fails(*options, *memory).startswith(
        "prompt_memory: expected a size such as 8GB, got 'much'"
    )
    assert fails(*options, work, "--port", 99999).startswith("port: expected a number from 0 to")


@pytest.mark.parametrize("text", ["{}", "[]", '{"best": null}', '{"best": {"f1": null}}', "{"])
def test_info_of_odd_metrics(work: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(work / "sentiment", tmp_path / "prompt")
    (tmp_path / "prompt" / "metrics.json").write_text(text)
    message = fails("info", tmp_path / "prompt")
    assert "metrics.json: expected the scores of a run, got" in message

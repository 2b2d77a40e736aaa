"""`ptv2 eval` and `ptv2 predict`: saved prompts at work."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from datasets import Dataset

from ..assets import read_asset
from ..model import PromptModel
from ..predictor import Predictor
from ..report import print_scores
from ..storage import write_json
from ..tasks import load_data
from ..training import evaluate
from .options import (
    DATA,
    AnswersColumn,
    Backbone,
    ChoicesColumn,
    ContextColumn,
    LabelColumn,
    MaxLength,
    Overwrite,
    PromptDir,
    QuestionColumn,
    Stride,
    TagsColumn,
    TextColumn,
    TextPairColumn,
    TokensColumn,
    fields_of,
    option,
    refuse_overwriting,
    reports_errors,
    write_lines,
)


@reports_errors
def evaluate_prompt(
    prompt: PromptDir,
    data: Annotated[str, option(DATA)],
    split: Annotated[str | None, option("Split of a named dataset: test.")] = None,
    backbone: Backbone = None,
    text_column: TextColumn = None,
    text_pair_column: TextPairColumn = None,
    label_column: LabelColumn = None,
    tokens_column: TokensColumn = None,
    tags_column: TagsColumn = None,
    question_column: QuestionColumn = None,
    context_column: ContextColumn = None,
    answers_column: AnswersColumn = None,
    choices_column: ChoicesColumn = None,
    stride: Stride = None,
    max_length: MaxLength = None,
    output: Annotated[Path | None, option("JSON file for the scores.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Score a saved prompt on labelled data."""
    refuse_overwriting(output, overwrite)
    examples = load_data(data, split, "test")
    predictor, (name,) = load_prompts([prompt], backbone, max_length)
    reader = predictor.task(
        name,
        **fields_of(
            predictor.model.tasks[name].task,
            text_column=text_column,
            text_pair_column=text_pair_column,
            label_column=label_column,
            tokens_column=tokens_column,
            tags_column=tags_column,
            question_column=question_column,
            context_column=context_column,
            answers_column=answers_column,
            choices_column=choices_column,
            stride=stride,
        ),
    )
    scores = evaluate(predictor, name, reader, examples)
    print_scores({name: scores, "commonest answer": scores["majority"]})
    if output is not None:
        write_json(output, scores)


@reports_errors
def predict(
    prompt: Annotated[list[Path], option("Directory of a saved prompt; may be repeated.")],
    text: Annotated[list[str] | None, option("A text; may be repeated.")] = None,
    text_pair: Annotated[list[str] | None, option("The second text of each --text.")] = None,
    data: Annotated[str | None, option("File or dataset, instead of --text.")] = None,
    split: Annotated[str | None, option("Split of a named dataset: test.")] = None,
    backbone: Backbone = None,
    text_column: TextColumn = None,
    text_pair_column: TextPairColumn = None,
    tokens_column: TokensColumn = None,
    question_column: QuestionColumn = None,
    context_column: ContextColumn = None,
    choices_column: ChoicesColumn = None,
    stride: Stride = None,
    max_length: MaxLength = None,
    output: Annotated[Path | None, option("JSONL file, instead of the terminal.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Answer texts with one prompt or several, all in the same forwards; a JSON line a text."""
    refuse_overwriting(output, overwrite)
    if (not text) == (data is None):
        raise ValueError("text: expected either --text or --data")
    if text_pair and len(text_pair) != len(text or []):
        raise ValueError(
            f"text_pair: expected one for each --text, {len(text or [])}, got {len(text_pair)}"
        )
    if text:
        fields = {"text": text, "tokens": text} | ({"text_pair": text_pair} if text_pair else {})
        examples = Dataset.from_dict(fields)
        given = (text_column, tokens_column, text_pair_column)
        if any(column is not None for column in given):
            raise ValueError("text_column: columns are of --data, expected none with --text")
        text_pair_column = "text_pair" if text_pair else None
    else:
        assert data is not None
        examples = load_data(data, split, "test")
    predictor, names = load_prompts(prompt, backbone, max_length)
    readers = {
        name: predictor.task(
            name,
            **fields_of(
                predictor.model.tasks[name].task,
                text_column=text_column,
                text_pair_column=text_pair_column,
                tokens_column=tokens_column,
                question_column=question_column,
                context_column=context_column,
                choices_column=choices_column,
                stride=stride,
            ),
        )
        for name in names
    }
    features = {name: readers[name].prepare(examples, labelled=False) for name in names}
    rows = [(name, feature) for name in names for feature in features[name]]
    answers = predictor.answer(readers, rows)
    inputs = {
        "text": text_column or "text",
        "text_pair": text_pair_column,
        "tokens": tokens_column or "tokens",
        "question": question_column or "question",
    }
    lines = []
    for place, example in enumerate(examples):
        line = {key: example[column] for key, column in inputs.items() if column in example}
        line["answers"] = {
            name: answers[place + i * len(examples)] for i, name in enumerate(names)
        }
        lines.append(json.dumps(line, ensure_ascii=False))
    write_lines(lines, output)


def load_prompts(
    directories: Sequence[Path], backbone: str | None, max_length: int | None
) -> tuple[Predictor, list[str]]:
    """One model with all the prompts, and their names."""
    source = backbone or read_asset(directories[0]).backbone["name_or_path"]
    if not source:
        raise ValueError(f"backbone: {directories[0]} names none, expected --backbone")
    model = PromptModel.from_pretrained(source)
    names = [read_asset(directory).name for directory in directories]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ValueError(f"prompt: {directories[place]} is another task named {name!r}")
    for directory in directories:
        model.load_task(directory)
    return Predictor(model, max_length=max_length), names

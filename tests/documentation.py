"""The documentation's code blocks, and what it takes to try them."""

import argparse
import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import chdir
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch
import typer
from markdown_it import MarkdownIt
from packaging.requirements import Requirement
from torch.distributed.run import get_args_parser
from typer.testing import CliRunner

from ptv2 import PromptConfig, PromptModel
from ptv2.cli import app
from ptv2.convert import export_peft, load_backbone
from tests.encoder import examples, save_encoder, write_jsonl

ROOT = Path(__file__).parents[1]
RECOGNISED = ("cd", "curl", "git", "ray", "serve")
"""First words of commands that are only recognised: they need a network or a cluster."""
PARSED = ("demo", "--recipe")
"""What in a command of ptv2 makes it take minutes, so that it is parsed and not run."""


class Block(NamedTuple):
    """A block of code and the line it begins in."""

    language: str
    code: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in order; one without a language has an empty one."""
    tokens = MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))
    kinds = ("fence", "code_block")
    return [Block(x.info.strip(), x.content, x.map[0] + 2) for x in tokens if x.type in kinds]


def inline(page: Path, kind: str) -> list:
    """The inline tokens of some kind."""
    tokens = MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))
    return [x for token in tokens for x in token.children or () if x.type == kind]


def commands(code: str) -> Iterator[list[str]]:
    """The words of every command in a shell's text."""
    for line in code.replace("\\\n", " ").splitlines():
        for joins, words in groupby(shlex.split(line, comments=True), "&&".__eq__):
            if not joins:
                yield list(words)


def run_python(page: Path, block: Block, names: dict, said: Callable[[], str]) -> None:
    """Run a block; a comment behind a print is what it prints."""
    code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
    exec(code, names)
    printed = said().splitlines()
    for expected in re.findall(r"^ *print\(.*\)  # (.*)$", block.code, re.MULTILINE):
        assert expected in printed, f"{page.name}: expected {expected!r}, got {printed}"


def run_command(words: list[str]) -> None:
    """Run a command, or check as much of it as can be checked without."""
    match words:
        case ["ptv2", "bench", *arguments]:
            run_command(["python", "benchmarks/suite.py", *arguments])
        case ["ptv2", *arguments]:
            run_ptv2(arguments)
        case ["torchrun", *arguments]:
            found = get_args_parser().parse_args(arguments)
            assert (found.module, found.training_script) == (True, "ptv2")
            parse_ptv2(found.training_script_args)
        case ["python", "-m", "pytest", *places]:
            assert all((ROOT / place).exists() for place in places)
        case ["python", "-m", module, *arguments]:
            parse(module, arguments, importlib.import_module(module).main)
        case ["python", script, *arguments]:
            own = {"__file__": str(ROOT / script)}
            parse(script, arguments, lambda: runpy.run_path(own["__file__"], own, "__main__"))
        case ["make", *arguments]:
            subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
        case ["pip", "install", *wanted]:
            require_packages(wanted)
        case [first, *_] if first in RECOGNISED:
            pass
        case [script, *_] if "/" in script:
            assert os.access(ROOT / script, os.X_OK), script
        case _:
            pytest.fail(f"no test knows the command {shlex.join(words)}")


def run_ptv2(arguments: list[str]) -> None:
    """Run a command line of ptv2, for one epoch; serving ends when it would begin to listen."""
    parse_ptv2(arguments)
    if any(word in arguments for word in PARSED):
        return
    if arguments[0] in ("train", "sweep") and "--plan" not in arguments:
        arguments = [*arguments, "--epochs", "1"]
    with mock.patch("ptv2.serving.server.run", lambda service, **_: service.close()):
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def parse_ptv2(arguments: list[str]) -> None:
    """Raise unless the command and its options exist and their values are of their types."""
    name, *options = arguments
    typer.main.get_command(app).commands[name].make_context(name, options)


def options() -> set[str]:
    """The options of all commands and scripts."""
    commands = typer.main.get_command(app).commands.values()
    found = {
        name for x in commands for own in x.params for name in (*own.opts, *own.secondary_opts)
    }
    for script in (*ROOT.glob("benchmarks/*.py"), ROOT / "kernels" / "ptv2_kernels" / "aot.py"):
        found |= set(re.findall(r'"(--[a-z-]+)"', script.read_text()))
    return found


class ParsedError(Exception):
    """Arguments were parsed, which is enough."""


def parse(name: str, arguments: list[str], start: Callable[[], object]) -> None:
    """Start a script, as far as it has parsed its arguments."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser) -> None:
        parse_args(parser)
        raise ParsedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [name, *arguments])
        patch.syspath_prepend((ROOT / name).parent)
        patch.setitem(sys.modules, "ray", mock.Mock())  # an example imports it
        with pytest.raises(ParsedError):
            start()


def require_packages(wanted: list[str]) -> None:
    """Raise unless installed packages are as asked for, and extras of this one exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in wanted:
        if found := re.fullmatch(r"(?:ptv2|\.)\[(.+)\]", name):
            assert found[1] in extras["optional-dependencies"], name
        elif name != "." and not name.startswith("-"):
            requirement = Requirement(name)
            assert requirement.specifier.contains(version(requirement.name)), name


def require_tree(code: str) -> None:
    """Raise unless the folders, and the files below each, exist."""
    folder = ROOT
    for line in code.splitlines():
        indent, names = re.match(r"( *)(\S.*?)(?:  |$)", line).groups()
        if not indent:
            folder = ROOT / names
            assert folder.is_dir(), names
        elif len(indent) == 2:
            for name in names.split():
                assert (folder / name).exists(), name


def require_modules(diagram: str) -> None:
    """Raise unless every name in a graph of imports is a module's."""
    graph = re.sub(r"-\. .*? \.->", "", diagram)
    folders = (ROOT / "ptv2", ROOT / "kernels" / "ptv2_kernels")
    known = {path.stem for folder in folders for path in folder.glob("*")}
    words = {"graph", "TD", "subgraph", "ptv2_kernels", "end"}
    assert set(re.findall(r"\w+", graph)) <= known | words


def make_shelf(folder: Path) -> Path:
    """A folder with what the pages name: an encoder, data, prompts, folders of other systems."""
    with chdir(folder):
        save_encoder(Path("bert-base-uncased"))
        Path("mood").mkdir()
        for seed, part in enumerate(("train", "dev", "test")):
            for name in (part, f"names-{part}", f"mood/{part}"):
                write_jsonl(Path(f"{name}.jsonl"), examples(16, seed))
        model = load_backbone("bert-base-uncased")
        classes, tags = ("bad", "good"), ("O", "B-city")
        model.add_task("mood", PromptConfig("sequence-classification", classes))
        model.add_task("names", PromptConfig("token-classification", tags))
        model.save_task("mood", "prompts/mood")
        model.save_task("names", "runs/names")
        as_peft = {"pooling": "first", "head_activation": "tanh", "position_offset": 8}
        config = PromptConfig("sequence-classification", classes, prompt_length=8, **as_peft)
        model.add_task("peft", config)
        export_peft(model, "peft", "peft-adapter")
        save_official(model, Path("checkpoint-500"))
        adapter = ROOT / "tests" / "data" / "adapters" / "roberta-flat"
        shutil.copytree(adapter, "adapter")
        shutil.move("adapter/backbone", "roberta-base")
    return folder


def save_official(model: PromptModel, folder: Path) -> None:
    """A checkpoint of the official code for the model's backbone, with random values."""
    sizes = model.geometry
    tensors = {f"bert.{name}": x for name, x in model.backbone.state_dict().items()}
    tensors["prefix_encoder.embedding.weight"] = torch.randn(
        8, 2 * sizes.layers * sizes.heads * sizes.head_dim
    )
    tensors["classifier.weight"] = torch.randn(2, sizes.hidden_size)
    tensors["classifier.bias"] = torch.randn(2)
    folder.mkdir()
    torch.save(tensors, folder / "pytorch_model.bin")
    architectures = ["BertPrefixForSequenceClassification"]
    settings = {"architectures": architectures, "model_type": "bert"}
    (folder / "config.json").write_text(json.dumps(settings))

"""The documentation: code blocks work, links lead somewhere, the API's names exist."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

from tests.documentation import (
    ROOT,
    blocks,
    commands,
    inline,
    make_shelf,
    options,
    require_modules,
    require_tree,
    run_command,
    run_python,
)

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted(x for x in DOCS.rglob("*.md") if "_build" not in x.parts)
SHELF = ("bert-base-uncased", "train.jsonl", "dev.jsonl", "test.jsonl")
"""What every page may name."""
GIVEN = {
    "README.md": ("runs/names", "peft-adapter"),
    "docs/migration.md": ("checkpoint-500", "roberta-base", "adapter"),
    "docs/quickstart.md": ("names-train.jsonl", "names-dev.jsonl"),
    "docs/serving.md": ("prompts/mood",),
    "docs/training.md": ("mood", "peft-adapter"),
}
"""What a page may name beside that, because it is not made on the page."""
SPHINX = ("{eval-rst}", "{toctree}")
PACKAGES = ("ptv2", "ptv2_kernels", "ptv2.convert", "ptv2.serving", "ptv2.sweep", "ptv2.tasks")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


pages = pytest.mark.parametrize("page", PAGES, ids=page_id)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shelf(tmp_path_factory.mktemp("shelf"))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # the Trainer's, without a GPU
@pages
def test_blocks(
    page: Path,
    shelf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In order, in one namespace and one folder; a block that no test knows fails."""
    for name in (*SHELF, *GIVEN.get(page_id(page), ())):
        copy = shutil.copytree if (shelf / name).is_dir() else shutil.copy
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy(shelf / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        match block.language:
            case "python":
                run_python(page, block, names, lambda: capsys.readouterr().out)
            case "bash":
                for words in commands(block.code):
                    run_command(words)
            case "json":
                assert all(json.loads(line) for line in block.code.splitlines())
            case "toml":
                (tmp_path / "plan.toml").write_text(block.code)
            case "text":
                require_tree(block.code)
            case "mermaid":
                require_modules(block.code)
            case language if language not in SPHINX:
                pytest.fail(f"{page_id(page)}, line {block.line}: no test knows {language!r}")


@pages
def test_commands_in_sentences(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for token in inline(page, "code_inline"):
        if re.match(r"(make|pip install|python) ", token.content):
            for words in commands(token.content.replace("\n", " ")):
                run_command(words)


@pages
def test_options_in_sentences(page: Path) -> None:
    """An option that is named belongs to a command or to a script."""
    if page.name == "migration.md":  # it names those of other systems
        return
    known = options()
    for token in inline(page, "code_inline"):
        if token.content.startswith("--"):
            assert set(re.findall(r"--[a-z][a-z-]*", token.content)) <= known, token.content


@pages
def test_links(page: Path) -> None:
    places = [x.attrGet("href") for x in inline(page, "link_open")]
    places += [x.attrGet("src") for x in inline(page, "image")]
    for place in places:
        if not re.match(r"https?:|#", place):
            assert (page.parent / place.split("#")[0]).exists(), place


def test_readme_example_is_short() -> None:
    (example,) = [x for x in blocks(ROOT / "README.md") if x.language == "python"]
    assert len(example.code.splitlines()) <= 18


def test_api() -> None:
    """What a page of the API names exists, and every public name is there."""
    text = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    documented = []
    for directive in re.split(r"^\.\. auto\w+:: ", text, flags=re.MULTILINE)[1:]:
        found = resolve_name(directive.split()[0])
        documented.append(id(found))
        members = re.search(r"^   :members: (.*)$", directive, re.MULTILINE)
        for name in members[1].split(", ") if members else ():
            assert hasattr(found, name), (found, name)
    for package in PACKAGES:
        module = importlib.import_module(package)
        missing = [name for name in module.__all__ if id(getattr(module, name)) not in documented]
        assert set(missing) <= {"__version__"}


def test_site(tmp_path: Path) -> None:
    """Sphinx builds it without a warning, where it is installed."""
    for package in ("furo", "latex2mathml", "myst_parser", "sphinx", "sphinxcontrib.mermaid"):
        pytest.importorskip(package, reason="needs the extra docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", DOCS, tmp_path / "html"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "html" / "index.html").exists()

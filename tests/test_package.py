"""The distribution: what may be imported, what an import costs, what a wheel holds."""

import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import ptv2
from ptv2_kernels import native

ROOT = Path(__file__).parents[1]
PUBLIC_NAMES = {
    "ptv2": [
        "ClipPromptModel",
        "MixedTaskOutput",
        "Predictor",
        "PromptConfig",
        "PromptModel",
        "TaskModel",
        "UnknownTaskError",
        "__version__",
        "prefix_attention",
        "prefix_attention_varlen",
    ],
    "ptv2_kernels": ["RelativePositions", "prefix_attention", "prefix_attention_varlen"],
}


def run(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    """Run Python in a fresh process that finds both source roots; return what it says."""
    path = os.pathsep.join([str(ROOT / "kernels"), str(ROOT)])
    result = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_kernels_folder_is_no_package() -> None:
    # It would shadow Hugging Face's package of that name, which transformers imports.
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("package", PUBLIC_NAMES)
def test_public_names(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__all__ == PUBLIC_NAMES[package]
    assert all(hasattr(module, name) for name in module.__all__)


def test_version_of_source_and_installation_agree() -> None:
    assert version("ptv2") == ptv2.__version__


def test_cold_import_leaves_triton_alone() -> None:
    run("-c", "import sys, ptv2_kernels; assert 'triton' not in sys.modules")


def test_model_alone_needs_no_data_sets_and_no_metrics() -> None:
    """What a machine that only computes has: torch, triton, transformers."""
    heavy = ("datasets", "seqeval", "sklearn", "rich", "typer")
    block = f"import sys; sys.modules.update(dict.fromkeys({heavy}))"
    run("-c", f"{block}; import ptv2; ptv2.PromptModel, ptv2.TaskModel")


def test_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in ("ptv2", "kernels"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", ".", cwd=source)

    (wheel,) = source.glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in ROOT.glob("ptv2/**/*.py")}
    modules |= {str(path.relative_to(ROOT / "kernels")) for path in ROOT.glob("kernels/**/*.py")}
    data = {
        "ptv2/py.typed",
        "ptv2/data/snips/README.md",
        "ptv2/data/snips/train.jsonl",
        "ptv2/data/snips/dev.jsonl",
        *(f"ptv2/serving/page/{x}" for x in ("index.html", "page.css", "page.js", "answers.js")),
        "ptv2_kernels/py.typed",
        f"ptv2_kernels/{native.library_path().name}",
        *(
            f"ptv2_kernels/tiles/{architecture}.json"
            for architecture in ("sm_80", "sm_90", "sm_100")
        ),
    }
    assert files >= modules | data
    assert {name.split("/")[0] for name in files} == {
        "ptv2",
        "ptv2_kernels",
        f"ptv2-{ptv2.__version__}.dist-info",
    }


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PTV2_BUILD_NATIVE": "0"}, "PTV2_BUILD_NATIVE=0"),
        (
            {"CC": "/nowhere/c++", "CXX": "/nowhere/c++"},
            "the native build of ptv2_kernels",
        ),
    ],
    ids=["not wanted", "no compiler"],
)
def test_builds_without_the_native_implementation(
    tmp_path: Path, environment: dict[str, str], reason: str
) -> None:
    folders = ("--build-lib", str(tmp_path / "library"), "--build-temp", str(tmp_path / "objects"))
    said = run("setup.py", "-q", "build_ext", *folders, **environment)
    assert f"ptv2: {reason}" in said
    assert "the slower reference will be used" in said
    assert not list(tmp_path.rglob("*.so"))

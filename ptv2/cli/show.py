"""`ptv2 info` and `ptv2 demo`."""

import json
from pathlib import Path
from typing import Annotated

import transformers
import typer

from .. import storage
from ..assets import Asset, read_asset
from ..clip import INDEX, read_index
from ..demo import run as run_demo
from ..report import print_fields, scores_of
from ..run_directory import METRICS
from .options import option, reports_errors


@reports_errors
def info(prompt: Annotated[Path, typer.Argument(help="Directory of a saved prompt.")]) -> None:
    """Show what a saved prompt is."""
    if storage.holds(prompt, INDEX):
        for part in read_index(prompt)["parts"]:
            _show(prompt / part, read_asset(prompt, part))
    else:
        _show(prompt, read_asset(prompt))


def _show(prompt: Path, asset: Asset) -> None:
    total = sum(x.numel() for x in asset.tensors.values())
    head = sum(x.numel() for key, x in asset.tensors.items() if key.startswith("head."))
    rows = {
        "name": asset.name,
        "task": asset.config.task,
        "labels": ", ".join(asset.config.labels),
        "backbone": f"{asset.backbone['name_or_path']} ({asset.backbone['model_type']})",
        "prompt": asset.form,
        "trained as": f"{asset.config.parametrization}, {asset.config.injection}",
        "parameters": f"{total - head:,} prompt, {head:,} head",
        "size": f"{4 * total / 1000:,.0f} kB",
    }
    if (prompt / METRICS).is_file():
        rows["validation"] = _validation(prompt / METRICS)
    print_fields(rows)


def _validation(metrics: Path) -> str:
    """The best scores of the run that left a prompt.

    Raises:
        ValueError: the file is not what a run leaves.
    """
    try:
        best = json.loads(metrics.read_text(encoding="utf-8"))["best"]
        return ", ".join(f"{key} {value}" for key, value in scores_of(best).items())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{metrics}: expected the scores of a run, got {error!r}") from None


@reports_errors
def demo(
    output: Annotated[Path | None, option("Keep the two runs in this directory.")] = None,
) -> None:
    """Train two prompts on one encoder and answer both tasks in one forward (a few minutes)."""
    transformers.logging.set_verbosity_error()  # it reports the encoder's unused pooler
    run_demo(output)

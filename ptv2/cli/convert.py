"""`ptv2 convert`."""

from pathlib import Path
from typing import Annotated

import typer

from ..assets import read_asset
from ..clip import ClipPromptModel
from ..convert import export_peft, import_prompt, load_backbone
from ..convert.foreign import read_json
from .options import Backbone, option, reports_errors

FORMATS = ("ptv2", "peft")


@reports_errors
def convert(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of PEFT, adapters or P-tuning-v2, or of a saved prompt."),
    ],
    output: Annotated[Path, option("Directory for what comes out.")],
    to: Annotated[str, option("ptv2; or peft, of a saved prompt.")] = "ptv2",
    backbone: Backbone = None,
    name: Annotated[str | None, option("Name of the task, if not that of --output.")] = None,
    labels: Annotated[str | None, option("Names of the classes, as positive,negative.")] = None,
) -> None:
    """Bring a prompt from another system, or to PEFT; it computes the same there."""
    if to not in FORMATS:
        raise ValueError(f"to: expected {' or '.join(FORMATS)}, got {to!r}")
    if output.exists():
        raise FileExistsError(f"output: {output} exists; choose another")
    if to == "peft":
        if labels is not None or name is not None:
            raise ValueError("labels, name: PEFT keeps none, expected neither with --to peft")
        _export(source, output, backbone)
    else:
        _import(source, output, backbone, name or output.resolve().name, labels)


def _export(source: Path, output: Path, backbone: str | None) -> None:
    asset = read_asset(source)
    model = load_backbone(backbone or asset.backbone["name_or_path"])
    if isinstance(model, ClipPromptModel):
        raise ValueError("backbone: PEFT has no prefixes for CLIP")
    export_peft(model, model.load_task(source), output)
    typer.echo(f"PEFT's prefix-tuning adapter in {output}")


def _import(
    source: Path, output: Path, backbone: str | None, name: str, labels: str | None
) -> None:
    place = source / "adapter_config.json"
    stored = read_json(place).get("base_model_name_or_path") if place.is_file() else None
    if not (origin := backbone or stored):
        raise ValueError(f"backbone: {source} names none, expected --backbone")
    model = load_backbone(origin)
    names = None if labels is None else [label.strip() for label in labels.split(",")]
    system = import_prompt(model, source, name, names)
    model.save_task(name, output)
    typer.echo(f"from {system}: {name!r} in {output}")

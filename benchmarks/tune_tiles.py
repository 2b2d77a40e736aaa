"""Find the fastest tile of each kernel on this GPU and write `tiles/<gpu>.json`.

    python benchmarks/tune_tiles.py --output kernels/ptv2_kernels/tiles --log results/tiles.json

Each kernel is timed alone with each candidate, over a few lengths; the winner has the smallest
geometric mean of its times relative to the best of each length. What is not tuned keeps the tiles
of the GPU's architecture. Candidates that spill or do not fit lose or are skipped, and say so.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_kernel import Problem, default_device
from measure import device_name, provenance, time_interleaved, write_json
from tqdm import tqdm

from ptv2_kernels import tiling
from ptv2_kernels.arguments import Inputs, Needs, Options
from ptv2_kernels.backward import launch_backward
from ptv2_kernels.forward import launch_forward
from ptv2_kernels.tiling import Tile, Tiles, override_tiles, read_tiles, tile_key

CANDIDATES = {
    "forward": [
        *itertools.product((64, 128), (32, 64, 128), (32,), (4, 8), (2, 3)),
        (64, 64, 16, 4, 3),
        (32, 64, 32, 4, 2),
    ],
    "query_grad": list(itertools.product((64, 128), (32, 64, 128), (32,), (4, 8), (2, 3))),
    "key_value_grad": list(itertools.product((32, 64), (64, 128), (32,), (4, 8), (1, 2, 3))),
    "prefix_grad": list(itertools.product((32, 64, 128), (64,), (16, 32, 64), (4, 8), (1, 2))),
    "short_grad": list(itertools.product((64, 128), (16, 32, 64), (16, 32), (4, 8), (1, 2))),
}
TOY_CANDIDATES = {name: [(16, 16, 16, 4, 1), (32, 16, 16, 4, 1)] for name in CANDIDATES}
NEEDS = {
    "query_grad": Needs(True, False, False, False, False),
    "key_value_grad": Needs(False, True, True, False, False),
    "prefix_grad": Needs(False, False, False, True, True),
    "short_grad": Needs(True, True, True, True, True),
}
SHAPES = ((32, 128), (8, 512), (2, 2048))


def call(
    kernel: str, tiles: Tiles, length: int, batch: int, key: dict[str, Any], device: torch.device
) -> Callable[[], Any]:
    """A function that runs one kernel (a backward's also runs delta) on padded random inputs."""
    problem = Problem(
        batch,
        length,
        padded=True,
        head_dim=key["head_dim"],
        dtype=key["dtype"],
        heads=key["heads"],
    )
    made = problem.make(device)
    seed = torch.zeros(1, dtype=torch.int64, device=device) if key["dropout"] else None
    matrices = (made.query, made.key, made.value, made.prefix_key, made.prefix_value)
    inputs = Inputs(*matrices, None, None, made.key_mask, None, seed)
    options = Options(0.1 if key["dropout"] else 0.0, 0.125, False, None, length)
    if kernel == "forward":
        return partial(_with_tiles, tiles, launch_forward, inputs, options)
    out, lse = launch_forward(inputs, options)
    return partial(
        *(_with_tiles, tiles, launch_backward, torch.randn_like(out), None),
        *(inputs, out, lse, NEEDS[kernel], options),
    )


def _with_tiles(tiles: Tiles, function: Callable[..., Any], *args: Any) -> Any:
    with override_tiles(tiles):
        return function(*args)


def fits(run: Callable[[], Any]) -> str | None:
    """Why a candidate cannot run; None if it can."""
    try:
        run()
    except Exception as error:  # whatever a compiler or a driver says against a candidate
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:120]}"
    return None


def tune(
    kernel: str, base: Tiles, key: dict[str, Any], shapes: Any, device: torch.device, toy: bool
) -> tuple[Tile | None, list[dict[str, Any]]]:
    """The best tile, and a row for each candidate."""
    rows: list[dict[str, Any]] = []
    runs: dict[Tile, list[Callable[[], Any]]] = {}
    for numbers in (TOY_CANDIDATES if toy else CANDIDATES)[kernel]:
        tile = Tile(*numbers)
        tiles = replace(base, **{kernel: tile})
        if kernel != "short_grad":
            tiles = replace(tiles, short_grad=None)
        else:
            shapes = ((shapes[0][0], tile.block_m),)
        runs[tile] = [call(kernel, tiles, n, batch, key, device) for batch, n in shapes]
    with ThreadPoolExecutor(
        1 if toy else 12
    ) as pool:  # most of a compilation is outside of Python
        reasons = dict(
            zip(runs, pool.map(lambda calls: fits(calls[0]), runs.values()), strict=True)
        )
    good = {tile: calls for tile, calls in runs.items() if reasons[tile] is None}
    seconds = [
        time_interleaved(
            {tile: calls[i] for tile, calls in good.items()}, device, 2 if toy else 15
        )
        for i in range(len(shapes))
    ]
    for tile, reason in reasons.items():
        row: dict[str, Any] = {"kernel": kernel, **asdict(tile)}
        if reason is None:
            row["seconds"] = [times[tile] for times in seconds]
            ratios = [times[tile] / min(times.values()) for times in seconds]
            row["score"] = math.prod(ratios) ** (1 / len(ratios))
        rows.append(row | ({"skipped": reason} if reason else {}))
    best = min((row for row in rows if "score" in row), key=lambda row: row["score"], default=None)
    fields = Tile.__dataclass_fields__
    return None if best is None else Tile(**{name: best[name] for name in fields}), rows


def keep_short(
    tiles: Tiles, short: Tile, key: dict[str, Any], batch: int, device: torch.device
) -> bool:
    """Whether one kernel beats the backward by blocks for the sequences it can take."""
    choices = {"short": replace(tiles, short_grad=short), "long": replace(tiles, short_grad=None)}
    runs = {
        name: call("short_grad", chosen, short.block_m, batch, key, device)
        for name, chosen in choices.items()
    }
    seconds = time_interleaved(runs, device, 15)
    return seconds["short"] < seconds["long"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=torch.device, default=default_device())
    parser.add_argument("--head-dims", type=int, nargs="+", default=[64])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--output", type=Path, required=True, help="folder of the tile files")
    parser.add_argument("--log", type=Path, required=True)
    args = parser.parse_args()
    device, toy = args.device, args.toy
    shapes = ((2, 12),) if toy else SHAPES
    architecture = tiling._tile_file(device)
    if not architecture.startswith("sm_"):
        architecture = f"sm_{torch.cuda.get_device_capability(device)[0]}0"
    folder = Path(tiling.__file__).parent / "tiles"
    content = json.loads((folder / f"{architecture}.json").read_text())
    log: dict[str, Any] = {"provenance": provenance(device), "tuned": {}}
    for head_dim, dtype, dropout in itertools.product(args.head_dims, args.dtypes, (False, True)):
        key = dict(head_dim=head_dim, dtype=dtype, dropout=dropout, heads=1 if toy else 12)
        name = tile_key(head_dim, getattr(torch, dtype), dropout)
        tiles = read_tiles(architecture, name)
        rows = log["tuned"][name] = []
        for kernel in tqdm(CANDIDATES, desc=name):
            best, tried = tune(kernel, tiles, key, shapes, device, toy)
            rows += tried
            if best is None or (
                kernel == "short_grad" and not keep_short(tiles, best, key, shapes[0][0], device)
            ):
                best = None if kernel == "short_grad" else getattr(tiles, kernel)
            tiles = replace(tiles, **{kernel: best})
            content["tiles"][name] = asdict(tiles)
            content |= {"device": device_name(device), "provenance": {"how": "timed on it"}}
            content["provenance"] |= log["provenance"] | {"tuned": list(log["tuned"])}
            write_json(args.log, log)
            write_json(args.output / f"{tiling.device_slug(device_name(device))}.json", content)


if __name__ == "__main__":
    main()

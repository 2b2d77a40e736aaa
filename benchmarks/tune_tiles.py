"""Find the fastest tile of each kernel on this GPU and write `tiles/<gpu>.json`.

    python benchmarks/tune_tiles.py --output kernels/ptv2_kernels/tiles --log results/tiles.json

Each kernel is timed alone with each candidate, over a few lengths; the winner has the smallest
geometric mean of its times relative to the best of each length. What is not tuned keeps the tiles
of the GPU's architecture. Candidates that spill or do not fit lose or are skipped, and say so.
"""

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
from bench_kernel import Problem, make
from measure import argument_parser, device_name, provenance, time_interleaved, write_json
from tqdm import tqdm

from ptv2_kernels import tiling
from ptv2_kernels.arguments import Inputs, Needs, Options
from ptv2_kernels.backward import launch_backward
from ptv2_kernels.forward import launch_forward
from ptv2_kernels.testing import relative_l2
from ptv2_kernels.tiling import Tile, Tiles, override_tiles, shipped_tiles, tile_key

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
    made = make(problem, device)
    seed = torch.zeros(1, dtype=torch.int64, device=device) if key["dropout"] else None
    matrices = (made.query, made.key, made.value, made.prefix_key, made.prefix_value)
    inputs = Inputs(*matrices, None, None, None, made.key_mask, None, seed)
    options = Options(0.1 if key["dropout"] else 0.0, 0.125, False, None, length)
    if kernel == "forward":
        return partial(_with_tiles, tiles, launch_forward, inputs, options)
    out, lse = launch_forward(inputs, options)
    grad_out = make(replace(problem, seed=1), device).query  # the same in every call
    return partial(
        *(_with_tiles, tiles, launch_backward, grad_out, None),
        *(inputs, out, lse, NEEDS[kernel], options),
    )


def _with_tiles(tiles: Tiles, function: Callable[..., Any], *args: Any) -> Any:
    with override_tiles(tiles):
        return function(*args)


def refusal(run: Callable[[], Any], expected: Any) -> str | None:
    """Why a candidate is out: it cannot run, or its result is another; None if it is good."""
    try:
        found = run()
    except Exception as error:  # whatever a compiler or a driver says against a candidate
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:120]}"
    pairs = [(x, y) for x, y in zip(found, expected, strict=True) if y is not None]
    good = all(relative_l2(x, y) < 2e-2 for x, y in pairs)
    return None if good else "WRONG: its result differs from the conservative tile's"


def tune(
    kernel: str,
    base: Tiles,
    candidates: list[tuple[int, ...]],
    key: dict[str, Any],
    shapes: tuple[tuple[int, int], ...],
    device: torch.device,
) -> tuple[Tile | None, list[dict[str, Any]]]:
    """The best tile over all shapes, (batch, length), and a row for each candidate."""
    runs: dict[Tile, list[Callable[[], Any]]] = {}
    for numbers in candidates:
        tile = Tile(*numbers)
        tiles = replace(base, **{"short_grad": None, kernel: tile})
        runs[tile] = [call(kernel, tiles, n, batch, key, device) for batch, n in shapes]
    expected = call(
        kernel, replace(base, short_grad=None), shapes[0][1], shapes[0][0], key, device
    )()
    # Most of a compilation happens outside of Python's lock.
    with ThreadPoolExecutor(12 if device.type == "cuda" else 1) as pool:
        reasons = pool.map(lambda calls: refusal(calls[0], expected), runs.values())
        refused = dict(zip(runs, reasons, strict=True))
    good = {tile: calls for tile, calls in runs.items() if refused[tile] is None}
    seconds = [
        time_interleaved({tile: calls[i] for tile, calls in good.items()}, device, rounds(device))
        for i in range(len(shapes))
    ]
    rows = []
    for tile, reason in refused.items():
        row: dict[str, Any] = {"kernel": kernel, "shapes": shapes, **asdict(tile)}
        if reason is None:
            row["seconds"] = [times[tile] for times in seconds]
            ratios = [times[tile] / min(times.values()) for times in seconds]
            row["score"] = math.prod(ratios) ** (1 / len(ratios))
        rows.append(row | ({"refused": reason} if reason else {}))
    scores = {tile: math.prod(times[tile] for times in seconds) for tile in good}
    return min(scores, key=lambda tile: scores[tile], default=None), rows


def tune_short(
    tiles: Tiles, candidates: list[tuple[int, ...]], key: dict[str, Any], batch: int,
    device: torch.device,
) -> tuple[Tile | None, list[dict[str, Any]]]:  # fmt: skip
    """The best tile of the one kernel, for the longest sequences for which it beats the others.

    Tiles of different height take sequences of different length: each height is a race of its own.
    """
    rows: list[dict[str, Any]] = []
    for height in sorted({numbers[0] for numbers in candidates}, reverse=True):
        racing = [numbers for numbers in candidates if numbers[0] == height]
        best, tried = tune("short_grad", tiles, racing, key, ((batch, height),), device)
        rows += tried
        if best is None:
            continue
        runs = {
            tile: call("short_grad", replace(tiles, short_grad=tile), height, batch, key, device)
            for tile in (best, None)
        }
        seconds = time_interleaved(runs, device, rounds(device))
        rows.append({"kernel": "backward by blocks", "rows": height, "seconds": seconds[None]})
        if seconds[best] < seconds[None]:
            return best, rows
    return None, rows


def rounds(device: torch.device) -> int:
    """How often each candidate is timed."""
    return 15 if device.type == "cuda" else 2


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--head-dims", type=int, nargs="+", default=[64])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    parser.add_argument("--log", type=Path, required=True)
    args = parser.parse_args()
    device, toy = args.device, args.toy
    shapes = ((2, 12),) if toy else SHAPES
    candidates = TOY_CANDIDATES if toy else CANDIDATES
    architecture = tiling.architecture(device)
    folder = Path(tiling.__file__).parent / "tiles"
    content = json.loads((folder / f"{architecture}.json").read_text())
    log: dict[str, Any] = {"provenance": provenance(device), "tuned": {}}
    for head_dim, dtype, dropout in itertools.product(args.head_dims, args.dtypes, (False, True)):
        key = dict(head_dim=head_dim, dtype=dtype, dropout=dropout, heads=1 if toy else 12)
        name = tile_key(head_dim, getattr(torch, dtype), dropout)
        tiles = shipped_tiles(architecture, head_dim, getattr(torch, dtype), dropout)
        rows = log["tuned"][name] = []
        for kernel in tqdm(CANDIDATES, desc=name):
            if kernel == "short_grad":
                best, tried = tune_short(tiles, candidates[kernel], key, shapes[0][0], device)
            else:
                found, tried = tune(kernel, tiles, candidates[kernel], key, shapes, device)
                if found is None:
                    write_json(args.log, log | {"refused": tried})
                    raise SystemExit(
                        f"{name}, {kernel}: every candidate was refused, see {args.log}"
                    )
                best = found
            rows += tried
            tiles = replace(tiles, **{kernel: best})
            content["tiles"][name] = asdict(tiles)
            content |= {"device": device_name(device), "provenance": {"how": "timed on it"}}
            content["provenance"] |= log["provenance"] | {"tuned": list(log["tuned"])}
            write_json(args.log, log)
            write_json(args.output / f"{tiling.device_slug(device_name(device))}.json", content)


if __name__ == "__main__":
    main()

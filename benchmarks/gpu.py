"""Everything that only a GPU can say, in one command.

    make gpu                  # or: python benchmarks/gpu.py [--results benchmarks/results]
    [--rehearse]

Each step is a script of its own, run with the Python and the sources this one runs with, and
writes its result at once into a folder named after the GPU. A step whose result is there, of the
same commit, is not run again, so the command goes on where it was stopped. A step that fails or
runs past its time does not stop the others; the exit code says that it happened.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))  # started without a PYTHONPATH

import torch
from measure import commit, device_name, provenance, write_json

from ptv2_kernels.tiling import device_slug

SLOWER = 20
"""How many times as long as on a GPU a rehearsal may take."""
HERE = Path(__file__).parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Step:
    """One script and its time limit."""

    name: str
    script: str
    limit: int  # seconds
    arguments: tuple[str, ...] = ()


def steps(folder: Path) -> list[Step]:
    """In the order of what is worth most, under 30 minutes together."""
    hardware = ("--hardware", str(folder / "hardware.json"))
    tuning = ("--log", str(folder / "tiles.json"))
    return [
        Step("hardware", "hardware.py", 60),
        Step("check", "check_kernels.py", 330),
        Step("kernel", "bench_kernel.py", 240, ("--problems", "short", "training", *hardware)),
        Step("tiles", "tune_tiles.py", 360, tuning),
        Step("kernel-tuned", "bench_kernel.py", 300, hardware),
        Step("host", "bench_host.py", 80),
        Step("model", "bench_model.py", 90),
        Step("serving", "bench_serving.py", 240, ("--random", "--quick", "--dtype", "bf16")),
    ]


def done(path: Path, at: str | None) -> bool:
    """Whether a step's result is there, from this commit."""
    if not path.exists() or at is None or at.endswith("+changes"):
        return False
    found = json.loads(path.read_text())
    return bool(found["provenance"]["commit"] == at and found.get("finished"))


def run(step: Step, output: Path, tiles: Path, at: str | None, rehearse: bool) -> bool:
    """Run a step; whether it succeeded. Its result is marked as finished."""
    target = tiles if step.name == "tiles" else output
    command = [sys.executable, str(HERE / step.script), "--output", str(target), *step.arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "kernels", ROOT)))}
    environment |= {"HF_HUB_OFFLINE": "1"} | ({"PTV2_COMMIT": at} if at else {})
    if rehearse:
        command += ["--toy", "--device", "cpu"]
        if step.name.startswith("kernel"):
            command += ["--rounds", "1", "--problems", "training", "bank"]
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    begin = time.monotonic()
    print(f"== {step.name}", flush=True)
    try:
        limit = step.limit * (SLOWER if rehearse else 1)
        code = subprocess.run(command, env=environment, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        code = None
    seconds = time.monotonic() - begin
    outcome = "out of time" if code is None else "good" if code == 0 else f"exit code {code}"
    print(f"== {step.name}: {outcome}, {seconds:.0f} s", flush=True)
    if output.exists():
        content = json.loads(output.read_text())
        write_json(output, content | {"finished": code == 0, "seconds": seconds})
    return code == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--tiles", type=Path, default=ROOT / "kernels" / "ptv2_kernels" / "tiles")
    parser.add_argument("--steps", nargs="+", help="only these")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at toy sizes")
    args = parser.parse_args()
    if not args.rehearse and not torch.cuda.is_available():
        parser.error("no NVIDIA GPU is visible; --rehearse tries the steps on the CPU")
    device = torch.device("cpu" if args.rehearse else "cuda")
    folder = args.results / ("rehearsal" if args.rehearse else device_slug(device_name(device)))
    tiles = folder if args.rehearse else args.tiles
    at = commit(HERE)
    print(json.dumps(provenance(device)), flush=True)
    names = [step.name for step in steps(folder)]
    unknown = set(args.steps or ()) - set(names)
    if unknown:
        parser.error(f"--steps: expected some of {', '.join(names)}, got {', '.join(unknown)}")
    failed = []
    for step in steps(folder):
        output = folder / f"{step.name}.json"
        if args.steps and step.name not in args.steps:
            continue
        if done(output, at):
            print(f"== {step.name}: done before", flush=True)
        elif not run(step, output, tiles, at, args.rehearse):
            failed.append(step.name)
    tuned = tiles / f"{folder.name}.json"
    if tuned.exists() and tiles != folder:
        shutil.copy(tuned, folder / "tile-file.json")  # where results are all that is kept
    print("failed:", ", ".join(failed) or "none")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

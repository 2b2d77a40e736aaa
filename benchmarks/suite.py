"""All benchmarks that speak of ptv2 beside its rivals, and a report of what they say.

    ptv2 bench --quick --output build/bench                # or: make bench
    ptv2 bench --full --data DATA --output build/bench     # a night
    ptv2 bench --compare build/before build/bench

Four parts, each a script of its own that first checks answers and then times in turns: `kernel`
(bench_kernel.py), `training` (bench_training.py), `methods` (bench_methods.py: quality, size and
serving of every way to adapt an encoder) and `serving` (bench_serving.py); `--full` has `quality`
too (bench_quality.py), which needs `--data`. Each writes FOLDER/PART.json; with all of them come
FOLDER/report.html, one page without other files, and FOLDER/report.md. A part that fails does not
stop the others: the report says so, and the exit code. `--full` in the folder of one that was
stopped goes on with its training runs. `--report` makes the report again.

`--rivals` names the folder that `environments.sh` has made; without it PEFT is the one installed
here, and `adapters` is missing. `--quick` leaves out `adapters` and some of the methods.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from compare import PARTS, compare, read_part
from measure import default_device, provenance, write_json
from report import write_report

HERE = Path(__file__).parent
ROOT = HERE.parent
CPU_QUICK = (
    "cpu 16x128, prompt 20, head 64, float32",
    "cpu 16x128, prompt 20, head 64, bfloat16",
    "cpu 64x32, prompt 16, head 32, float32",
)
GPU_QUICK = ("short", "training", "bank")
RESUMED = ("methods", "quality")
"""Their scripts keep the training runs that they find, if these have the same settings."""
QUICK_METHODS = ("ptv2", "peft-prefix", "peft-lora", "fine-tuning")


@dataclass(frozen=True)
class Part:
    """A script, and what it is given."""

    name: str
    script: str
    arguments: tuple[str, ...]


def parts(args: argparse.Namespace) -> list[Part]:
    """What runs, in order."""
    data = ("--data", str(args.data)) if args.data else ()
    device = ("--device", str(args.device))
    rivals, adapters = (), ()
    if args.rivals:
        rivals = ("--rivals", str(args.rivals))
        adapters = ("--adapters-python", str(args.rivals / "adapters" / "bin" / "python"))
    problems = CPU_QUICK if args.device.type == "cpu" else GPU_QUICK
    quick: dict[str, tuple[str, ...]] = {
        "kernel": ("--problems", *problems, "--rounds", "8"),
        "training": ("--quick",),
        "methods": ("--quick", "--methods", *QUICK_METHODS),
        "serving": (
            *("--quick", "--systems", "ptv2", "bare", "peft", "--seconds", "0.7"),
            *("--points", "1", "--memory-tasks", "10", "--many", "50"),
        ),
    }
    chosen = quick if args.quick else dict.fromkeys(quick, ())
    found = [
        Part("kernel", "bench_kernel.py", (*chosen["kernel"], *device)),
        Part("training", "bench_training.py", (*chosen["training"], *data, *device)),
        Part("methods", "bench_methods.py", (*chosen["methods"], *data, *rivals, *device)),
        Part("serving", "bench_serving.py", (*chosen["serving"], *data, *adapters, *device)),
    ]
    if not args.quick and args.data:
        found.append(Part("quality", "bench_quality.py", data))
    return [part for part in found if args.only is None or part.name in args.only]


def require_native() -> None:
    """Raise a SystemExit where a CPU would run ptv2's reference, which is slow."""
    sys.path.insert(0, str(ROOT / "kernels"))
    from ptv2_kernels.native import WHY_MISSING

    if WHY_MISSING is not None:
        sys.exit(f"the sources have no native CPU implementation: {WHY_MISSING}")


def run(part: Part, output: Path) -> str | None:
    """Run a part; what went wrong."""
    paths = os.pathsep.join(map(str, (ROOT / "kernels", ROOT)))
    environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    environment["TOKENIZERS_PARALLELISM"] = "false"
    command = [sys.executable, str(HERE / part.script), "--output", str(output), *part.arguments]
    print(f"== {part.name}", flush=True)
    begin = time.monotonic()
    code = subprocess.run(command, env=environment).returncode
    print(f"== {part.name}: exit code {code}, {time.monotonic() - begin:.0f} s", flush=True)
    return None if code == 0 else f"{part.script} ended with exit code {code}"


def bench(args: argparse.Namespace) -> dict[str, str]:
    """Run the parts; those that failed, and why. Each leaves its own provenance."""
    if args.device.type == "cpu":
        require_native()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.only is None and args.quick:
        for name in (*PARTS, "suite"):
            (args.output / f"{name}.json").unlink(missing_ok=True)
    about = read_part(args.output, "suite") or {"parts": {}}
    mode = "quick" if args.quick else "full"
    failed = {}
    for part in parts(args):
        output = args.output / f"{part.name}.json"
        before = about["parts"].get(part.name, {}).get("mode", mode)
        if "quick" in (mode, before) or part.name not in RESUMED:
            output.unlink(missing_ok=True)
        entry = {**provenance(args.device), "mode": mode, "failed": f"{part.script} was stopped"}
        about["parts"][part.name] = entry
        write_json(args.output / "suite.json", about)
        why = entry["failed"] = run(part, output)
        write_json(args.output / "suite.json", about)
        if why is not None:
            failed[part.name] = why
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="ptv2 bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, metavar="FOLDER", help="where results and the report go")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="some five minutes on two cores")
    how.add_argument("--full", action="store_true", help="everything")
    how.add_argument("--report", action="store_true", help="only the report of what is there")
    how.add_argument(
        "--compare", type=Path, nargs=2, metavar="FOLDER", help="what differs between two results"
    )
    add("--only", nargs="+", choices=PARTS, help="these parts")
    add("--data", type=Path, help="has sst2/train.jsonl and so on; else what the package ships")
    add("--rivals", type=Path, help="the folder that environments.sh has made")
    add("--device", type=torch.device, default=default_device())
    args = parser.parse_args()
    if args.compare:
        return print(compare(*args.compare))
    if args.output is None or not (args.quick or args.full or args.report):
        parser.error("expected --output with one of --quick, --full and --report, or --compare")
    if args.report and not (args.output / "suite.json").is_file():
        parser.error(f"--report: there are no results in {args.output}")
    if args.only and "quality" in args.only and (args.quick or not args.data):
        parser.error("--only quality: expected --full and --data with it")
    failed = {} if args.report else bench(args)
    write_report(args.output)
    print(f"{args.output / 'report.html'}, {args.output / 'report.md'}")
    if failed:
        sys.exit("; ".join(f"{name}: {why}" for name, why in failed.items()))


if __name__ == "__main__":
    main()

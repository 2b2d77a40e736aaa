"""The micro benchmarks' history: ratios to the rival, which a slower machine leaves as they are.

    python benchmarks/micro_history.py RUN.json [RUN.json ...] --history HISTORY.json [--add]

RUN.json is what pytest-benchmark has written; of several, each from a process of its own, a ratio
is the median, because memory lies differently in every process. The exit code is 1 if ptv2 takes
more than 1.2 times as much of the rival's time as in the median of the last five entries of such a
device.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from measure import default_device, device_name, provenance, write_json

LIMIT, REMEMBERED = 1.2, 5


def ratios(run: Any) -> dict[str, float]:
    """ptv2's time in terms of the rival's; of the fastest rounds, which noise reaches least."""
    seconds: dict[tuple[str, bool], float] = {}
    for found in run["benchmarks"]:
        about = found["extra_info"]
        seconds[f"{about['name']}: {about['part']}", about["own"]] = found["stats"]["min"]
    names = {name for name, _ in seconds}
    return {name: seconds[name, True] / seconds[name, False] for name in sorted(names)}


def regressions(found: dict[str, float], history: list[Any], device: str) -> list[str]:
    """What has become slower by more than the limit."""
    before = [entry["ratios"] for entry in history if entry["device"] == device][-REMEMBERED:]
    slower = []
    for name, ratio in found.items():
        known = [entry[name] for entry in before if name in entry]
        if known and ratio > LIMIT * median(known):
            slower.append(f"{name}: {ratio:.2f} of the rival's time, was {median(known):.2f}")
    return slower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--add", action="store_true", help="remember this run, if it is good")
    args = parser.parse_args()
    each = [ratios(json.loads(run.read_text())) for run in args.runs]
    found = {name: median(run[name] for run in each) for name in each[0]}
    history = json.loads(args.history.read_text()) if args.history.exists() else []
    device = device_name(default_device())
    slower = regressions(found, history, device)
    for name, ratio in found.items():
        print(f"{ratio:8.2f}  {name}")
    if slower:
        sys.exit("slower than before:\n  " + "\n  ".join(slower))
    if args.add:
        about = provenance(default_device())
        entry = {"device": device, "ratios": found} | {
            k: about[k] for k in ("commit", "date", "versions")
        }
        write_json(args.history, [*history, entry])


if __name__ == "__main__":
    main()

"""Many prompts at once: runs that train together on one frozen backbone."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..model import PromptModel
from ..run_directory import CHECKPOINTS, open_run
from .features import prepare
from .learner import start_learners
from .loop import Loop
from .plan import read_plan, runs_of_plan
from .plot import has_matplotlib, require_matplotlib
from .results import Results
from .runs import Run, check_runs, grid

__all__ = ["Run", "grid", "has_matplotlib", "read_plan", "runs_of_plan", "sweep"]


def sweep(
    model: PromptModel,
    runs: Sequence[Run],
    output_dir: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    plot: bool = False,
) -> dict[str, Any]:
    """Train many prompts at once on the model's one backbone.

    The forward of a step holds a batch of each run that is still going, in one packed layout. A
    run keeps its own order of examples, optimizer, schedule and clipping: without dropout it
    learns what `training.train` would teach it alone. One whose loss is no longer finite stops,
    and the others do not notice.

    The best epoch of each run stays in the model, as a task of its name, and is saved in a folder
    of its name, as `train` saves it. If all runs read the same data, `best/` is a copy of the
    best. `sweep.json` holds what is returned.

    Args:
        output_dir: the sweep's directory.
        resume: go on from the last checkpoint there, to bitwise the same end as without a stop.
        overwrite: replace the sweep that is there: each prompt when the run of its name is done,
            all else at the end.
        plot: also draw `sweep.png`, scores and losses over the epochs. Needs matplotlib, which
            the extra "plot" installs.

    Returns:
        `best`, the best run of each data set; `runs`, a row for each with its score, its best
        epoch, the step at which it diverged, the settings that vary, its history; `train_seconds`
        and `environment`.

    Raises:
        FileExistsError: the directory is not empty, and neither resume nor overwrite is given.
        FileNotFoundError: there is no sweep to resume, or no prompt to start from.
        ImportError: there is no matplotlib to plot with.
        NotImplementedError: several processes were started.
        ValueError: runs cannot train together or do not fit the model or their data, the sweep
            to resume has other settings or data, or it is to be both resumed and overwritten.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise NotImplementedError(
            "sweep: expected one process, got several; train runs in several"
        )
    if resume and overwrite:
        raise ValueError("overwrite: expected either resume or overwrite, got both")
    if plot:
        require_matplotlib()
    check_runs(model, runs)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    output_dir = Path(output_dir).resolve()
    features = prepare(runs)
    results = Results(model, runs, features, output_dir)
    start = time.perf_counter()
    unlearned, lock = {run.name for run in runs}, None
    try:
        learners = start_learners(model, runs, features)
        lock = open_run(output_dir, results.plan, resume, overwrite)
        loop = Loop(model, learners, features, output_dir / CHECKPOINTS, results)
        if resume:
            loop.resume()
        loop.run()
        table = results.write(learners, time.perf_counter() - start, plot)
        unlearned = {row["name"] for row in table["runs"] if row["score"] is None}
        return table
    finally:
        for name in unlearned & model.tasks.keys():
            model.remove_task(name)
        if lock is not None:
            os.close(lock)

"""What a sweep leaves behind: a folder for each run, the best one, a table and a plot."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from ..assets import CARD, is_asset
from ..config import check_task_name
from ..model import PromptModel
from ..run_directory import (
    CHECKPOINTS,
    METRICS,
    RUN_CONFIG,
    describe_run,
    environment,
    save_run,
    surroundings,
)
from ..storage import write_json
from .features import Features
from .learner import Learner
from .plot import save_plot
from .runs import BEST, Run

TABLE, PLOT = "sweep.json", "sweep.png"


class Results:
    """The directory of a sweep.

    Args:
        features: of training and validation, by the run's name.

    Raises:
        FileExistsError: a run's folder would overwrite what is not a prompt, or the directory has
            files of something else by the names of a sweep's.
    """

    def __init__(
        self,
        model: PromptModel,
        runs: Sequence[Run],
        features: Mapping[str, tuple[Features, Features]],
        directory: Path,
    ) -> None:
        for name in (*(run.name for run in runs), BEST):
            folder = directory / name
            if folder.is_file() or ((folder / CARD).exists() and not is_asset(folder)):
                raise FileExistsError(f"output: {folder} is not a saved prompt")
        self.model = model
        self.features = features
        self.directory = directory
        self.runs = tuple(runs)
        self._older = _older_runs(directory)
        settings = [_settings(run) for run in runs]
        self._varied = [
            name for name in settings[0] if any(s[name] != settings[0][name] for s in settings)
        ]

    @cached_property
    def plan(self) -> dict[str, Any]:
        """All runs, whose tasks the model has by now; with these alone they are resumed."""
        described = {
            run.name: {
                **describe_run(
                    self.model,
                    run.name,
                    run.task,
                    run.train,
                    run.data,
                    [part.sha256 for part in self.features[run.name]],
                ),
                "shared": run.shared,
            }
            for run in self.runs
        }
        return {"order": list(described), "runs": described}

    def save(self, learner: Learner, seconds: float) -> None:
        """Save the best epoch of runs that are done, if they have one."""
        for run in learner.runs if learner.best is not None else ():
            references = self.features[run.name][1].references
            metrics = {
                "best": _best_epoch(learner, run),
                "history": learner.history[run.name],
                "train_seconds": round(seconds, 1),
                **surroundings(self.model, run.name, run.task, references),
            }
            folder = self.directory / run.name
            save_run(self.model, run.name, folder, self.plan["runs"][run.name], metrics)

    def write(self, learners: Sequence[Learner], seconds: float, plot: bool) -> dict[str, Any]:
        """Write the table, the plot and the best prompt, in place of those of an older sweep."""
        rows = [self._row(learner, run) for learner in learners for run in learner.runs]
        places = [run.name for run in self.runs]
        rows.sort(key=lambda row: places.index(row["name"]))
        best = [_best_of(rows, data) for data in sorted({row["data"] for row in rows})]
        table = {
            "best": [name for name in best if name is not None],
            "runs": rows,
            "train_seconds": round(seconds, 1),
            "environment": environment(),
        }
        self._remove_older({row["name"] for row in rows if row["score"] is not None})
        if len(best) == 1 and best[0] is not None:
            self.model.save_task(best[0], self.directory / BEST)
            for file in (RUN_CONFIG, METRICS):
                shutil.copyfile(self.directory / best[0] / file, self.directory / BEST / file)
        if plot:
            save_plot(self.directory / PLOT, rows)
        write_json(self.directory / TABLE, table)
        return table

    def _row(self, learner: Learner, run: Run) -> dict[str, Any]:
        validation = [id(features) for _, features in self.features.values()]
        found = list(dict.fromkeys(validation))
        best = _best_epoch(learner, run)
        metric = run.task.best_metric
        return {
            "name": run.name,
            "data": found.index(id(self.features[run.name][1])),
            "metric": metric,
            "score": None if best is None else best[metric],
            "epoch": None if best is None else best["epoch"],
            "diverged_at_step": learner.diverged,
            "settings": {name: _settings(run)[name] for name in self._varied},
            "history": learner.history[run.name],
        }

    def _remove_older(self, saved: set[str]) -> None:
        """Remove what a sweep that is overwritten has left, and this one did not save anew."""
        (self.directory / PLOT).unlink(missing_ok=True)
        own = {run.name for run in self.runs}
        for name in (self._older | own | {BEST}) - saved:
            if is_asset(self.directory / name):
                shutil.rmtree(self.directory / name)


def _older_runs(directory: Path) -> set[str]:
    """The runs of a sweep that is to be overwritten, as it ended or as it began."""
    names: set[str] = set()
    for path in (directory / TABLE, directory / CHECKPOINTS / RUN_CONFIG):
        if not path.is_file():
            continue
        try:
            for row in json.loads(path.read_text(encoding="utf-8"))["runs"]:
                name = row["name"] if isinstance(row, dict) else row
                check_task_name(name)
                names.add(name)
        except (ValueError, LookupError, TypeError) as error:
            raise FileExistsError(
                f"output: {path} is not of a sweep, expected another directory: {error!r}"
            ) from None
    return names


def _best_epoch(learner: Learner, run: Run) -> dict[str, Any] | None:
    if learner.best is None:
        return None
    epoch: int = learner.best["epoch"]
    return learner.history[run.name][epoch - 1]


def _best_of(rows: Sequence[Mapping[str, Any]], data: int) -> str | None:
    """The name of the run with the best score among those of one data set."""
    scored = [row for row in rows if row["data"] == data and row["score"] is not None]
    return max(scored, key=lambda row: row["score"])["name"] if scored else None


def _settings(run: Run) -> dict[str, Any]:
    settings = {**run.prompt.to_dict(), **asdict(run.train)}
    settings |= {"shared": run.shared, "start_from": run.start_from and str(run.start_from)}
    return {name: x for name, x in settings.items() if name not in ("task", "labels")}

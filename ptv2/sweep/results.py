"""What a sweep leaves behind: a folder for each run, the best one, a table and a plot."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..assets import CARD, is_asset
from ..model import PromptModel
from ..run_directory import METRICS, RUN_CONFIG, environment
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
        FileExistsError: a run's folder would overwrite what is not a prompt.
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
        backbone = model.identity.describe()
        self.runs = {
            run.name: run.describe(backbone, (train.sha256, validation.sha256))
            for run in runs
            for train, validation in [features[run.name]]
        }
        settings = [_settings(run) for run in runs]
        self._varied = [
            name for name in settings[0] if any(s[name] != settings[0][name] for s in settings)
        ]

    @property
    def plan(self) -> dict[str, Any]:
        """The settings of all runs, with which alone they are resumed."""
        return {"runs": self.runs}

    def save(self, learner: Learner, seconds: float) -> None:
        """Save the best epoch of runs that are done, if they have one."""
        for run in learner.runs if learner.best is not None else ():
            folder = self.directory / run.name
            self.model.save_task(run.name, folder)
            module = self.model.for_task(run.name)
            metrics = {
                "best": _best_epoch(learner, run),
                "history": learner.history[run.name],
                "train_seconds": round(seconds, 1),
                "majority": run.task.majority(self.features[run.name][1].references),
                "trained_parameters": sum(
                    p.numel() for p in module.parameters() if p.requires_grad
                ),
                "environment": environment(),
            }
            write_json(folder / RUN_CONFIG, self.runs[run.name])
            write_json(folder / METRICS, metrics)

    def write(self, learners: Sequence[Learner], seconds: float, plot: bool) -> dict[str, Any]:
        """Write the table, the plot and the best prompt, in place of those of an older sweep."""
        rows = [self._row(learner, run) for learner in learners for run in learner.runs]
        places = list(self.runs)
        rows.sort(key=lambda row: places.index(row["name"]))
        best = [_best_of(rows, data) for data in sorted({row["data"] for row in rows})]
        table = {
            "best": [name for name in best if name is not None],
            "runs": rows,
            "train_seconds": round(seconds, 1),
            "environment": environment(),
        }
        self._remove_older()
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

    def _remove_older(self) -> None:
        """Remove what a sweep that is overwritten has left, and this one does not replace."""
        (self.directory / PLOT).unlink(missing_ok=True)
        names = [BEST]
        if (self.directory / TABLE).is_file():
            table = json.loads((self.directory / TABLE).read_text(encoding="utf-8"))
            names += [row["name"] for row in table["runs"] if row["name"] not in self.runs]
        for name in names:
            if is_asset(self.directory / name):
                shutil.rmtree(self.directory / name)


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

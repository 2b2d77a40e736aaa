"""One prompt that is being trained, with all that belongs to it alone."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import Batches
from ..model import PromptModel
from ..schedules import make_schedule
from ..tasks.task import Feature
from ..training import make_optimizer
from .features import Features
from .runs import Run, groups_of


class Learner:
    """A prompt, the heads of the runs that share it (mostly one), and their training state.

    Args:
        model: has a task for each of the runs.
        runs: of one group.
        features: for training, by the run's name.
    """

    def __init__(
        self, model: PromptModel, runs: Sequence[Run], features: Mapping[str, Features]
    ) -> None:
        self.runs = tuple(runs)
        self.features = features
        config = runs[0].train
        heads = nn.ModuleDict({run.name: model.heads[run.name] for run in runs})
        self.parts = nn.ModuleDict({"prompt": model.prompts[runs[0].name], "head": heads})
        self.batches = {run.name: _batches(run, features[run.name]) for run in runs}
        self.epoch_steps = max(len(batches) for batches in self.batches.values())
        self.steps = config.epochs * self.epoch_steps
        self.optimizer = make_optimizer(self.parts, config)
        self.schedule = make_schedule(
            config.scheduler, self.optimizer, self.steps, config.epochs, config.warmup_ratio
        )
        self.max_grad_norm = config.max_grad_norm
        self._order: dict[str, tuple[int, list[list[int]]]] = {}
        self.step = 0
        self.diverged: int | None = None
        """The step whose loss was not finite, from which on the prompt is left alone."""
        self.losses = dict.fromkeys(self.batches, 0.0)
        """The sums of the losses since the last epoch ended, by the run's name."""
        self.history: dict[str, list[dict[str, Any]]] = {run.name: [] for run in runs}
        self.best: dict[str, Any] | None = None
        """Epoch, mean score and values of the best epoch."""

    @property
    def going(self) -> bool:
        """Whether there are steps to take."""
        return self.step < self.steps and self.diverged is None

    @property
    def epoch_ended(self) -> bool:
        """Whether the last step was the last of an epoch."""
        return self.step % self.epoch_steps == 0

    def next_batch(self) -> dict[str, list[Feature]]:
        """Features of each run for the next step; data that is at its end starts again."""
        return {name: self.features[name][self._places(name)] for name in self.batches}

    def _places(self, name: str) -> list[int]:
        batches = self.batches[name]
        epoch, place = divmod(self.step, len(batches))
        if name not in self._order or self._order[name][0] != epoch:
            batches.set_epoch(epoch)
            self._order[name] = epoch, list(batches)
        return self._order[name][1][place]

    def update(self) -> None:
        """Take the step whose gradients have arrived."""
        nn.utils.clip_grad_norm_(self.parts.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.step += 1

    def note_losses(self, losses: Mapping[str, float]) -> None:
        """Add up the losses of the last step."""
        for name in self.batches:
            self.losses[name] += losses[name]
            if not math.isfinite(losses[name]):
                self.diverged = self.step

    def note_scores(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        """End an epoch: validation loss and scores of each run; the best epoch is kept."""
        if not all(math.isfinite(scores[run.name]["loss"]) for run in self.runs):
            self.diverged = self.step
            return
        epoch = self.step // self.epoch_steps
        for name, history in self.history.items():
            train_loss = self.losses[name] / self.epoch_steps
            history.append({"epoch": epoch, "train_loss": train_loss, **scores[name]})
        self.losses = dict.fromkeys(self.batches, 0.0)
        own = [scores[run.name][run.task.best_metric] for run in self.runs]
        score = sum(own) / len(own)
        if self.best is None or score > self.best["score"]:
            self.best = {"epoch": epoch, "score": score, "values": self._values()}

    def take_best(self) -> None:
        """Put the values of the best epoch back."""
        if self.best is not None:
            self.parts.load_state_dict(self.best["values"])

    def _values(self) -> dict[str, Tensor]:
        return {name: x.to("cpu", copy=True) for name, x in self.parts.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs."""
        return {
            "values": self._values(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            **{name: getattr(self, name) for name in _STATE},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self.parts.load_state_dict(state["values"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        for name in _STATE:
            setattr(self, name, state[name])


def start_learners(
    model: PromptModel, runs: Sequence[Run], features: Mapping[str, tuple[Features, Features]]
) -> list[Learner]:
    """Add a task for every run to the model; its values are what its own seed draws.

    Args:
        features: of training and validation, by the run's name.
    """
    training = {name: part for name, (part, _) in features.items()}
    learners = []
    for group in groups_of(runs):
        for run in group:
            torch.manual_seed(run.train.seed)
            if run is group[0]:
                saved = None if run.start_from is None else Path(run.start_from)  # no task's name
                model.add_task(run.name, run.prompt, start_from=saved)
            else:
                model.add_task(run.name, run.prompt, share_prompt_with=group[0].name)
        learners.append(Learner(model, group, training))
    torch.manual_seed(runs[0].train.seed)  # of what dropout there is
    return learners


_STATE = ("step", "diverged", "losses", "history", "best")


def _batches(run: Run, features: Features) -> Batches:
    config = run.train
    return Batches(
        features.tokens(config.packing),
        config.batch_size,
        config.token_budget,
        config.packing,
        config.seed,
    )

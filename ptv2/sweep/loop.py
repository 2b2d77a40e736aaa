"""The training loop of a sweep: one forward and one backward a step for all runs."""

import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from ..batches import validation_batches
from ..model import PromptModel
from ..outputs import MixedTaskOutput
from ..tasks.collate import mix
from ..tasks.task import Feature, decode_all
from ..training import prepare_module
from .features import Features
from .learner import Learner
from .results import Results
from .runs import Run
from .state import load_state, save_state


class Loop:
    """Trains the prompts of all runs.

    Args:
        model: has a task for each run.
        learners: of all runs.
        features: for training and for validation, by the run's name.
        checkpoints: the directory of the state to resume from.
        results: where a finished run is saved.
    """

    def __init__(
        self,
        model: PromptModel,
        learners: Sequence[Learner],
        features: Mapping[str, tuple[Features, Features]],
        checkpoints: Path,
        results: Results,
    ) -> None:
        runs = [run for learner in learners for run in learner.runs]
        self.model = model
        self.learners = tuple(learners)
        self.tasks = {run.name: run.task for run in runs}
        self.validation = {run.name: features[run.name][1] for run in runs}
        self.checkpoints = checkpoints
        self.results = results
        self.config = runs[0].train
        self.module = prepare_module(model, runs[0].name, self.config)

    def run(self) -> None:
        """Train until every run is done; each is saved when it is."""
        start = time.perf_counter()
        total = max(learner.steps for learner in self.learners)
        every = self.config.save_steps
        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("", total=total)
            while going := [learner for learner in self.learners if learner.going]:
                runs = sum(len(learner.runs) for learner in going)
                step = going[0].step  # all have taken as many
                progress.update(
                    bar, completed=step, description=f"{runs} of {len(self.tasks)} runs"
                )
                self._step(going)
                ended = [x for x in going if x.epoch_ended and x.diverged is None]
                if ended:
                    self._end_epoch(ended)
                for learner in going:
                    if not learner.going:
                        learner.take_best()
                        self.results.save(learner, time.perf_counter() - start)
                if ended or (every and (step + 1) % every == 0):
                    self._save_state()

    def _step(self, learners: Sequence[Learner]) -> None:
        self.model.train()
        self.module.train()  # the backbone, by the settings of dropout and checkpointing
        batches = {
            name: features
            for learner in learners
            for name, features in learner.next_batch().items()
        }
        losses = self._forward(batches).losses
        assert losses is not None
        of_all = torch.stack(list(losses.values()))
        of_all.sum().backward()
        for learner in learners:
            learner.update()
        values = dict(zip(losses, of_all.tolist(), strict=True))  # waits for a GPU
        for learner in learners:
            learner.note_losses(values)

    def _forward(self, batches: Mapping[str, Sequence[Feature]]) -> MixedTaskOutput:
        device = self.model.device
        batch = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in mix(self.tasks, batches).items()
        }
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            output = self.model(**batch)
        assert isinstance(output, MixedTaskOutput)
        return output

    def _end_epoch(self, learners: Sequence[Learner]) -> None:
        scores = self._scores([run for learner in learners for run in learner.runs])
        for learner in learners:
            learner.note_scores(scores)

    @torch.no_grad()
    def _scores(self, runs: Sequence[Run]) -> dict[str, dict[str, float]]:
        """Mean loss and scores of each run's validation examples, in batches of like length."""
        self.model.eval()
        batches = {run.name: self._validation_batches(run) for run in runs}
        losses = dict.fromkeys(batches, 0.0)
        logits: dict[str, dict[int, list[Tensor]]] = {name: {} for name in batches}
        for turn in range(max(map(len, batches.values()))):
            places = {name: own[turn] for name, own in batches.items() if turn < len(own)}
            features = {name: self.validation[name][own] for name, own in places.items()}
            output = self._forward(features)
            assert output.losses is not None
            assert output.logits is not None
            rows = iter([row.float().cpu() for row in output.logits if row is not None])
            for name, own in places.items():
                losses[name] += float(output.losses[name]) * len(own)
                for place, feature in zip(own, features[name], strict=True):
                    count = len(self.tasks[name].sequences(feature))
                    logits[name][place] = list(islice(rows, count))
        return {
            name: {"loss": losses[name] / len(found), **self._score(name, found)}
            for name, found in logits.items()
        }

    def _validation_batches(self, run: Run) -> list[list[int]]:
        config = run.train
        lengths = self.validation[run.name].tokens(config.packing)
        return validation_batches(lengths, config.batch_size, config.token_budget, config.packing)

    def _score(self, name: str, logits: Mapping[int, list[Tensor]]) -> dict[str, float]:
        places = range(len(logits))
        rows = [row for place in places for row in logits[place]]
        features = self.validation[name]
        answers = decode_all(self.tasks[name], features[places], rows)
        return self.tasks[name].score(answers, features.references)

    def _save_state(self) -> None:
        state = {
            "learners": [learner.state_dict() for learner in self.learners],
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        save_state(self.checkpoints, state)

    def resume(self) -> None:
        """Go back to the last checkpoint, if there is one."""
        state = load_state(self.checkpoints)
        if state is None:
            return
        for learner, own in zip(self.learners, state["learners"], strict=True):
            learner.load_state_dict(own)
        torch.set_rng_state(state["random"])
        if state["random_cuda"]:
            torch.cuda.set_rng_state_all(state["random_cuda"])

"""The transformers `Trainer` with our batches, and scores of decoded answers."""

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from . import checkpoints
from .batches import Batches, token_counts, validation_batches
from .schedules import make_schedule
from .tasks import Collator, Task
from .tasks.collate import split_logits
from .tasks.task import decode_all


class Diverged(ValueError):
    """The loss on the validation data is not finite, so that no later epoch can be better."""


class PromptTrainer(Trainer):
    """Trains one module on one task.

    Args:
        module: returns a transformers output with loss and logits.
        task: how features become batches, and logits scores.
        train_features, validation_features: what `task.prepare` returned.
        references: what `task.references` returned for the validation data.
        scheduler: how the learning rate goes.
        packing: batches without a padding token.
        token_budget: tokens a batch at most, instead of a number of examples.
        save_steps: a checkpoint every so many steps, besides those at an epoch's end.

    Raises:
        NotImplementedError: accelerate is set to FSDP or DeepSpeed.
    """

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        arguments: TrainingArguments,
        train_features: Dataset,
        validation_features: Dataset,
        references: Sequence[Any],
        optimizer: torch.optim.Optimizer,
        scheduler: str = "linear",
        packing: bool = False,
        token_budget: int | None = None,
        save_steps: int | None = None,
    ) -> None:
        self.task = task
        self.train_features, self.validation_features = train_features, list(validation_features)
        self.references = references
        self.scheduler = scheduler
        self.packing = packing
        self.batches = Batches(
            token_counts(task, train_features, packing),
            arguments.train_batch_size,
            token_budget,
            packing,
            arguments.seed,
            arguments.world_size,
        )
        assert arguments.output_dir is not None
        self.folder = Path(arguments.output_dir)
        self._staged: Path | None = None
        super().__init__(
            model=module,
            args=arguments,
            train_dataset=train_features,
            eval_dataset=validation_features,
            data_collator=Collator(task, packing),
            optimizers=(optimizer, None),
            callbacks=[_Epochs(self.batches), _Saves(save_steps)],
        )

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator, and refuse one that shards parameters."""
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise NotImplementedError(
                "accelerate: FSDP and DeepSpeed would shard a frozen backbone, and the optimizer "
                "that holds prompt and head would not see it; expected plain torchrun (DDP)"
            )

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Make the schedule by its name, which transformers need not know."""
        if self.lr_scheduler is None:
            chosen = optimizer or self.optimizer
            assert chosen is not None
            epochs = math.ceil(self.args.num_train_epochs)
            self.lr_scheduler = make_schedule(  # type: ignore[assignment]
                self.scheduler, chosen, num_training_steps, epochs, self.args.warmup_steps
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler  # type: ignore[return-value]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of like length."""
        loader: DataLoader[Any] = DataLoader(
            self.train_features,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]

    def _get_output_dir(self, trial: Any) -> str:
        """Where the Trainer writes a checkpoint: for us a place beside the real one."""
        return str(self._staged or self.folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint beside its place, and move it there in one step."""
        folder = self.folder
        if self.args.should_save:
            checkpoints.clear(folder)
        self.accelerator.wait_for_everyone()
        self._staged = folder / checkpoints.STAGED
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staged = None
        self.accelerator.wait_for_everyone()
        self.state.best_model_checkpoint = None  # a path; `best_global_step` outlives a move
        if self.args.should_save:
            step = self.state.global_step
            staged = checkpoints.place(folder / checkpoints.STAGED, step)
            self.state.save_to_json(str(staged / "trainer_state.json"))
            checkpoints.publish(staged, checkpoints.place(folder, step))
            checkpoints.discard_others(folder, {step, self.state.best_global_step or step})
        self.accelerator.wait_for_everyone()

    def load_best(self) -> None:
        """Load the checkpoint of the best epoch into the module."""
        assert self.model is not None
        step = self.state.best_global_step
        assert step is not None
        path = checkpoints.place(self.folder, step)
        self.model.load_state_dict(load_file(path / "model.safetensors"))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss, and the scores of the answers to the validation examples.

        Raises:
            ValueError: other data is given, or keys to ignore, which the scores have none of.
            Diverged: the loss is not finite; answers then mean nothing, and are not scored.
        """
        for name, given in (("eval_dataset", eval_dataset), ("ignore_keys", ignore_keys)):
            if given is not None:
                raise ValueError(f"{name}: expected None, got {type(given).__name__}")
        features = self.validation_features
        loss, logits = self._forward_all(features)
        if not math.isfinite(loss):
            raise Diverged(
                f"learning_rate: the loss on the validation data is {loss} at step "
                f"{self.state.global_step}, expected a rate smaller than "
                f"{self.args.learning_rate}, a smaller one of the head or another precision"
            )
        answers = decode_all(self.task, features, logits)
        scores = {"loss": loss, **self.task.score(answers, self.references)}
        metrics = {f"{metric_key_prefix}_{name}": score for name, score in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _forward_all(self, features: list[dict[str, Any]]) -> tuple[float, list[Tensor]]:
        """Mean loss, and the logits of every sequence in order; processes share the work."""
        batches = validation_batches(
            token_counts(self.task, features, self.packing),
            self.args.train_batch_size,
            self.batches.token_budget,
            self.packing,
        )
        world, rank = self.args.world_size, self.args.process_index
        assert self.model is not None
        module = self._wrap_model(self.model, training=False)
        module.eval()
        found: list[tuple[int, list[Tensor]]] = []
        losses: list[tuple[float, int]] = []
        for turn in range(math.ceil(len(batches) / world)):
            places = batches[(turn * world + rank) % len(batches)]  # as many on every process
            loss, logits = self._forward([features[place] for place in places], module)
            if turn * world + rank < len(batches):
                losses.append((loss, len(places)))
                found += zip(places, logits, strict=True)
        if world > 1:
            found, losses = gather_object(found), gather_object(losses)
        logits_of = dict(found)
        total = sum(loss * count for loss, count in losses)
        rows = [row for place in range(len(features)) for row in logits_of[place]]
        return total / len(features), rows

    @torch.no_grad()
    def _forward(
        self, features: list[dict[str, Any]], module: nn.Module
    ) -> tuple[float, list[list[Tensor]]]:
        """Loss, and the logits of each feature's sequences."""
        lengths = [self.task.lengths(feature) for feature in features]
        batch = self._prepare_inputs(self.data_collator(features))
        with self.compute_loss_context_manager():
            output = module(**batch)
        flat = list(chain.from_iterable(lengths))
        rows = iter(split_logits(logits_of(output).float().cpu(), batch, flat))
        return float(output.loss), [[next(rows) for _ in group] for group in lengths]


def logits_of(output: Any) -> Tensor:
    """The logits of a transformers output; starts and ends of question answering as (..., 2)."""
    if "start_logits" in output:
        return torch.stack((output.start_logits, output.end_logits), -1)
    logits: Tensor = output.logits
    return logits


class _Epochs(TrainerCallback):
    """Tells the batches which epoch begins, also where a run goes on."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.batches.set_epoch(int(state.epoch or 0))


class _Saves(TrainerCallback):
    """A checkpoint every so many steps; with it the loss so far, whose mean starts anew there."""

    def __init__(self, save_steps: int | None) -> None:
        self.save_steps = save_steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        ends_epoch = state.epoch == int(state.epoch or 0)  # whose end is saved anyway
        if self.save_steps and state.global_step % self.save_steps == 0 and not ends_epoch:
            control.should_log = control.should_save = True

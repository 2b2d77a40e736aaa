"""The transformers `Trainer` with our batches, and scores of decoded answers."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from .batches import Batches, token_counts
from .tasks import Collator, Task
from .tasks.collate import split_logits
from .tasks.task import decode_all


class PromptTrainer(Trainer):
    """Trains one module on one task.

    Args:
        module: returns a transformers output with loss and logits.
        task: how features become batches, and logits scores.
        train_features, validation_features: what `task.prepare` returned.
        references: what `task.references` returned for the validation data.
        packing: batches without a padding token.
        token_budget: tokens a batch at most, instead of a number of examples.
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
        packing: bool = False,
        token_budget: int | None = None,
    ) -> None:
        self.task = task
        self.train_features, self.validation_features = train_features, list(validation_features)
        self.references = references
        self.packing = packing
        self.token_budget = token_budget
        super().__init__(
            model=module,
            args=arguments,
            train_dataset=train_features,
            eval_dataset=validation_features,
            data_collator=Collator(task, packing),
            optimizers=(optimizer, None),
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of like length."""
        batches = Batches(
            token_counts(self.task, self.train_features, self.packing),
            self.args.train_batch_size,
            self.token_budget,
            self.packing,
            self.args.seed,
            self.args.world_size,
        )
        loader: DataLoader[Any] = DataLoader(
            self.train_features,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Loss, and the scores of the answers to the validation examples."""
        features = self.validation_features
        loss, logits = self._forward_all(features)
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
        lengths = token_counts(self.task, features, self.packing)
        order = sorted(range(len(features)), key=lengths.__getitem__)
        size = self.args.eval_batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
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
        sequences = [self.task.sequences(feature) for feature in features]
        lengths = [len(one["input_ids"]) for group in sequences for one in group]
        batch = self._prepare_inputs(self.data_collator(features))
        with self.compute_loss_context_manager():
            output = module(**batch)
        rows = iter(split_logits(logits_of(output).float().cpu(), batch, lengths))
        return float(output.loss), [[next(rows) for _ in group] for group in sequences]


def logits_of(output: Any) -> Tensor:
    """The logits of a transformers output; starts and ends of question answering as (..., 2)."""
    if "start_logits" in output:
        return torch.stack((output.start_logits, output.end_logits), -1)
    logits: Tensor = output.logits
    return logits

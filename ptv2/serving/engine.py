"""One packed forward for sequences of any tasks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..families import family_of
from ..inputs import pack_inputs
from ..model import PromptModel
from ..tasks.collate import pack
from ..tasks.task import Feature
from .pool import Pool
from .served import Served

BUDGET = 256 * 2**20
"""Bytes of prompts and heads on the device, if nothing else is said."""


class Engine:
    """A backbone in evaluation mode, and the prompts and heads that are on its device.

    One thread uses it.

    Args:
        model: whose backbone is used; its own tasks are not.
        budget: bytes of prompts and heads on the device at most.
    """

    def __init__(self, model: PromptModel, budget: int = BUDGET) -> None:
        backbone = model.backbone
        family = family_of(backbone.config.model_type)
        self.model = model
        self.pool = Pool(
            model.geometry, backbone.dtype, model.device, budget, family.shared_modules
        )

    @torch.inference_mode()
    def run(self, tasks: Sequence[Served], inputs: Sequence[Feature]) -> list[Tensor]:
        """Answer sequences, each with its task's prompt and head.

        Args:
            inputs: of each sequence, as the tokenizer gives them.

        Returns:
            What `HeadStore.apply` gives for each.

        Raises:
            ValueError: the tasks do not fit into the budget together.
        """
        self.pool.place(tasks)
        batch = pack(inputs)
        lengths = batch["cu_seqlens"].diff().tolist()
        batch = {
            name: x.to(self.model.device, non_blocking=True) if isinstance(x, Tensor) else x
            for name, x in batch.items()
        }
        bounds = batch.pop("cu_seqlens"), batch.pop("max_seqlen")
        packed = pack_inputs(self.model.backbone, batch, *bounds)
        assert packed is not None
        prompts = self.pool.batch(tasks, packed)
        configs = [task.config for task in tasks]
        encoded = self.model.encode(batch, prompts, configs)
        assert encoded.last_hidden_state is not None
        return self.pool.heads.apply(encoded.last_hidden_state, packed, lengths, tasks)

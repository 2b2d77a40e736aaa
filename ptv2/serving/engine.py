"""One packed forward for sequences of any tasks."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ..attention import PromptBatch
from ..config import PromptConfig
from ..families import Geometry, family_of
from ..inputs import pack_inputs
from ..model import PromptModel
from ..pools import FoldedPrompt
from ..tasks.collate import pack
from ..tasks.task import Feature
from .backbone import LaidOutLinear
from .pool import Pool
from .served import Served

BUDGET = 256 * 2**20
"""Bytes of prompts and heads on the device, if nothing else is said."""
_COMPILATIONS = 64
"""Of the backbone at most; three are usual, as a size of 0 or 1 is a kind of its own."""


class Engine:
    """A backbone in evaluation mode, and the prompts and heads that are on its device.

    One thread uses it.

    Args:
        model: whose backbone is used; its own tasks are not.
        budget: bytes of prompts and heads on the device at most.
        compile: run the backbone compiled by `torch.compile`; `warm_up` does that.

    Raises:
        NotImplementedError: `compile` with a backbone in oneDNN's layout.
    """

    def __init__(self, model: PromptModel, budget: int = BUDGET, *, compile: bool = False) -> None:
        backbone = model.backbone
        if compile and any(isinstance(x, LaidOutLinear) for x in backbone.modules()):
            raise NotImplementedError(
                "compile: bf16 on a CPU has its weights in oneDNN's layout, which torch.compile "
                "does not read; expected False, or fp32"
            )
        family = family_of(backbone.config.model_type)
        self.model = model
        self.pool = Pool(
            model.geometry,
            backbone.dtype,
            model.device,
            budget,
            by_call_order=family.shared_modules,
            alike=compile,
        )
        self._call = _compiled(family.encode) if compile else family.encode

    def warm_up(self, inputs: Sequence[Feature]) -> None:
        """Run batches of every kind that `torch.compile` tells apart, whatever their sizes.

        Args:
            inputs: of two sequences of different lengths, as the tokenizer gives them.
        """
        sizes = self.model.geometry
        one, other = (_blank(sizes, prompt_length) for prompt_length in (2, 3))
        for tasks in ([one], [one, one], [one, other]):
            for own in inputs:
                self.run(tasks, [own] * len(tasks))
        for task in (one, other):
            self.pool.drop(task)

    @torch.inference_mode()
    def run(self, tasks: Sequence[Served], inputs: Sequence[Feature]) -> list[Tensor]:
        """Answer sequences, each with its task's prompt and head.

        Args:
            inputs: of each sequence, as the tokenizer gives them.

        Returns:
            What `HeadStore.apply` gives for each.

        Raises:
            ValueError: the tasks do not fit into the budget together, or the backbone does not
                take such inputs.
        """
        self.pool.place(tasks)
        batch = pack(inputs)
        lengths = batch["cu_seqlens"].diff().tolist()
        batch = {
            name: x.to(self.model.device, non_blocking=True) if isinstance(x, Tensor) else x
            for name, x in batch.items()
        }
        bounds = batch.pop("cu_seqlens"), batch.pop("max_seqlen")
        self.model.check_inputs(batch)
        packed = pack_inputs(self.model.backbone, batch, *bounds)
        assert packed is not None
        prompts = self.pool.batch(tasks, packed)
        configs = [task.config for task in tasks]
        encoded = self.model.encode(batch, prompts, configs, call=self._call)
        assert encoded.last_hidden_state is not None
        return self.pool.heads.apply(encoded.last_hidden_state, packed, lengths, tasks)


def _compiled(encode: Callable[..., BaseModelOutput]) -> Callable[..., BaseModelOutput]:
    """A family's `encode`, compiled for batches of all sizes at once."""
    compiled = torch.compile(encode, fullgraph=True)

    def call(
        backbone: nn.Module, inputs: Mapping[str, Tensor], prompts: PromptBatch, *options: bool
    ) -> BaseModelOutput:
        assert prompts.packed is not None
        assert prompts.prompt_ids is not None
        pools = [x for pool in prompts.layers if pool is not None for x in pool if x is not None]
        for x in (prompts.packed.cu_seqlens, prompts.prompt_ids, *pools):
            torch._dynamo.maybe_mark_dynamic(x, 0)
        for x in inputs.values():
            torch._dynamo.maybe_mark_dynamic(x, 1)
        with torch._dynamo.config.patch(recompile_limit=_COMPILATIONS):
            return compiled(backbone, inputs, prompts, *options)

    return call


def _blank(sizes: Geometry, prompt_length: int) -> Served:
    """A task without a head, whose prompt is of zeros."""
    config = PromptConfig("feature-extraction", prompt_length=prompt_length)
    key_value = torch.zeros(sizes.layers, 2, sizes.heads, prompt_length, sizes.head_dim)
    prompt = FoldedPrompt(tuple(range(sizes.layers)), key_value, None)
    return Served.of("warm-up", config, prompt, None)

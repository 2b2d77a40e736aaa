"""The methods of `bench_methods.py` in an environment with transformers 5: ptv2, the official
code's method, PEFT's, and full fine-tuning.

Each is made from a `Setup` with one task, "task-0", to be trained; `grow` makes copies of it, and
`answers` gives the logits of rows of any tasks that are there at once.
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from methods_setup import Setup, by_task, collate, copy_task, make_different
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, DynamicCache
from transformers.modeling_outputs import SequenceClassifierOutput

BATCH_TOKENS = 2048
"""Of ptv2's packed batches, as its server has them on a CPU."""
Row = tuple[int, list[int]]
"""The number of a task, and token ids."""


class Method:
    """A method that answers the rows of each task as a padded batch.

    Args:
        module: of task 0; called with `input_ids` and `attention_mask`, it gives `logits`.
    """

    def __init__(self, setup: Setup, module: nn.Module) -> None:
        self.setup, self.module = setup, module.to(setup.device)
        self.tasks = 1

    def save(self, folder: Path) -> None:
        """Write task 0 as its users would."""
        raise NotImplementedError

    def grow(self, tasks: int) -> None:
        """Have so many tasks, all but task 0 moved copies of it."""
        raise NotImplementedError

    def chosen(self, task: int) -> nn.Module:
        """What answers a task."""
        raise NotImplementedError

    def activate(self) -> None:
        """Make task 0 the one that is trained."""

    @torch.inference_mode()
    def answers(self, rows: Sequence[Row]) -> list[list[float]]:
        """The logits of every row."""
        found: list[list[float]] = [[]] * len(rows)
        for task, places in by_task([task for task, _ in rows]).items():
            inputs, _ = collate([(rows[place][1], 0) for place in places], self.setup.device)
            logits = self.chosen(task)(**inputs).logits.float().tolist()
            for place, own in zip(places, logits, strict=True):
                found[place] = own
        return found


class Ptv2(Method):
    """P-Tuning v2 as this package trains and serves it, with its defaults.

    Args:
        pooler: have the head that BERT's classifiers have instead: a linear layer on the first
            token behind the encoder's own pooler, which stays as it is.
    """

    def __init__(self, setup: Setup, pooler: bool = False) -> None:
        from ptv2 import PromptConfig, PromptModel

        self._model = PromptModel.from_pretrained(setup.encoder)
        labels = tuple(f"label {i}" for i in range(setup.labels))
        head = {"pooling": "first", "head_activation": "tanh"} if pooler else {}
        config = PromptConfig(
            "sequence-classification", labels, prompt_length=setup.prompt_length, **head
        )
        self._model.add_task("task-0", config)
        if pooler:
            dense = self._model.head("task-0").dense.requires_grad_(False)
            dense.load_state_dict(
                AutoModel.from_pretrained(setup.encoder).pooler.dense.state_dict()
            )
        super().__init__(setup, self._model.for_task("task-0"))

    def save(self, folder: Path) -> None:
        self._model.save_task("task-0", folder)

    def grow(self, tasks: int) -> None:
        from ptv2.serving import Engine, Served

        self._model.eval()
        self._served = []
        trained = [x.data for x in self.module.parameters() if x.requires_grad]
        before = [x.clone() for x in trained]
        for task in range(tasks):
            if task:
                make_different(trained, task)
            self._served.append(Served.of_task(self._model, "task-0"))
            for x, own in zip(trained, before, strict=True):
                x.copy_(own)
        self._engine = Engine(self._model)

    def answers(self, rows: Sequence[Row]) -> list[list[float]]:
        found: list[list[float]] = []
        batch: list[Row] = []
        for row in rows:
            if batch and sum(len(ids) for _, ids in (*batch, row)) > BATCH_TOKENS:
                found += self._packed(batch)
                batch = []
            batch.append(row)
        return found + self._packed(batch)

    def _packed(self, batch: Sequence[Row]) -> list[list[float]]:
        tasks = [self._served[task] for task, _ in batch]
        logits = self._engine.run(tasks, [{"input_ids": ids} for _, ids in batch])
        return [own.tolist() for own in logits]


class OfficialModel(nn.Module):
    """The official code's sequence classifier on stock transformers.

    The prompt is expanded over the batch, gets dropout for every sample, and goes into the
    encoder as past keys and values; positions count on from it.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.bert = AutoModel.from_pretrained(setup.encoder).requires_grad_(False)
        config = self.bert.config
        self._shape = (
            setup.prompt_length,
            2 * config.num_hidden_layers,
            config.num_attention_heads,
            config.hidden_size // config.num_attention_heads,
        )
        width = 2 * config.num_hidden_layers * config.hidden_size
        self.prefix = nn.Embedding(setup.prompt_length, width)
        nn.init.normal_(self.prefix.weight, std=config.initializer_range)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, setup.labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        """(rows, length) -> logits (rows, labels)."""
        rows = len(input_ids)
        past = self.prefix.weight.view(self._shape).expand(rows, -1, -1, -1, -1)
        past = self.dropout(past).permute(2, 0, 3, 1, 4)  # (2 * layers, rows, heads, P, head_dim)
        cache = DynamicCache()
        for layer, (key, value) in enumerate(past.split(2)):
            cache.update(key, value, layer)
        seen = attention_mask.new_ones(rows, self._shape[0])
        mask = torch.cat((seen, attention_mask), 1)
        encoded = self.bert(input_ids, attention_mask=mask, past_key_values=cache)
        return SequenceClassifierOutput(
            logits=self.classifier(self.dropout(encoded.pooler_output))
        )


class Official(Method):
    """The official code's method; a task is its prefix and classifier."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, OfficialModel(setup))

    def save(self, folder: Path) -> None:
        trained = {n: x.detach() for n, x in self.module.named_parameters() if x.requires_grad}
        save_file(trained, folder / "model.safetensors")

    def grow(self, tasks: int) -> None:
        bert = self.module.bert
        self._models = [deepcopy(self.module, {id(bert): bert}) for _ in range(tasks)]
        different(self._models)

    def chosen(self, task: int) -> nn.Module:
        return self._models[task]


class Peft(Method):
    """PEFT: one model, an adapter a task, switched for every group of rows."""

    def __init__(self, setup: Setup, config: Any) -> None:
        from peft import get_peft_model

        self._config = config
        super().__init__(setup, get_peft_model(classifier(setup), config, "task-0"))

    def save(self, folder: Path) -> None:
        self.module.save_pretrained(folder)

    def grow(self, tasks: int) -> None:
        for number in range(self.tasks, tasks):
            self.module.add_adapter(f"task-{number}", self._config)
            make_different(copy_task(self.module, "task-0", f"task-{number}"), number)
        self.tasks = max(tasks, self.tasks)
        self.module.eval()

    def chosen(self, task: int) -> nn.Module:
        name = f"task-{task}"
        if self.module.active_adapter != name:
            self.module.set_adapter(name)
        return self.module

    def activate(self) -> None:
        self.chosen(0)


class PeftLora(Peft):
    """PEFT's LoRA, which takes rows of several adapters in one padded batch."""

    @torch.inference_mode()
    def answers(self, rows: Sequence[Row]) -> list[list[float]]:
        inputs, _ = collate([(ids, 0) for _, ids in rows], self.setup.device)
        names = [f"task-{task}" for task, _ in rows]
        return self.module(**inputs, adapter_names=names).logits.float().tolist()


def peft(name: str, setup: Setup) -> Peft:
    """One of PEFT's methods, with its defaults and the common length of prompts."""
    import peft

    length = {"num_virtual_tokens": setup.prompt_length}
    configs = {
        "peft-prefix": lambda: peft.PrefixTuningConfig(task_type="SEQ_CLS", **length),
        "peft-lora": lambda: peft.LoraConfig(task_type="SEQ_CLS"),
        "peft-prompt-tuning": lambda: peft.PromptTuningConfig(task_type="SEQ_CLS", **length),
        "peft-p-tuning": lambda: peft.PromptEncoderConfig(task_type="SEQ_CLS", **length),
    }
    made = PeftLora if name == "peft-lora" else Peft
    return made(setup, configs[name]())


class FineTuned(Method):
    """All of the encoder, trained; a task is a whole model."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, classifier(setup))

    def save(self, folder: Path) -> None:
        self.module.save_pretrained(folder)

    def grow(self, tasks: int) -> None:
        self._models = [deepcopy(self.module) for _ in range(tasks)]
        different(self._models)

    def chosen(self, task: int) -> nn.Module:
        return self._models[task]


def different(models: Sequence[nn.Module]) -> None:
    """Move what is trained of all models but the first."""
    for task, model in enumerate(models):
        model.eval()
        if task:
            make_different([x.data for x in model.parameters() if x.requires_grad], task)


def classifier(setup: Setup) -> Any:
    """The stock sequence classifier on the encoder."""
    return AutoModelForSequenceClassification.from_pretrained(
        setup.encoder, num_labels=setup.labels
    )

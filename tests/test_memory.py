"""Memory counted without computing equals what a real step takes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ptv2 import PromptConfig, PromptModel
from ptv2.memory import Allocations, StepMemory, largest, parse_bytes, plan, step_memory
from ptv2.predictor import Predictor
from ptv2.tasks import Collator, SequenceClassification, Task
from ptv2.train_config import TrainConfig
from ptv2.training import prepare_module
from tests.encoder import save_encoder

FEATURES = [{"input_ids": [2, *[5] * (n - 2), 3], "labels": n % 2} for n in (9, 17, 4, 12)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def predictor(encoder: Path) -> Predictor:
    return new(encoder)


def new(encoder: Path) -> Predictor:
    model = PromptModel.from_pretrained(encoder)
    config = PromptConfig("sequence-classification", ("a", "b"), prompt_length=4)
    model.add_task("all", config)
    model.add_task("last", dataclasses.replace(config, layers=(1,)))
    model.add_task("head", dataclasses.replace(config, prompt_length=0))
    return Predictor(model)


def reader(predictor: Predictor) -> Task:
    return SequenceClassification(predictor.tokenizer, ("a", "b"))


def counted(encoder: Path, name: str = "all", packing: bool = False, **changes: Any) -> StepMemory:
    predictor = new(encoder)
    module = prepare_module(predictor.model, name, TrainConfig(**changes)).train()
    return step_memory(module, Collator(reader(predictor), packing), FEATURES, None)


def real(predictor: Predictor, packing: bool) -> tuple[int, int]:
    """Bytes that autograd saves without parameters, and the peak, of a real step."""
    module = predictor.model.for_task("all").train()
    batch = Collator(reader(predictor), packing)(FEATURES)
    own = {x.untyped_storage().data_ptr() for x in (*module.parameters(), *module.buffers())}
    own |= {x.untyped_storage().data_ptr() for x in batch.values() if isinstance(x, Tensor)}
    saved: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x
        return x

    given = (*module.parameters(), *module.buffers(), *batch.values())
    with Allocations(*given) as allocations:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = module(**batch).loss
        size = sum(x.untyped_storage().nbytes() for key, x in saved.items() if key not in own)
        saved.clear()
        loss.backward()
    module.zero_grad()
    return size, allocations.peak


@pytest.mark.parametrize("packing", [False, True])
def test_a_step_without_data_counts_what_a_real_one_takes(
    encoder: Path, predictor: Predictor, packing: bool
) -> None:
    memory = counted(encoder, packing=packing)
    saved, peak = real(predictor, packing)
    assert saved <= memory.saved <= saved + 256  # what autograd saves, and small change
    assert memory.peak == peak
    weights = sum(p.numel() for p in predictor.model.for_task("all").parameters())
    trained = sum(
        p.numel() for p in predictor.model.for_task("all").parameters() if p.requires_grad
    )
    positions = 8 * 32  # a buffer of int64
    types = 8 * 32
    assert memory.fixed == 4 * weights + 8 * trained + positions + types


def test_counting_leaves_no_trace(predictor: Predictor) -> None:
    module = predictor.model.for_task("all").train()
    before = {name: x.clone() for name, x in predictor.model.state_dict().items()}
    state = torch.get_rng_state()
    step_memory(module, Collator(reader(predictor)), FEATURES, torch.bfloat16)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, before[k]) for k, x in predictor.model.state_dict().items())


def test_checkpointing_saves_less(encoder: Path) -> None:
    found = {
        kind: counted(encoder, checkpointing=kind).saved
        for kind in ("none", "layers", "selective")
    }
    assert found["layers"] < 0.35 * found["none"]
    assert found["layers"] < found["selective"] < 0.5 * found["none"]


def test_layers_below_the_first_prompt_have_no_graph(encoder: Path) -> None:
    both, last = counted(encoder), counted(encoder, "last")
    assert last.saved < 0.55 * both.saved
    assert counted(encoder, "head").saved < 0.05 * both.saved


def test_no_dropout_in_the_backbone_saves_its_masks(encoder: Path) -> None:
    assert counted(encoder, backbone_dropout=False).saved < counted(encoder).saved


def test_the_largest_batch_fits_and_the_next_does_not(predictor: Predictor) -> None:
    module, task = predictor.model.for_task("all").train(), reader(predictor)
    found = plan(module, task, FEATURES, TrainConfig(batch_size=3), available=10**6)
    assert (found["batch"], found["longest"]) == (3, 17)
    collator, longest = Collator(task), FEATURES[1]
    fits = step_memory(module, collator, [longest] * found["largest"], None)
    more = step_memory(module, collator, [longest] * (found["largest"] + 1), None)
    assert fits.total <= 10**6 < more.total
    assert plan(module, task, FEATURES, TrainConfig(), available=10)["largest"] == 0
    budget = plan(module, task, FEATURES, TrainConfig(token_budget=100, packing=True))
    assert (budget["batch"], budget["largest"]) == (5, None)
    with pytest.raises(
        ValueError, match="token_budget: expected at least the longest example's 17"
    ):
        plan(module, task, FEATURES, TrainConfig(token_budget=16))


def test_largest() -> None:
    for limit in (0, 1, 2, 3, 7, 8, 1000):
        assert largest(lambda n, limit=limit: n <= limit) == limit
    assert largest(lambda n: True) > 10**6


def test_sizes() -> None:
    assert [parse_bytes(text) for text in ("8GB", "1.5 MB", "2GiB", "7", "1k")] == [
        8 * 10**9, 1_500_000, 2 * 2**30, 7, 1000,
    ]  # fmt: skip
    for text in ("", "GB", "8XB", "1.2.3GB", "9" * 400):
        with pytest.raises(ValueError, match="memory: expected a size such as 8GB, got"):
            parse_bytes(text)

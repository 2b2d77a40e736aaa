"""The engine: mixed packed batches beside the model itself, and rows apart from each other."""

import os
import random

import pytest
import torch

from ptv2 import PromptConfig, PromptModel
from ptv2.inputs import packable
from ptv2.serving import Engine, Served

CONFIGS = {
    "binary": PromptConfig("sequence-classification", ("no", "yes"), prompt_length=5),
    "many": PromptConfig(
        "sequence-classification", tuple(f"c{i}" for i in range(37)), prompt_length=9,
        pooling="last",
    ),
    "regression": PromptConfig("sequence-classification", ("x",), prompt_length=0),
    "deep head": PromptConfig(
        "sequence-classification", ("a", "b", "c"), prompt_length=3, head_activation="gelu",
        layers=(0, 2),
    ),
    "tags": PromptConfig("token-classification", ("O", "A", "B"), prompt_length=4, gate=True),
    "fine tags": PromptConfig(
        "token-classification", tuple(f"t{i}" for i in range(20)), prompt_length=2,
        head_activation="tanh",
    ),
    "answers": PromptConfig("question-answering", prompt_length=6, position_offset=6),
    "choice": PromptConfig("multiple-choice", prompt_length=1, layers=(1,)),
    "features": PromptConfig("feature-extraction", prompt_length=4),
    "bare": PromptConfig("sequence-classification", ("a", "b"), prompt_length=2, layers=()),
}  # fmt: skip
TRIALS = int(os.environ.get("PTV2_TRIALS", "100"))
"""Of rows that touch each other; the published number is 10,000."""


@pytest.fixture
def make_model(tiny_backbone):
    def make(family):
        model = PromptModel(tiny_backbone(family)).eval()
        for name, config in CONFIGS.items():
            model.add_task(name.replace(" ", "-"), config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn_like(parameter) / 2
        return model

    return make


def serve(model):
    return {name: Served.of_task(model, name) for name in model.tasks}


def sequences(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = (torch.randint(4, 100, (length,), generator=generator).tolist() for length in lengths)
    return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in draw]


def expected(model, name, sequence):
    """One sequence alone, by the model itself."""
    inputs = {key: torch.tensor(x)[None] for key, x in sequence.items()}
    output = model(**inputs, task=[name])
    if output.logits[0] is None:
        return output.last_hidden_state[0].mean(0)
    return output.logits[0]


@torch.no_grad()
@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "modernbert", "distilbert"])
def test_a_mixed_batch_equals_each_row_alone(make_model, family):
    model = make_model(family)
    if family == "modernbert":  # takes no positions that an offset could move
        model.remove_task("answers")
        model.add_task("answers", PromptConfig("question-answering", prompt_length=6))
    served = serve(model)
    engine = Engine(model)
    names = [*served, "tags", "fine-tags", "binary"]
    lengths = [7, 16, 3, 1, 17, 33, 9, 5, 4, 2, 32, 1, 20]
    rows = sequences(lengths)
    found = engine.run([served[name] for name in names], rows)
    for name, row, got in zip(names, rows, found, strict=True):
        torch.testing.assert_close(got, expected(model, name, row), rtol=0, atol=1e-5)


@torch.no_grad()
def test_other_rows_change_no_bit(make_model):
    """Their tasks, prompts, gates and texts change, of the same lengths."""
    model = make_model("bert")
    served = serve(model)
    names = tuple(served)
    draw = random.Random(0)
    engine = Engine(model)
    for _ in range(TRIALS):
        lengths = [draw.choice((1, 3, 8, 17, 25)) for _ in range(draw.randint(2, 8))]
        watched = draw.randrange(len(lengths))
        task = served[draw.choice(names)]
        text = sequences(lengths, draw.randrange(1000))[watched]
        found = []
        for _ in range(2):
            rows = sequences(lengths, draw.randrange(1000))
            tasks = [served[draw.choice(names)] for _ in lengths]
            rows[watched], tasks[watched] = text, task
            found.append(engine.run(tasks, rows)[watched])
        assert torch.equal(*found), (lengths, watched, task.name)


@torch.no_grad()
def test_poisoned_prompts_reach_their_own_rows_alone(make_model):
    model = make_model("bert")
    served = serve(model)
    model.prompts["many"].embedding.data.fill_(float("nan"))
    poisoned = Served.of_task(model, "many")
    rows = sequences([5, 9, 16])
    engine = Engine(model)
    clean = engine.run([served["tags"], served["many"], served["binary"]], rows)
    mixed = engine.run([served["tags"], poisoned, served["binary"]], rows)
    assert torch.equal(clean[0], mixed[0])
    assert torch.equal(clean[2], mixed[2])
    assert mixed[1].isnan().all()
    engine.pool.drop(poisoned)
    again = engine.run([served["tags"], served["many"], served["binary"]], rows)
    assert all(map(torch.equal, clean, again))


@torch.no_grad()
def test_tasks_make_room_for_each_other(make_model):
    """A pool for two prompts at a time answers all, and what is evicted comes back the same."""
    model = make_model("bert")
    served = serve(model)
    plenty = Engine(model)
    budget = 2 * max(map(plenty.pool.nbytes, served.values()))
    tight = Engine(model, budget=budget)
    draw = random.Random(1)
    for _ in range(60):
        pair = draw.sample(list(served.values()), 2)
        rows = sequences([draw.randint(1, 20) for _ in pair], draw.randrange(100))
        assert all(map(torch.equal, tight.run(pair, rows), plenty.run(pair, rows)))
        assert tight.pool.used <= tight.pool.allocated <= budget
    assert all(task.sha256 == Served.of_task(model, name).sha256 for name, task in served.items())
    assert len(plenty.pool) == len(served)
    for task in served.values():
        plenty.pool.drop(task)
        plenty.pool.drop(task)  # a task that is not there is no error
    assert (len(plenty.pool), plenty.pool.used) == (0, 0)
    tiny = Engine(model, budget=100)
    with pytest.raises(ValueError, match=r"budget: expected at least \d+ bytes for 1 tasks"):
        tiny.run([served["many"]], sequences([3]))


@torch.no_grad()
def test_memory_that_ends_while_a_task_is_placed_loses_nothing(make_model, monkeypatch):
    model = make_model("bert")
    served = serve(model)
    engine = Engine(model)
    used = engine.pool.used
    for method in ("_tiles.take", "_tiles.write"):
        with monkeypatch.context() as broken:

            def ends(*_):
                raise torch.OutOfMemoryError("injected")

            store, name = method.split(".")
            broken.setattr(getattr(engine.pool.heads, store), name, ends)
            with pytest.raises(torch.OutOfMemoryError):
                engine.run([served["tags"]], sequences([3]))
        assert (len(engine.pool), engine.pool.used) == (0, used)
        assert engine.pool._prompts.free * engine.pool._prompts.row_bytes == (
            engine.pool._prompts.nbytes
        )
    engine.run([served["tags"]], sequences([3]))


@torch.no_grad()
def test_the_last_used_stay(make_model):
    model = make_model("bert")
    served = serve(model)
    engine = Engine(model)
    one, two, three = (served[name] for name in ("binary", "many", "tags"))
    engine.pool.budget = sum(map(engine.pool.nbytes, (one, two, three))) - 1
    for task in (one, two, one, three):
        engine.run([task], sequences([3]))
    assert [task in engine.pool for task in (one, two, three)] == [True, False, True]


def test_a_served_task_is_a_copy(make_model):
    model = make_model("bert")
    served = Served.of_task(model, "tags")
    engine = Engine(model)
    rows = sequences([6])
    before = engine.run([served], rows)[0]
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
    engine.pool.drop(served)
    assert torch.equal(engine.run([served], rows)[0], before)
    assert Served.of_task(model, "tags").sha256 != served.sha256


def test_prompts_before_the_text_are_refused(make_model):
    model = make_model("bert")
    model.add_task("shallow", PromptConfig("feature-extraction", prompt_length=2, depth="input"))
    with pytest.raises(ValueError, match="task: expected depth 'layers' for 'shallow', got 'inp"):
        Served.of_task(model, "shallow")


@pytest.mark.parametrize(("family", "expected"), [("bert", True), ("esm", False)])
def test_what_can_be_packed(tiny_backbone, family, expected):
    assert packable(tiny_backbone(family)) is expected

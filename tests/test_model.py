"""PromptModel: tasks, mixed batches, losses, what is trained, and what is refused."""

import copy
import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from ptv2 import PromptConfig, PromptModel, UnknownTaskError

CLASSIFY = PromptConfig(
    task="sequence-classification", labels=("a", "b", "c"), prompt_length=5, init_std=1.0
)
TAG = PromptConfig(task="token-classification", labels=("O", "X"), prompt_length=3, init_std=1.0)
REGRESS = PromptConfig(task="sequence-classification", labels=("score",), prompt_length=2)
SEVERAL = PromptConfig("sequence-classification", ("a", "b", "c"), 2, multi_label=True)
ANSWER = PromptConfig(task="question-answering", prompt_length=4, init_std=1.0)
CHOOSE = PromptConfig(task="multiple-choice", prompt_length=4, init_std=1.0)
EMBED = PromptConfig(task="feature-extraction", prompt_length=6, init_std=1.0)


@pytest.fixture
def model(tiny_backbone):
    model = PromptModel(tiny_backbone("bert")).eval()
    configs = dict(classify=CLASSIFY, tag=TAG, regress=REGRESS, answer=ANSWER, choose=CHOOSE)
    for name, config in configs.items():
        model.add_task(name, config)
    model.add_task("embed", EMBED)
    return model


@pytest.fixture
def batch():
    mask = torch.arange(9) < torch.tensor([9, 4, 6, 1])[:, None]
    return {"input_ids": torch.randint(4, 100, (4, 9)), "attention_mask": mask.long()}


def test_losses(model, batch):
    labels = torch.tensor([0, 2, 1, 1])
    out = model(**batch, task="classify", labels=labels)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, labels))

    tags = torch.full((4, 9), -100)
    tags[0, 1:4] = torch.tensor([0, 1, 0])
    out = model(**batch, task="tag", labels=tags)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits[0, 1:4], tags[0, 1:4]))

    scores = torch.randn(4)
    out = model(**batch, task="regress", labels=scores)
    torch.testing.assert_close(out.loss, F.mse_loss(out.logits[:, 0], scores))

    start, end = torch.tensor([1, 0, 2, 0]), torch.tensor([3, 1, 2, 99])
    out = model(**batch, task="answer", start_positions=start, end_positions=end)
    assert out.start_logits.shape == out.end_logits.shape == (4, 9)
    padding = batch["attention_mask"] == 0
    starts, ends = (x.masked_fill(padding, -1e9) for x in (out.start_logits, out.end_logits))
    expected = F.cross_entropy(starts, start) + F.cross_entropy(ends[:3], end[:3])
    torch.testing.assert_close(out.loss, expected / 2)

    choices = {name: x.view(2, 2, 9) for name, x in batch.items()}
    out = model(**choices, task="choose", labels=torch.tensor([0, 1]))
    assert out.logits.shape == (2, 2)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, torch.tensor([0, 1])))

    out = model(**batch, task="embed")
    assert out.last_hidden_state.shape == (4, 9, 32)


def test_mixed_batch_equals_each_task_alone(model, batch):
    tasks = ["tag", "answer", "choose", "classify"]
    out = model(**batch, task=tasks)
    for row, task in enumerate(tasks):
        one = {name: x[row : row + 1] for name, x in batch.items()}
        if task == "choose":
            one = {name: x[None] for name, x in one.items()}
        alone = model(**one, task=task)
        expected = (
            torch.stack((alone.start_logits, alone.end_logits), -1)
            if task == "answer"
            else alone.logits
        )
        torch.testing.assert_close(out.logits[row], expected[0], rtol=0, atol=1e-5)
    embedded = model(**batch, task=["embed", None, "embed", None])
    assert embedded.logits == (None,) * 4
    alone = model(**batch, task="embed").last_hidden_state
    torch.testing.assert_close(embedded.last_hidden_state[0], alone[0], rtol=0, atol=1e-5)


def test_mixed_loss_is_the_mean_over_labelled_rows(model, batch):
    tags = torch.tensor([-100, 1, 0, 0, -100, -100, -100, -100, -100])
    out = model(
        **batch, task=["classify", "tag", "classify", "classify"], labels=[2, tags, 0, None]
    )
    logits = out.logits
    expected = F.cross_entropy(logits[0], torch.tensor(2)) + F.cross_entropy(
        logits[2], torch.tensor(0)
    )
    expected = (expected + F.cross_entropy(logits[1], tags)) / 3
    torch.testing.assert_close(out.loss, expected)
    assert model(**batch, task=["classify"] * 4, labels=[None] * 4).loss is None


def test_each_task_of_a_mixed_batch_has_its_own_mean_loss(model, batch):
    tags = torch.tensor([-100, 1, 0, 0, -100, -100, -100, -100, -100])
    out = model(**batch, task=["classify", "tag", "classify", None], labels=[2, tags, 0, None])
    expected = F.cross_entropy(torch.stack((out.logits[0], out.logits[2])), torch.tensor([2, 0]))
    assert list(out.losses) == ["classify", "tag"]
    torch.testing.assert_close(out.losses["classify"], expected)
    torch.testing.assert_close(out.losses["tag"], F.cross_entropy(out.logits[1], tags))
    assert model(**batch, task=["classify"] * 4, labels=[None] * 4).losses is None


def test_numbers_and_several_labels_in_a_mixed_batch(model, batch):
    model.add_task("several", SEVERAL)
    tasks, several = ["several", "regress", "classify", "regress"], torch.tensor([1.0, 0.0, 1.0])
    out = model(**batch, task=tasks, labels=[several, 1.25, 2, 3])
    expected = {
        "several": F.binary_cross_entropy_with_logits(out.logits[0], several),
        "regress": ((out.logits[1] - 1.25) ** 2 + (out.logits[3] - 3) ** 2)[0] / 2,
        "classify": F.cross_entropy(out.logits[2], torch.tensor(2)),
    }
    for name, loss in expected.items():
        torch.testing.assert_close(out.losses[name], loss)
    total = sum(loss * tasks.count(name) for name, loss in expected.items())
    torch.testing.assert_close(out.loss, total / 4)
    torch.testing.assert_close(
        model(**batch, task=tasks, labels=[[1, 0, 1], 1.25, 2, 3.0]).loss, out.loss
    )
    with pytest.raises(ValueError, match=r"labels: expected \(1, 3\), got \(1, 2\)"):
        model(**batch, task=tasks, labels=[[1, 0], 1.25, 2, 3])
    with pytest.raises(ValueError, match=r"labels: expected \(4, 3\), got \(4,\)"):
        model(**batch, task="several", labels=torch.ones(4))


def test_a_multiple_choice_in_a_mixed_batch_has_its_label_at_the_first_choice(model, batch):
    tasks = ["choose", "choose", "classify", "choose", "choose"]
    rows = torch.tensor([0, 1, 2, 3, 2])
    mixed = {name: x[rows] for name, x in batch.items()}
    out = model(**mixed, task=tasks, labels=[1, None, 2, 0, None])
    choices = {name: x[rows[[0, 1, 3, 4]]].view(2, 2, 9) for name, x in batch.items()}
    alone = model(**choices, task="choose", labels=torch.tensor([1, 0]))
    torch.testing.assert_close(out.losses["choose"], alone.loss)
    torch.testing.assert_close(out.loss, (2 * alone.loss + out.losses["classify"]) / 3)
    message = "labels: expected one at the first choice of every example of 'choose'"
    for labels in ([None, 1, 2, 0, None], [1, None, 2, None, 0]):
        with pytest.raises(ValueError, match=message):
            model(**mixed, task=tasks, labels=labels)


def test_a_shared_prompt_has_the_sum_of_the_tasks_gradients(model, batch, tmp_path):
    model.add_task("other", replace(TAG, prompt_length=5), share_prompt_with="classify")
    tags = torch.randint(0, 2, (9,))
    tasks, labels = ["classify", "other", "classify", "other"], [2, tags, 0, tags.flip(0)]
    prompt = model.prompts["classify"].embedding

    def gradient(loss):
        (found,) = torch.autograd.grad(loss, prompt, retain_graph=True)
        return found

    losses = model(**batch, task=tasks, labels=labels).losses
    both = gradient(losses["classify"] + losses["other"])
    torch.testing.assert_close(both, gradient(losses["classify"]) + gradient(losses["other"]))
    rows = {name: x[[0, 2]] for name, x in batch.items()}
    alone = gradient(model(**rows, task="classify", labels=torch.tensor([2, 0])).loss)
    torch.testing.assert_close(gradient(losses["classify"]), alone)

    assert len({id(p) for p in model.prompts.parameters()}) == len(model.tasks) - 1
    twin = copy.deepcopy(model)
    assert twin.prompts["other"] is twin.prompts["classify"]
    for name in ("classify", "other"):
        model.save_task(name, tmp_path / name)
        twin.remove_task(name)
        twin.load_task(tmp_path / name)
        assert twin.tasks[name] == model.tasks[name]
        assert torch.equal(twin.key_value(name), model.key_value("classify"))


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"parametrization": "mlp", "mlp_hidden_size": 7},
        {"injection": "hidden-state", "layers": (0, 2)},
    ],
    ids=["direct", "mlp", "hidden-state"],
)
def test_a_prompt_starts_from_another(tiny_backbone, tmp_path, form):
    model = PromptModel(tiny_backbone("bert"))
    model.add_task("first", replace(CLASSIFY, prompt_dropout=0.5, **form))
    model.save_task("first", tmp_path / "first")
    plain = replace(TAG, prompt_length=5, layers=form.get("layers"))
    model.add_task("plain", plain, start_from="first")
    model.add_task("saved", plain, start_from=tmp_path / "first")
    model.add_task("same", replace(CLASSIFY, **form), start_from=str(tmp_path / "first"))
    expected = model.key_value("first")
    for name in ("plain", "saved", "same"):
        assert torch.equal(model.key_value(name), expected)
        assert model.prompts[name] is not model.prompts["first"]
    with torch.no_grad():
        model.prompts["plain"].embedding.add_(1)
    assert torch.equal(model.key_value("first"), expected)


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        ({"prompt_length": 4}, {"start_from": "tag"}, "prompt with prompt_length 4, got 3"),
        (
            {"layers": (0,)},
            {"start_from": "tag"},
            r"start_from: expected a prompt with layers \(0,",
        ),
        (
            {"parametrization": "mlp"},
            {"start_from": "tag"},
            "with parametrization mlp, got direct",
        ),
        ({}, {"start_from": "tag", "share_prompt_with": "tag"}, "start_from: a shared prompt has"),
        ({}, {"share_prompt_with": "none"}, "task: 'none' is unknown"),
        ({"init_std": 2.0}, {"share_prompt_with": "tag"}, "share_prompt_with: expected a prompt"),
    ],
)
def test_prompts_that_cannot_be_shared_or_started_from(model, change, given, message):
    with pytest.raises(ValueError, match=message):
        model.add_task("new", replace(TAG, **change), **given)
    assert "new" not in model.tasks


def test_no_labelled_token_is_no_loss_not_nan(model, batch):
    out = model(**batch, task="tag", labels=torch.full((4, 9), -100))
    assert out.loss.item() == 0


def test_only_the_task_is_trained(model, batch):
    task = model.for_task("classify").train()
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    assert trained == {"prompt.embedding", "head.linear.weight", "head.linear.bias"}
    assert set(task.state_dict()) == trained
    assert not any(name.startswith("backbone") for name in model.state_dict())
    before = copy.deepcopy(model.backbone.state_dict())
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        task(**batch, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        optimizer.step()
    assert all(torch.equal(before[name], x) for name, x in model.backbone.state_dict().items())
    assert model.prompts["tag"].embedding.grad is None


def test_task_state_round_trips(model):
    state = {name: x + 1 for name, x in model.for_task("tag").state_dict().items()}
    result = model.for_task("tag").load_state_dict(state)
    assert not result.missing_keys
    assert torch.equal(model.prompts["tag"].embedding, state["prompt.embedding"])
    del state["prompt.embedding"]
    with pytest.raises(RuntimeError, match=r"prompt\.embedding"):
        model.for_task("tag").load_state_dict(state)


def test_survives_copy_and_pickle(model, batch):
    """In memory, as a model is sent to another process; nothing is read from a file."""
    expected = model(**batch, task="classify").logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(**batch, task="classify").logits, expected)


def test_remove_task(model, batch):
    model.remove_task("tag")
    assert "tag" not in model.tasks
    with pytest.raises(UnknownTaskError):
        model(**batch, task="tag")
    model.add_task("tag", TAG)


def test_prompt_dropout_is_one_mask_for_the_batch(tiny_backbone, batch):
    config = PromptConfig(**CLASSIFY.to_dict() | {"prompt_dropout": 0.5})
    model = PromptModel(
        tiny_backbone("bert", hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    )
    model.add_task("classify", config)
    model.heads["classify"].dropout.p = 0.0
    same = {name: x[:1].expand(4, -1) for name, x in batch.items()}
    model.train()
    logits = model(**same, task="classify").logits
    torch.testing.assert_close(logits, logits[:1].expand(4, -1))
    assert not torch.allclose(model(**same, task="classify").logits, logits)
    assert torch.equal(model.key_value("classify"), model.prompts["classify"].embedding)


def test_half_precision_backbone(tiny_backbone, batch):
    model = PromptModel(tiny_backbone("bert").to(torch.bfloat16)).eval()
    full = PromptModel(tiny_backbone("bert")).eval()
    for m in (model, full):
        torch.manual_seed(0)
        m.add_task("classify", CLASSIFY)
    out = model(**batch, task="classify", labels=torch.tensor([0, 1, 2, 0]))
    out.loss.backward()
    assert model.prompts["classify"].embedding.grad.dtype == torch.float32
    torch.testing.assert_close(out.logits, full(**batch, task="classify").logits, rtol=0, atol=0.1)


def test_autocast(model, batch):
    expected = model(**batch, task="classify").logits
    with torch.autocast("cpu", torch.bfloat16):
        got = model(**batch, task="classify").logits
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=0.1)


def test_a_number_is_not_rounded_to_16_bits(model, batch):
    scores = torch.full((4,), 1000.7)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**batch, task="regress", labels=scores)
    assert out.logits.dtype == torch.bfloat16
    torch.testing.assert_close(out.loss, F.mse_loss(out.logits[:, 0].float(), scores))


def test_empty_batch_is_refused(model):
    ids = torch.zeros(0, 5, dtype=torch.long)
    for task in ("classify", [], None):
        with pytest.raises(ValueError, match="input_ids: expected at least one row and token"):
            model(input_ids=ids, task=task)


REFUSED = {
    "unknown task": (dict(task="nope"), UnknownTaskError, "task: 'nope' is unknown; .* classify"),
    "unknown row": (dict(task=["tag", None, "nope", None]), UnknownTaskError, "'nope' is unknown"),
    "rows": (dict(task=["tag"]), ValueError, "task: expected 4 names, one a row, got 1"),
    "labels of none": (dict(task=None, labels=torch.ones(4)), ValueError, "bare backbone"),
    "labels of a bare row": (
        dict(task=["tag", None, None, None], labels=[None, 1, None, None]),
        ValueError,
        "labels: row 1 has a label",
    ),
    "embedding labels": (dict(task="embed", labels=torch.ones(4)), ValueError, "has no loss"),
    "qa labels": (dict(task="answer", labels=torch.ones(4)), ValueError, "start_positions and"),
    "half a span": (dict(task="answer", start_positions=torch.ones(4)), ValueError, "together"),
    "span of a class": (
        dict(task="classify", start_positions=torch.ones(4)),
        ValueError,
        "start_positions: sequence-classification takes labels",
    ),
    "flat choices": (dict(task="choose"), ValueError, r"input_ids: expected \(rows, choices"),
    "no input": (dict(task="tag", input_ids=None), ValueError, "input_ids: expected either"),
    "4-D mask": (
        dict(task="tag", attention_mask=torch.zeros(4, 1, 9, 9)),
        ValueError,
        r"attention_mask: expected \(batch, length\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(model, batch, case):
    changes, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        model(**batch | changes)


def test_token_types_that_would_be_ignored(tiny_backbone, batch):
    model = PromptModel(tiny_backbone("distilbert"))
    with pytest.raises(ValueError, match="token_type_ids: distilbert has none"):
        model(**batch, token_type_ids=torch.zeros(4, 9).long(), task=None)


def test_prompts_that_would_be_ignored(model, batch):
    model.backbone.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match=r"layers \[0, 1, 2\] have a prompt .* did not use"):
        model(**batch, task="classify")


def test_output_attentions_is_refused(tiny_backbone, batch):
    model = PromptModel(tiny_backbone("bert", output_attentions=True))
    with pytest.raises(NotImplementedError, match="output_attentions"):
        model(**batch, task=None)


def test_hidden_states(model, batch):
    assert len(model(**batch, task="tag", output_hidden_states=True).hidden_states) == 4


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_reentrant_checkpointing_is_refused(model, batch):
    task = model.for_task("classify").train()
    with pytest.raises(ValueError, match="use_reentrant: expected False"):
        task.gradient_checkpointing_enable({"use_reentrant": True})
    task.gradient_checkpointing_enable()
    task(**batch)
    checkpoint = partial(torch.utils.checkpoint.checkpoint, use_reentrant=True)
    for layer in model.backbone.encoder.layer:
        layer._gradient_checkpointing_func = checkpoint
    with pytest.raises(ValueError, match="use_reentrant: expected False"):
        task(**batch)
    model.backbone.gradient_checkpointing_disable()
    task(**batch)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_the_trainer_trains_the_prompt_under_checkpointing(model, batch, tmp_path):
    rows = [{name: x[row] for name, x in batch.items()} | {"labels": row % 3} for row in range(4)]
    before = model.prompts["classify"].embedding.clone()
    arguments = TrainingArguments(
        tmp_path, max_steps=2, gradient_checkpointing=True, report_to="none", save_strategy="no",
        learning_rate=0.1, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    Trainer(model.for_task("classify"), arguments, train_dataset=rows).train()
    assert model.backbone.encoder.layer[0].gradient_checkpointing
    assert not torch.equal(model.prompts["classify"].embedding, before)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a.b", None])
def test_bad_task_names(model, name):
    with pytest.raises(ValueError, match="name: expected letters"):
        model.add_task(name, CLASSIFY)


def test_taken_name_and_missing_layer(model):
    with pytest.raises(ValueError, match="'tag' exists already"):
        model.add_task("tag", TAG)
    with pytest.raises(ValueError, match="layers: expected numbers below 3"):
        model.add_task("deep", PromptConfig(task="feature-extraction", layers=(3,)))
    assert "deep" not in model.tasks


def test_decoders_are_refused(tiny_backbone):
    with pytest.raises(ValueError, match="is_decoder"):
        PromptModel(tiny_backbone("bert", is_decoder=True))


BAD_CONFIGS = {
    "task": dict(task="summarize"),
    "labels": dict(labels=()),
    "distinct": dict(labels=("a", "a")),
    "strings": dict(labels=(0, 1)),
    "parametrization": dict(parametrization="lora"),
    "injection": dict(injection="input"),
    "pooling": dict(pooling="max"),
    "prompt_length": dict(prompt_length=-1),
    "init_std": dict(init_std=float("nan")),
    "prompt_dropout": dict(prompt_dropout=1.0),
    "head_dropout": dict(head_dropout=-0.1),
    "layers": dict(layers=(2, 1)),
    "mlp_hidden_size": dict(mlp_hidden_size=0),
    "multi_label": dict(multi_label="yes"),
    "no_answer": dict(no_answer=True),
}


@pytest.mark.parametrize("field", BAD_CONFIGS)
def test_bad_config(field):
    with pytest.raises(ValueError, match="expected"):
        PromptConfig(**CLASSIFY.to_dict() | BAD_CONFIGS[field])


def test_config_round_trips():
    assert PromptConfig.from_dict(CLASSIFY.to_dict()) == CLASSIFY
    with pytest.raises(ValueError, match="unknown fields"):
        PromptConfig.from_dict(CLASSIFY.to_dict() | {"new": 1})


def test_moving_a_task_moves_the_others(model):
    model.for_task("tag").to(torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_data_parallel_is_refused(model):
    with pytest.raises(NotImplementedError, match="torchrun"):
        model.for_task("tag")._replicate_for_data_parallel()


def test_a_compiled_task_loads_its_own_state(model):
    compiled = torch.compile(model.for_task("tag"), backend="eager")
    compiled.load_state_dict(compiled.state_dict())


def test_labels_must_fit_the_rows(model, batch):
    with pytest.raises(ValueError, match=r"labels: expected 4, one an example, got \(1, 3\)"):
        model(**batch, task="regress", labels=torch.ones(1, 3))


def test_ambiguous_config_values():
    with pytest.raises(ValueError, match="labels: expected a tuple"):
        PromptConfig(task="sequence-classification", labels="score")
    with pytest.raises(ValueError, match="layers: expected ascending"):
        PromptConfig(task="feature-extraction", layers=(0.5,))
    with pytest.raises(ValueError, match="prompt_length: expected an int"):
        PromptConfig(task="feature-extraction", prompt_length=2.5)

"""PromptModel: tasks, mixed batches, losses, and what is trained."""

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from ptv2 import PromptConfig, PromptModel, UnknownTaskError
from tests.model.configs import CLASSIFY, SEVERAL, TAG


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


def test_a_multiple_choice_of_which_not_every_example_is_labelled(model, batch):
    tasks = ["choose", "choose", "classify", "choose", "choose"]
    rows = torch.tensor([0, 1, 2, 3, 2])
    mixed = {name: x[rows] for name, x in batch.items()}
    second = {name: x[rows[3:]].view(1, 2, 9) for name, x in batch.items()}
    alone = model(**second, task="choose", labels=torch.tensor([1]))
    out = model(**mixed, task=tasks, labels=[None, None, 2, 1, None], choices=2)
    torch.testing.assert_close(out.losses["choose"], alone.loss)
    torch.testing.assert_close(out.loss, (alone.loss + out.losses["classify"]) / 2)
    with pytest.raises(ValueError, match=r"labels: expected one at the first .* 2 choices"):
        model(**mixed, task=tasks, labels=[None, 1, 2, None, None], choices=2)
    for choices, given in ((3, tasks), (2, ["classify"] * 5), (0, tasks)):
        with pytest.raises(ValueError, match=f"choices: expected a divisor .* got {choices}"):
            model(**mixed, task=given, choices=choices)
    with pytest.raises(ValueError, match="choices: the bare backbone has no head"):
        model(**mixed, task=None, choices=2)


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


@torch.no_grad()
def test_hidden_states_as_the_configuration_says(model, batch):
    assert model(**batch, task="classify").hidden_states is None
    model.backbone.config.output_hidden_states = True
    given = model(**batch, task="classify").hidden_states
    asked = model(**batch, task="classify", output_hidden_states=True).hidden_states
    assert all(torch.equal(x, y) for x, y in zip(given, asked, strict=True))
    assert model(**batch, task="classify", output_hidden_states=False).hidden_states is None


def test_hidden_states(model, batch):
    assert len(model(**batch, task="tag", output_hidden_states=True).hidden_states) == 4


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


def test_moving_a_task_moves_the_others(model):
    model.for_task("tag").to(torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_a_compiled_task_loads_its_own_state(model):
    compiled = torch.compile(model.for_task("tag"), backend="eager")
    compiled.load_state_dict(compiled.state_dict())

"""What a model refuses."""

from functools import partial

import pytest
import torch
from transformers import ViTConfig, ViTModel

from ptv2 import PromptConfig, PromptModel, UnknownTaskError
from tests.model.configs import CLASSIFY, TAG

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


def test_empty_batch_is_refused(model):
    ids = torch.zeros(0, 5, dtype=torch.long)
    for task in ("classify", [], None):
        with pytest.raises(ValueError, match="input_ids: expected at least one row and token"):
            model(input_ids=ids, task=task)


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


@pytest.mark.parametrize("name", ["", "a b", "../x", "a.b", None])
def test_bad_task_names(model, name):
    with pytest.raises(ValueError, match="name: expected letters"):
        model.add_task(name, CLASSIFY)


@pytest.mark.parametrize("name", ["train", "type", "items", "training"])
def test_names_that_torch_has_taken(model, name):
    with pytest.raises(ValueError, match=f"name: torch's modules have a member '{name}'"):
        model.add_task(name, CLASSIFY)


def test_labels_of_another_shape(model, batch):
    with pytest.raises(ValueError, match=r"labels: expected \(4, 9\), got \(9, 4\)"):
        model(**batch, task="tag", labels=torch.zeros(9, 4).long())
    position = torch.zeros(4, 1).long()
    with pytest.raises(ValueError, match="start_positions: expected a start and an end of each"):
        model(**batch, task="answer", start_positions=position, end_positions=position)


def test_a_name_a_row_whatever_comes_first(model):
    embeds, positions = torch.randn(4, 9, 32), torch.arange(9)[None]
    out = model(inputs_embeds=embeds, position_ids=positions, task=["tag"] * 4)
    expected = model(inputs_embeds=embeds, task="tag").logits
    torch.testing.assert_close(torch.stack(out.logits), expected)


def test_taken_name_and_missing_layer(model):
    with pytest.raises(ValueError, match="'tag' exists already"):
        model.add_task("tag", TAG)
    with pytest.raises(ValueError, match="layers: expected numbers below 3"):
        model.add_task("deep", PromptConfig(task="feature-extraction", layers=(3,)))
    assert "deep" not in model.tasks


def test_decoders_are_refused(tiny_backbone):
    with pytest.raises(ValueError, match="is_decoder"):
        PromptModel(tiny_backbone("bert", is_decoder=True))


def test_data_parallel_is_refused(model):
    with pytest.raises(NotImplementedError, match="torchrun"):
        model.for_task("tag")._replicate_for_data_parallel()


def test_labels_must_fit_the_rows(model, batch):
    with pytest.raises(ValueError, match=r"labels: expected 4, one an example, got \(1, 3\)"):
        model(**batch, task="regress", labels=torch.ones(1, 3))


def test_prompts_of_images_before_the_text():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vit = ViTModel(ViTConfig(**sizes, intermediate_size=16, image_size=8, patch_size=4))
    config = PromptConfig("image-classification", ("a", "b"), depth="input")
    with pytest.raises(ValueError, match="depth: this backbone takes no embeddings"):
        PromptModel(vit).add_task("t", config)

"""PEFT's prefix-tuning adapters, against PEFT itself."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from ptv2 import PromptConfig, PromptModel
from ptv2.convert import export_peft, import_peft

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of its own use of transformers

FAMILIES = ("bert", "camembert", "electra", "roberta", "xlm-roberta")
CLASSES = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": AutoModel,
}
LABELS = ("a", "b", "c")


@pytest.fixture(params=FAMILIES)
def stock(request, tiny_backbone, tmp_path):
    """A folder with a backbone's weights, its pooler included."""
    backbone = tiny_backbone(request.param)
    kwargs = {} if request.param == "electra" else {"add_pooling_layer": True}
    model = AutoModel.from_config(backbone.config, **kwargs)
    model.load_state_dict(backbone.state_dict(), strict=False)
    model.save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


def load_stock(stock, task_type):
    labels = {"num_labels": 3} if task_type.endswith("CLS") else {}
    return CLASSES[task_type].from_pretrained(stock, **labels).eval()


def prompt_model(stock):
    return PromptModel(AutoModel.from_pretrained(stock)).eval()


@pytest.fixture
def batch():
    mask = torch.arange(9) < torch.tensor([9, 4, 6])[:, None]
    ids = torch.randint(4, 100, (3, 9)).masked_fill(~mask, 1)
    types = (torch.arange(9) > 2).long().expand(3, 9)
    return {"input_ids": ids, "attention_mask": mask.long(), "token_type_ids": types}


def outputs(output):
    names = ("logits", "start_logits", "end_logits", "last_hidden_state")
    return [output[name] for name in names if output.get(name) is not None]


def assert_equal_outputs(batch, got, expected):
    for x, y in zip(outputs(got), outputs(expected), strict=True):
        if x.shape[:2] == batch["input_ids"].shape:
            valid = batch["attention_mask"].bool()
            x, y = x[valid], y[valid]
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("task_type", CLASSES)
@pytest.mark.parametrize("projection", [False, True])
def test_import(stock, task_type, projection, batch, tmp_path):
    config = peft.PrefixTuningConfig(
        task_type=task_type, num_virtual_tokens=5, prefix_projection=projection
    )
    theirs = peft.get_peft_model(load_stock(stock, task_type), config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    ours = prompt_model(stock)
    import_peft(ours, tmp_path / "adapter", "task")
    assert_equal_outputs(batch, ours(**batch, task="task"), theirs(**batch))
    ours.save_task("task", tmp_path / "ours")
    ours.load_task(tmp_path / "ours", "again")
    assert_equal_outputs(batch, ours(**batch, task="again"), theirs(**batch))
    export_peft(ours, "again", tmp_path / "back")
    before, after = (
        load_file(tmp_path / x / "adapter_model.safetensors") for x in ("adapter", "back")
    )
    assert all(torch.equal(after[name], x) for name, x in before.items())


KINDS = {
    "SEQ_CLS": "sequence-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}


def exportable(family, task_type, **changes):
    kind = KINDS[task_type]
    config = PromptConfig(
        kind,
        LABELS if kind.endswith("classification") else (),
        prompt_length=5,
        position_offset=5,
        token_types=kind.endswith("classification"),
    )
    if task_type == "SEQ_CLS":
        activation = "gelu" if family == "electra" else "tanh"
        config = replace(config, pooling="first", head_activation=activation)
    return replace(config, **changes)


@torch.no_grad()
@pytest.mark.parametrize("task_type", CLASSES)
def test_export(stock, task_type, batch, tmp_path):
    ours = prompt_model(stock)
    family = ours.backbone.config.model_type
    ours.add_task("task", exportable(family, task_type, parametrization="mlp", network_size=8))
    export_peft(ours, "task", tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(load_stock(stock, task_type), tmp_path / "adapter")
    assert_equal_outputs(batch, theirs.eval()(**batch), ours(**batch, task="task"))
    with pytest.raises(FileExistsError, match="output: expected no or an empty folder"):
        export_peft(ours, "task", tmp_path / "adapter")


@pytest.fixture
def bert(tiny_backbone):
    return PromptModel(tiny_backbone("bert")).eval()


@pytest.mark.parametrize(
    ("task_type", "changes", "message"),
    [
        ("SEQ_CLS", {"pooling": "mean"}, "pooling: PEFT computes with 'first'"),
        ("SEQ_CLS", {"head_activation": None}, "head_activation: PEFT computes with 'tanh'"),
        ("TOKEN_CLS", {"position_offset": 0}, "position_offset: PEFT computes with 5, got .* 0"),
        ("TOKEN_CLS", {"head_activation": "tanh"}, "head_activation: PEFT computes with None"),
        ("TOKEN_CLS", {"gate": True}, "gate: PEFT computes with False"),
        ("TOKEN_CLS", {"layers": (0, 1)}, "layers: PEFT has a prefix in all of them"),
        ("QUESTION_ANS", {"token_types": True}, "token_types: PEFT computes with False"),
        ("TOKEN_CLS", {"token_types": False}, "token_types: PEFT computes with True"),
        ("TOKEN_CLS", {"prompt_length": 0, "position_offset": 0}, "prompt_length: PEFT has no"),
    ],
)
def test_prompts_that_peft_would_compute_differently(bert, task_type, changes, message, tmp_path):
    bert.add_task("task", exportable("bert", task_type, **changes))
    with pytest.raises(ValueError, match=message):
        export_peft(bert, "task", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_families_and_tasks_that_peft_does_not_have(bert, tiny_backbone, tmp_path):
    bert.add_task("task", PromptConfig("multiple-choice", prompt_length=5, position_offset=5))
    with pytest.raises(ValueError, match="task: PEFT has no multiple-choice"):
        export_peft(bert, "task", tmp_path / "adapter")
    other = PromptModel(tiny_backbone("distilbert"))
    other.add_task("task", exportable("distilbert", "TOKEN_CLS"))
    with pytest.raises(ValueError, match=r"backbone: PEFT's prefixes .* distilbert"):
        export_peft(other, "task", tmp_path / "adapter")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LORA"}, "expected peft_type 'PREFIX_TUNING', got 'LORA'"),
        ({"num_layers": 12}, "expected num_layers 3, got 12"),
        ({"token_dim": 64}, "expected token_dim 32, got 64"),
        ({"num_transformer_submodules": 2}, "expected num_transformer_submodules 1, got 2"),
        ({"num_virtual_tokens": 9}, "expected num_virtual_tokens of the 5 rows in the file"),
        ({"task_type": None}, "expected task_type SEQ_CLS or .* got None"),
        ({"task_type": "QUESTION_ANS"}, r"expected qa_outputs\.weight in the adapter, found none"),
    ],
)
def test_adapters_that_are_refused(bert, changes, message, tmp_path):
    bert.add_task("task", exportable("bert", "TOKEN_CLS"))
    export_peft(bert, "task", tmp_path / "adapter")
    place = tmp_path / "adapter" / "adapter_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        import_peft(bert, tmp_path / "adapter", "new")
    assert "new" not in bert.tasks


def test_weights_of_the_backbone_are_not_dropped(bert, tmp_path):
    bert.add_task("task", exportable("bert", "TOKEN_CLS"))
    export_peft(bert, "task", tmp_path / "adapter")
    place = tmp_path / "adapter" / "adapter_model.safetensors"
    name = "base_model.model.bert.encoder.layer.2.output.dense.weight"
    save_file(load_file(place) | {name: torch.zeros(2, 2)}, place)
    with pytest.raises(ValueError, match=r"source: .* weights of the backbone too: bert"):
        import_peft(bert, tmp_path / "adapter", "new")


def test_a_sequence_classifier_of_bert_needs_its_pooler(bert, tmp_path):
    """In PEFT's folder it is not; a backbone that was loaded without it has none either."""
    bert.add_task("task", exportable("bert", "SEQ_CLS"))
    export_peft(bert, "task", tmp_path / "adapter")
    place = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({k: x for k, x in load_file(place).items() if "pooler" not in k}, place)
    bert.backbone.pooler = None
    with pytest.raises(ValueError, match=r"expected bert\.pooler.* or a pretrained pooler"):
        import_peft(bert, tmp_path / "adapter", "new")


def test_as_many_labels_as_the_head_has(bert, tmp_path):
    bert.add_task("tag", exportable("bert", "TOKEN_CLS"))
    export_peft(bert, "tag", tmp_path / "adapter")
    with pytest.raises(ValueError, match="labels: expected 3, as the head has, got 2"):
        import_peft(bert, tmp_path / "adapter", "new", labels=("a", "b"))

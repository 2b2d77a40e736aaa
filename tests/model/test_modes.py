"""Training and evaluation mode: what a model starts in, and what uses of it leave."""

from pathlib import Path

import pytest
import torch

from ptv2 import PromptConfig, PromptModel, UnknownTaskError
from ptv2.predictor import Predictor
from tests.encoder import save_encoder
from tests.model.configs import CLASSIFY, TAG

LABELS = ("bad", "good")
TEXTS = [("mood", "a great film"), ("deep", "a dull film"), ("mood", "rome"), ("before", "paris")]


@pytest.fixture
def model(tmp_path: Path) -> PromptModel:
    model = PromptModel.from_pretrained(save_encoder(tmp_path / "encoder"))
    for name, depth in (("mood", "layers"), ("deep", "input"), ("before", "input")):
        config = PromptConfig("sequence-classification", LABELS, 3, depth=depth, head_dropout=0.5)
        model.add_task(name, config)
    return model


def modes(model: PromptModel) -> list[bool]:
    return [part.training for part in model.modules()]


def test_a_pretrained_model_is_in_evaluation_mode(model: PromptModel, tmp_path: Path) -> None:
    model.save_task("mood", tmp_path / "mood")
    fresh = PromptModel.from_pretrained(tmp_path / "encoder")
    fresh.load_task(tmp_path / "mood")
    ids = torch.tensor([[2, 5, 6, 3]])
    assert not any(modes(fresh))
    assert torch.equal(fresh(ids, task="mood").logits, fresh(ids, task="mood").logits)


def test_a_prediction_leaves_every_part_in_its_mode(model: PromptModel) -> None:
    predictor = Predictor(model)
    expected = predictor.predict(TEXTS)
    for change in (
        lambda: model.train(),
        lambda: model.eval(),
        lambda: model.for_task("mood").train(),
        lambda: model.for_task("mood", backbone_dropout=False).train(),
        lambda: model.heads["deep"].train(),
    ):
        change()
        before = modes(model)
        assert predictor.predict(TEXTS) == expected
        model.key_value("mood")
        model.add_task("text", model.tasks["mood"], start_from_text=[5, 6])
        model.remove_task("text")
        assert modes(model) == before


def test_a_predictor_follows_the_model(model: PromptModel) -> None:
    predictor = Predictor(model)
    expected = predictor.predict(TEXTS)
    model.bfloat16()
    assert [set(answer) for answer in predictor.predict(TEXTS)] == [set(x) for x in expected]
    model.float()
    assert [set(answer) for answer in predictor.predict(TEXTS)] == [set(x) for x in expected]


def test_tasks_before_the_text_are_answered_together(model: PromptModel) -> None:
    predictor = Predictor(model)
    alone = [answer for text in TEXTS for answer in predictor.predict([text])]
    for answer, expected in zip(predictor.predict(TEXTS), alone, strict=True):
        assert answer["label"] == expected["label"]
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-4)


def test_a_module_of_a_task_that_is_gone(model: PromptModel) -> None:
    module, ids = model.for_task("mood"), torch.tensor([[2, 5, 6, 3]])
    config = model.tasks["mood"]
    model.remove_task("mood")
    with pytest.raises(UnknownTaskError, match="task: 'mood' is unknown"):
        module(ids)
    model.add_task("mood", config)
    with pytest.raises(ValueError, match="task: 'mood' was removed and added anew"):
        module(ids)


def test_weights_that_have_changed_are_another_backbone(
    model: PromptModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_task("mood", tmp_path / "mood")
    with monkeypatch.context() as patch:  # as if all weights came to lie where they were
        patch.setattr("ptv2.fingerprint._state", lambda weight: (0, 0))
        expected = model.identity.describe()
        model.bfloat16().float()
        assert model.identity.describe() != expected
    with pytest.raises(ValueError, match=r"trained on the backbone .* whose weights differ"):
        model.load_task(tmp_path / "mood", "again")
    fresh = PromptModel.from_pretrained(tmp_path / "encoder")
    fresh.load_task(tmp_path / "mood")
    with torch.no_grad():
        fresh.backbone.embeddings.word_embeddings.weight[5, 0] += 1
    with pytest.raises(ValueError, match=r"trained on the backbone .* whose weights differ"):
        fresh.load_task(tmp_path / "mood", "again")


def test_a_predictor_takes_what_the_model_takes(tiny_backbone, tmp_path: Path) -> None:
    """DistilBERT has no token types; a tokenizer that gives some is refused by both."""
    tokenizer = Predictor(PromptModel.from_pretrained(save_encoder(tmp_path))).tokenizer
    model = PromptModel(tiny_backbone("distilbert"))
    model.add_task("topic", CLASSIFY)
    model.add_task("tags", TAG)
    batch = tokenizer(["a film"], return_tensors="pt")
    for answer in (
        lambda: model(**batch, task="topic"),
        lambda: Predictor(model, tokenizer).predict([("topic", "a film")]),
    ):
        with pytest.raises(ValueError, match="token_type_ids: distilbert has none"):
            answer()


def test_sizes_of_a_predictor(tmp_path: Path) -> None:
    model = PromptModel.from_pretrained(save_encoder(tmp_path))
    for size in (0, -4, "8", True):
        with pytest.raises(ValueError, match="batch_size: expected an int of at least 1, got"):
            Predictor(model, batch_size=size)
    for length in ("5", 2.5, True):
        with pytest.raises(TypeError, match="max_length: expected None or an int, got"):
            Predictor(model, max_length=length)

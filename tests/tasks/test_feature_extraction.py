"""Texts to vectors, also beside other tasks in one batch; nothing to train."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ptv2 import PromptConfig, PromptModel
from ptv2.predictor import Predictor
from ptv2.tasks import FeatureExtraction
from ptv2.train_config import TrainConfig
from ptv2.training import evaluate, train
from tests.encoder import save_encoder

TEXTS = ["a great film in rome", "a"]
DATA = Dataset.from_dict({"text": TEXTS})


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_vectors_in_a_mixed_batch(tmp_path: Path, pooling: str) -> None:
    predictor = Predictor(PromptModel.from_pretrained(save_encoder(tmp_path)))
    model = predictor.model
    model.add_task("e", PromptConfig("feature-extraction", prompt_length=3, pooling=pooling))
    model.add_task("t", PromptConfig("sequence-classification", ("a", "b"), prompt_length=2))
    answers = predictor.predict([("e", TEXTS[0]), ("t", TEXTS[0]), ("e", TEXTS[1])])
    assert set(answers[1]) == {"label", "score"}
    for text, answer in ((TEXTS[0], answers[0]), (TEXTS[1], answers[2])):
        batch = predictor.tokenizer([text], return_tensors="pt")
        with torch.no_grad():
            states = model.eval()(**batch, task="e").last_hidden_state[0]
        want = states[0] if pooling == "first" else states.mean(0)
        torch.testing.assert_close(torch.tensor(answer["embedding"]), want, rtol=0, atol=1e-5)


def test_there_is_nothing_to_train_or_to_score(tmp_path: Path) -> None:
    predictor = Predictor(PromptModel.from_pretrained(save_encoder(tmp_path / "encoder")))
    predictor.model.add_task("e", PromptConfig("feature-extraction", prompt_length=3))
    task, output = predictor.task("e"), tmp_path / "run"
    with pytest.raises(ValueError, match="task: feature-extraction has no loss and no score"):
        train(predictor.model, "e", task, (DATA, DATA), output, TrainConfig())
    assert not output.exists()
    with pytest.raises(ValueError, match="task: feature-extraction has no loss and no score"):
        evaluate(predictor, "e", task, DATA)


def test_features(tokenizer: PreTrainedTokenizerBase) -> None:
    task = FeatureExtraction(tokenizer)
    assert task.prepare(DATA, labelled=False).to_list() == task.prepare_inputs(TEXTS)

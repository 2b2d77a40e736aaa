"""Answers at the edge of what a window shows, and what is trained if none shows all of one."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ptv2 import PromptConfig, PromptModel
from ptv2.tasks import Collator, QuestionAnswering
from tests.encoder import save_encoder

WORDS = ("the", "cafe", "is", "film", "in")
ACCENT, VARIATION, ZERO_WIDTH, MARK = "\u0301", "\ufe0f", "\u200b", "\ufeff"


@pytest.fixture(scope="module")
def uncased() -> PreTrainedTokenizerFast:
    """A tokenizer of words that drops accents and control characters, as BERT's uncased one."""
    special = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    vocabulary = special | {word: i for i, word in enumerate(WORDS, start=4)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=32, pad_token="[PAD]", unk_token="[UNK]"
    )


def question(context: str, answer: str) -> Dataset:
    answers = {"text": [answer], "answer_start": [context.index(answer)]}
    return Dataset.from_list([{"question": "in", "context": context, "answers": answers}])


def spans(features: Dataset) -> list[tuple[int, int]]:
    return list(zip(features["start_positions"], features["end_positions"], strict=True))


@pytest.mark.parametrize(
    ("context", "answer", "span"),
    [
        (f"the cafe{ACCENT}", f"cafe{ACCENT}", (4, 4)),
        (f"the cafe{ACCENT} is", f"cafe{ACCENT}", (4, 4)),
        (f"the cafe{ACCENT}{VARIATION} ", f"the cafe{ACCENT}{VARIATION}", (3, 4)),
        (f"the cafe {ZERO_WIDTH}", f"cafe {ZERO_WIDTH}", (4, 4)),
        (f"{MARK}the cafe", f"{MARK}the", (3, 3)),
        (f"{ZERO_WIDTH}{ACCENT} the cafe", f"{ZERO_WIDTH}{ACCENT} the cafe", (3, 4)),
        (f"{MARK}cafe{ACCENT}", f"{MARK}cafe{ACCENT}", (3, 3)),
        (f"{MARK}cafe{ACCENT}", "af", (3, 3)),
    ],
)
def test_characters_without_a_token_at_the_edge_of_a_context(
    uncased: PreTrainedTokenizerFast, context: str, answer: str, span: tuple[int, int]
) -> None:
    assert spans(QuestionAnswering(uncased).prepare(question(context, answer))) == [span]


def test_characters_without_a_token_between_windows(uncased: PreTrainedTokenizerFast) -> None:
    context = f"in the{ACCENT} {ZERO_WIDTH}cafe is"
    task = QuestionAnswering(uncased, max_length=6, stride=0)  # windows of two words
    for answer, expected in (
        (f"the{ACCENT}", [(4, 4), (0, 0)]),
        (f"the{ACCENT} {ZERO_WIDTH}", [(4, 4), (0, 0)]),
        (f"{ACCENT} {ZERO_WIDTH}cafe is", [(0, 0), (3, 4)]),
        (f"the{ACCENT} {ZERO_WIDTH}cafe", [(-100, -100)] * 2),
    ):
        assert spans(task.prepare(question(context, answer))) == expected


def test_an_answer_without_a_token_is_not_trained(
    uncased: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        features = QuestionAnswering(uncased).prepare(question(f"the {MARK} cafe", MARK))
    assert spans(features) == [(-100, -100)]
    assert caplog.messages == ["1 answers are whole in no window: they are not trained"]


@pytest.mark.parametrize("packing", [False, True])
def test_lost_answers_do_not_count_in_the_loss(
    uncased: PreTrainedTokenizerFast, tmp_path: Path, packing: bool
) -> None:
    task = QuestionAnswering(uncased, max_length=6, stride=0)
    lost = list(task.prepare(question("in the cafe is film", "the cafe")))
    found = list(task.prepare(question("in the cafe", "the")))
    collate = Collator(task, packing=packing)
    model = PromptModel.from_pretrained(save_encoder(tmp_path))
    model.add_task("t", PromptConfig("question-answering", prompt_length=2))
    module: Any = model.for_task("t").eval()
    assert len(lost) == 3
    loss = module(**collate(lost)).loss
    loss.backward()
    gradients = [p.grad for p in module.parameters() if p.requires_grad]
    assert loss == 0
    assert gradients
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    torch.testing.assert_close(module(**collate(lost + found)).loss, module(**collate(found)).loss)

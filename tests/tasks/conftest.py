"""The tiny encoder's tokenizer."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.encoder import save_encoder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(save_encoder(tmp_path_factory.mktemp("encoder")))

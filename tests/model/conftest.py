"""A small model with a task of every kind, and a padded batch."""

import pytest
import torch

from ptv2 import PromptModel
from tests.model.configs import ANSWER, CHOOSE, CLASSIFY, EMBED, REGRESS, TAG


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

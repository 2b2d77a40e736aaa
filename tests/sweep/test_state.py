"""A sweep's state on disk."""

import math
from pathlib import Path

import torch

from ptv2.sweep.state import load_state, save_state


def test_everything_comes_back_to_the_bit(tmp_path: Path) -> None:
    shared = torch.randn(3, 2)
    state = {
        "values": {"a.b": shared, "turned": shared.T, "empty": torch.empty(0, 2)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}, 1: {}}, "betas": [0.9, 1 / 3]},
        "random": torch.get_rng_state(),
        "history": {"run": [{"epoch": 1, "loss": 0.1 + 0.2}]},
        "numbers": [math.inf, -0.0, None, True],
        "none": {},
    }
    assert load_state(tmp_path) is None
    save_state(tmp_path, state)
    found = load_state(tmp_path)
    assert found.keys() == state.keys()
    for name, x in state["values"].items():
        assert torch.equal(found["values"][name], x)
    assert torch.equal(found["random"], state["random"])
    assert found["optimizer"]["state"][0]["step"] == 3
    assert found["optimizer"]["state"][1] == {}
    for name in ("history", "none", "numbers"):
        assert found[name] == state[name]
    assert math.copysign(1, found["numbers"][1]) == -1
    assert found["optimizer"]["betas"] == state["optimizer"]["betas"]

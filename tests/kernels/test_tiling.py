"""Tile files: whole, with their origin, and the one that fits the device is taken."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from ptv2_kernels import tiling
from ptv2_kernels.tiling import (
    device_slug,
    override_tiles,
    padded_head_dim,
    read_tiles,
    select_tiles,
    shipped_tiles,
    tile_key,
)

FOLDER = Path(tiling.__file__).parent / "tiles"
FILES = sorted(path.stem for path in FOLDER.glob("*.json"))
KEYS = {
    tile_key(head_dim, dtype, dropout)
    for head_dim in (16, 32, 64, 128)
    for dtype in (torch.float16, torch.float32)
    for dropout in (False, True)
}
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("name", FILES)
def test_files_are_whole(name):
    content = json.loads((FOLDER / f"{name}.json").read_text())
    assert content["device"]
    assert content["provenance"]["how"]
    assert content["tiles"].keys() == KEYS
    for key in KEYS:
        for tile in filter(None, asdict(read_tiles(name, key)).values()):
            sizes = (tile["block_m"], tile["block_n"], tile["block_p"])
            assert all(size >= 16 and size & (size - 1) == 0 for size in sizes)
            assert tile["num_warps"] in (1, 2, 4, 8, 16)


@pytest.mark.parametrize("head_dim", [1, 16, 24, 64, 80, 96, 128])
def test_every_head_size_has_tiles(head_dim):
    assert padded_head_dim(head_dim) >= head_dim
    assert select_tiles(head_dim, torch.bfloat16, True, torch.device("cpu")).forward.block_m


def test_a_padded_head_takes_no_kernel_for_short_sequences():
    assert shipped_tiles("sm_90", 32, torch.float16, False).short_grad is not None
    assert shipped_tiles("sm_90", 24, torch.float16, False).short_grad is None


@pytest.fixture
def gpu(monkeypatch):
    """`gpu(name, capability)` is what torch says of the device."""

    def pretend(name, capability):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        tiling._shipped_tiles.cache_clear()

    yield pretend
    tiling._shipped_tiles.cache_clear()


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((8, 0), "sm_80"),
        ((8, 9), "sm_80"),
        ((9, 0), "sm_90"),
        ((10, 3), "sm_100"),
        ((12, 0), "sm_80"),
    ],
)
def test_the_architecture_decides(gpu, capability, name):
    gpu("Some GPU", capability)
    key = tile_key(64, torch.float16, False)
    assert select_tiles(64, torch.float16, False, CUDA) == read_tiles(name, key)


def test_tiles_of_a_block_are_those_of_its_thread():
    arguments = (64, torch.float16, False, torch.device("cpu"))
    usual = select_tiles(*arguments)
    with override_tiles(replace(usual, short_grad=None)), ThreadPoolExecutor(1) as pool:
        assert select_tiles(*arguments) != usual
        assert pool.submit(select_tiles, *arguments).result() == usual
    assert select_tiles(*arguments) == usual


def test_a_measured_gpu_goes_first(gpu, monkeypatch, tmp_path):
    (tmp_path / "tiles").mkdir()
    for source, target in (("sm_90", "sm_90"), ("sm_80", "nvidia-h100-80gb-hbm3")):
        text = (
            (FOLDER / f"{source}.json").read_text().replace('"num_stages": 2', '"num_stages": 3')
        )
        (tmp_path / "tiles" / f"{target}.json").write_text(text)
    monkeypatch.setattr(tiling, "files", lambda package: tmp_path)
    gpu("NVIDIA H100 80GB HBM3", (9, 0))
    key = tile_key(64, torch.bfloat16, True)
    chosen = select_tiles(64, torch.bfloat16, True, CUDA)
    assert chosen == read_tiles("nvidia-h100-80gb-hbm3", key) != read_tiles("sm_90", key)
    assert device_slug("NVIDIA A100-SXM4-40GB") == "nvidia-a100-sxm4-40gb"

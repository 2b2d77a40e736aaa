"""Ray Serve: one list of tasks on all replicas, whatever happens to them."""

import json
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from fastapi.testclient import TestClient
from pydantic import ValidationError

from ptv2 import PromptConfig, PromptModel, UnknownTaskError
from ptv2.serving import Service, UnavailableError
from tests.encoder import save_encoder

ray = pytest.importorskip("ray", reason="needs the extra ray")
ray_app = pytest.importorskip("ptv2.serving.ray_app")
pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
TEXT = "a great film in rome"
FOLDERS = ("mood-1", "mood-2", "late")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """An encoder, and a folder of prompts for it, all of them different."""
    folder = tmp_path_factory.mktemp("ray")
    save_encoder(folder / "encoder")
    torch.manual_seed(0)
    model = PromptModel.from_pretrained(folder / "encoder")
    for name in FOLDERS:
        config = PromptConfig("sequence-classification", ("bad", "good"), prompt_length=4)
        model.add_task(name, config)
        for parameter in model.heads[name].parameters():
            parameter.data = torch.randn_like(parameter)
        model.save_task(name, folder / "prompts" / name)
    (folder / "prompts" / "empty").mkdir()
    return folder


@pytest.fixture(scope="module")
def scores(work):
    """What the prompt of each folder answers, without Ray."""
    service = Service(PromptModel.from_pretrained(work / "encoder"))
    for name in FOLDERS:
        service.bank.load(work / "prompts" / name)
    found = {x: service.answer(x, [TEXT])[0].logits[0].softmax(-1).max() for x in FOLDERS}
    service.close()
    assert len({round(float(x), 3) for x in found.values()}) == len(FOLDERS)
    return {name: pytest.approx(float(x), rel=1e-4) for name, x in found.items()}


def arguments(work):
    return {"backbone": str(work / "encoder"), "prompts": str(work / "prompts")}


def test_a_list_is_taken_as_a_whole_or_not_at_all(work, monkeypatch):
    monkeypatch.setenv("PTV2_KEY", "k")
    replica = ray_app.Replica(ray_app.Arguments(**arguments(work)))
    with TestClient(replica.__serve_build_asgi_app__()) as client:

        def served():
            got = client.get("/info").json()["tasks"]
            return {name: task["version"] for name, task in got.items()}

        replica.reconfigure({"tasks": {"mood": "mood-1"}})
        assert served() == {"mood": 1}
        for folder in ("empty", "none", "../prompts/late"):
            with pytest.raises((FileNotFoundError, ValueError)):
                replica.reconfigure({"tasks": {"mood": "mood-2", "late": folder}})
            with pytest.raises((FileNotFoundError, ValueError)):
                replica.check(folder, "late")
        for config in ({}, {"tasks": ["mood"]}, {"tasks": {}, "other": 1}):
            with pytest.raises(ValidationError):
                replica.reconfigure(config)
        assert served() == {"mood": 1}
        assert replica.tasks() == {"mood": "mood-1"}
        replica.reconfigure({"tasks": {"mood": "mood-2", "late": "late"}})
        assert served() == {"mood": 2, "late": 1}
        replica.reconfigure({"tasks": {"late": "late"}})
        assert served() == {"late": 1}

        body = {"inputs": TEXT}
        assert client.post("/models/late", json=body).status_code == 401
        key = {"Authorization": "Bearer k"}
        assert client.post("/models/late", json=body, headers=key).status_code == 200
        for path in ("/admin/tasks/late", "/metrics"):
            assert client.put(path, headers=key).status_code == 404
        replica.check_health()
    with pytest.raises(UnavailableError, match="engine is dead"):
        replica.check_health()


def test_arguments(work):
    texts = {"batch_tokens": "512", "prompt_memory": "1MB", "max_length": "16"}
    found = ray_app.Arguments(**arguments(work), **texts)
    assert (found.batch_tokens, found.prompt_memory, found.max_length) == (512, 10**6, 16)
    with pytest.raises(ValidationError, match="bakbone"):
        ray_app.Arguments(**arguments(work), bakbone="x")


@pytest.fixture(scope="module")
def cluster(work):
    """A cluster with examples/ray_serve.yaml for this encoder, and a deployment that can die."""
    with pytest.MonkeyPatch.context() as patch, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "kernels"), str(ROOT)]))
        temporary = tempfile.mkdtemp(prefix="ray")  # short: it holds the names of sockets
        port = probe.getsockname()[1]
    ...

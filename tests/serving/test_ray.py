"""Ray Serve: one list of tasks on all replicas, whatever happens to them."""

import json
import os
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
            got = client.get("/info", headers={"Authorization": "Bearer k"}).json()["tasks"]
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


class Cluster:
    """Ray on this machine, with examples/ray_serve.yaml for an encoder, and one that can die."""

    def __init__(self, work, temporary):
        address = ray.init(
            num_cpus=4,
            include_dashboard=True,
            dashboard_port=free_port(),
            log_to_driver=False,
            _temp_dir=temporary,
        )
        config = yaml.safe_load((ROOT / "examples" / "ray_serve.yaml").read_text())
        ray.serve.schema.ServeDeploySchema.model_validate(config)
        config["http_options"]["port"] = port = free_port()
        (application,) = config["applications"]
        application["args"] = arguments(work)
        application["deployments"][0]["user_config"] = {"tasks": {"mood": "mood-1"}}
        mortal = {"import_path": "tests.serving.mortal:build", "args": arguments(work)}
        config["applications"].append({"name": "mortal", "route_prefix": "/mortal", **mortal})
        self.url = f"http://127.0.0.1:{port}"
        self.dashboard = f"http://{address.dashboard_url}"
        self._client = ray_app.ServeSubmissionClient(self.dashboard)
        self._client.deploy_applications(config)
        wait_until(lambda: [x["status"] for x in self.applications().values()] == ["RUNNING"] * 2)

    def applications(self):
        return self._client.get_serve_details()["applications"]

    def processes(self, application="default"):
        """Of the replicas that run."""
        replicas = self.applications()[application]["deployments"]["PTV2"]["replicas"]
        return {x["pid"] for x in replicas if x["state"] == "RUNNING"}

    def ask(self, task, application=""):
        """The score of the best class, or the status of a refusal; other failures raise."""
        body = json.dumps({"inputs": TEXT}).encode()
        try:
            with urllib.request.urlopen(f"{self.url}{application}/models/{task}", body) as got:
                return json.load(got)[0][0]["score"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def insist(self, task):
        """As `ask`, again until the server does not fail."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                found = self.ask(task)
            except (urllib.error.URLError, ConnectionError):
                found = 503
            if found < 500:
                return found
            time.sleep(0.05)
        raise TimeoutError


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(work):
    temporary = tempfile.mkdtemp(prefix="ray")  # short: sockets lie in it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", temporary)  # where Ray leaves the key that its processes show
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "kernels"), str(ROOT)]))
        try:
            yield Cluster(work, temporary)
            ray.serve.shutdown()
        finally:
            ray.shutdown()
            shutil.rmtree(temporary, ignore_errors=True)


def test_what_is_loaded_and_unloaded_reaches_all_replicas(cluster, scores):
    at = {"dashboard": cluster.dashboard}
    before = cluster.processes()
    assert len(before) == 2
    assert cluster.ask("late") == 404
    ray_app.load("late", **at)
    assert [cluster.ask("late") for _ in range(20)] == [scores["late"]] * 20
    ray_app.load("mood", "mood-2", **at)
    assert [cluster.ask("mood") for _ in range(20)] == [scores["mood-2"]] * 20
    ray_app.unload("late", **at)
    assert [cluster.ask("late") for _ in range(20)] == [404] * 20
    ray_app.load("mood", "mood-1", **at)

    with pytest.raises(ValueError, match="expected another one than 'mood-1'"):
        ray_app.load("mood", "mood-1", **at)
    with pytest.raises(FileNotFoundError, match="expected prompt_config"):
        ray_app.load("mood", "empty", **at)
    with pytest.raises(UnknownTaskError, match="'late' is not served"):
        ray_app.unload("late", **at)
    with pytest.raises(ValueError, match="application: expected one that"):
        ray_app.load("late", application="other", **at)
    assert cluster.ask("mood") == scores["mood-1"]
    assert cluster.processes() == before


def test_a_replica_that_is_killed_under_load(cluster, scores):
    at = {"dashboard": cluster.dashboard}
    ray_app.load("late", **at)
    before = cluster.processes()
    killed = min(before)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(cluster.insist, ("mood", "late")[i % 2]) for i in range(400)]
        asked[40].result()
        os.kill(killed, signal.SIGKILL)
        found = [one.result() for one in asked]
    assert found[::2] == [scores["mood-1"]] * 200
    assert found[1::2] == [scores["late"]] * 200

    wait_until(lambda: len(cluster.processes()) == 2 and killed not in cluster.processes())
    handle = ray.serve.get_app_handle("default")
    tasks = {"mood": "mood-1", "late": "late"}
    wait_until(lambda: handle.broadcast("tasks").results() == [tasks, tasks])
    assert [cluster.ask("late") for _ in range(20)] == [scores["late"]] * 20


def test_a_replica_whose_engine_dies_is_replaced(cluster, scores):
    before = cluster.processes("mortal")
    ray_app.load("late", application="mortal", dashboard=cluster.dashboard)
    assert cluster.ask("late", "/mortal") == scores["late"]
    assert cluster.processes("mortal") == before
    ray.serve.get_app_handle("mortal").die.remote().result()
    assert cluster.ask("late", "/mortal") == 503
    wait_until(lambda: cluster.processes("mortal") - before)
    assert cluster.ask("late", "/mortal") == scores["late"]
    assert cluster.ask("mood", "/mortal") == scores["mood-1"]

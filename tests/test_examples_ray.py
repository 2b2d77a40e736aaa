"""The examples of Ray, run as they are (ray_serve.yaml: tests/serving/test_ray.py)."""

import ast
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
import yaml

from ptv2 import Predictor, PromptConfig, PromptModel
from tests.encoder import examples, save_encoder, write_jsonl

ray = pytest.importorskip("ray", reason="needs the extra ray")
schema = pytest.importorskip("ray.serve.schema")
pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[1]


def saved_mood(folder):
    """An encoder in a folder, and a prompt beside it; the model."""
    save_encoder(folder / "encoder")
    torch.manual_seed(0)
    model = PromptModel.from_pretrained(folder / "encoder")
    config = PromptConfig("sequence-classification", ("bad", "good"), prompt_length=4)
    model.add_task("mood", config)
    model.save_task("mood", folder / "prompts" / "mood")
    return model


def run(script, *options):
    """What an example prints."""
    command = [sys.executable, ROOT / "examples" / script, *map(str, options)]
    paths = os.pathsep.join([str(ROOT / "kernels"), str(ROOT)])
    with tempfile.TemporaryDirectory(prefix="ray") as temporary:  # short: sockets lie in it
        own = {"PYTHONPATH": paths, "HOME": temporary, "RAY_TMPDIR": temporary}
        own["RAY_USAGE_STATS_ENABLED"] = "0"
        given = {"env": os.environ | own, "check": True, "timeout": 120}
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, **given).stdout


def test_ray_data(tmp_path):
    model = saved_mood(tmp_path)
    rows = [row | {"id": i} for i, row in enumerate(examples(50))]
    write_jsonl(tmp_path / "data.jsonl", rows)
    place = ("--backbone", tmp_path / "encoder", "--prompt", tmp_path / "prompts" / "mood")
    data = ("--data", tmp_path / "data.jsonl", "--output", tmp_path / "answers")
    run("ray_data.py", *place, *data, "--batch-size", 16)

    found = pyarrow.parquet.read_table(tmp_path / "answers").to_pylist()
    found.sort(key=lambda row: row["id"])
    answers = Predictor(model).predict([("mood", row["text"]) for row in rows])
    for row, answer, got in zip(rows, answers, found, strict=True):
        assert {name: got[name] for name in row} == row
        assert got["answer"]["label"] == answer["label"]
        assert got["answer"]["score"] == pytest.approx(answer["score"], abs=1e-4)


def test_ray_serve(tmp_path):
    model, text = saved_mood(tmp_path), "a great film in rome"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = ("--backbone", tmp_path / "encoder", "--prompts", tmp_path / "prompts")
    printed = run("ray_serve.py", *place, "--text", text, "--port", port)
    (served,) = re.findall(r"the replicas serve (.*)", printed)
    assert ast.literal_eval(served) == [{"mood": "mood"}] * 2
    (found,) = re.findall(r"^mood: (.*)", printed, re.MULTILINE)
    best = ast.literal_eval(found)[0][0]
    (answer,) = Predictor(model).predict([("mood", text)])
    assert best["label"] == answer["label"]
    assert best["score"] == pytest.approx(answer["score"], abs=1e-4)


def serve_configs():
    """By file."""
    plain = yaml.safe_load((ROOT / "examples" / "ray_serve.yaml").read_text())
    manifest = yaml.safe_load((ROOT / "examples" / "kuberay.yaml").read_text())
    inner = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    return {"ray_serve.yaml": plain, "kuberay.yaml": inner}, manifest["spec"]["rayClusterConfig"]


def test_serve_configs():
    """Ray takes them, and so do the application and its deployment."""
    ray_app = pytest.importorskip("ptv2.serving.ray_app")
    for config in serve_configs()[0].values():
        (application,) = schema.ServeDeploySchema.model_validate(config).applications
        ray_app.Arguments.model_validate(application.args)
        assert application.import_path == "ptv2.serving.ray_app:build"
        (deployment,) = application.deployments
        assert deployment.name == ray_app.PTV2.name
        ray_app.Config.model_validate(deployment.user_config)


def test_kuberay_has_workers_for_all_replicas():
    configs, cluster = serve_configs()
    (deployment,) = configs["kuberay.yaml"]["applications"][0]["deployments"]
    (group,) = cluster["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    limits, wanted = worker["resources"]["limits"], deployment["ray_actor_options"]
    assert wanted["num_cpus"] <= int(limits["cpu"])
    assert wanted["num_gpus"] <= limits["nvidia.com/gpu"]
    assert deployment["num_replicas"] <= group["minReplicas"]
    assert cluster["rayVersion"] == ray.__version__

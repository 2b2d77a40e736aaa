"""The server under hostile and unlucky conditions: odd bodies, names, pickles, no memory."""

import os
import random
import string
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import hypothesis
import pytest
import schemathesis
import torch
from fastapi.testclient import TestClient

from ptv2.serving import Limits
from ptv2.serving.app import create_app
from tests.serving.work import CONFIGS, TEXT, new_service

CASES = int(os.environ.get("PTV2_CASES", "160"))
"""Of bodies, over all routes; the published number is 10,000."""
NAMES = int(os.environ.get("PTV2_NAMES", "400"))
"""The published number is 100,000."""
UNLUCKY = int(os.environ.get("PTV2_UNLUCKY", "60"))
"""Requests of 20 texts while memory is short; the published number is 10,000."""

watched: list[list[tuple[str, str]]] = []
"""Lists that get the files and pickles that are opened."""


def watch(event, arguments):
    if watched and event in ("open", "pickle.find_class"):
        watched[-1].append((event, str(arguments[0])))


sys.addaudithook(watch)


@pytest.fixture
def app(service, work):
    return create_app(service, prompts=work / "prompts", admin_key="a")


def test_no_body_that_the_description_allows_or_forbids_is_a_fault_of_the_server(app):
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [found.ok() for found in schema.get_all_operations()]
    statuses = set()
    for operation in operations:

        @hypothesis.given(case=operation.as_strategy(), task=hypothesis.strategies.sampled_from(
            [*CONFIGS, None]
        ))  # fmt: skip
        @hypothesis.settings(
            max_examples=-(-CASES // len(operations)),
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def answered(case, task):
            if task is not None and "task" in case.path_parameters:
                case.path_parameters["task"] = task
            if task is not None and isinstance(case.body, dict) and "model" in case.body:
                case.body["model"] = task
            case.headers["Authorization"] = "Bearer a"
            status = case.call().status_code
            assert status < 500
            statuses.add(status)

        answered()
    assert statuses >= {200, 404, 422}


def odd_name(draw):
    parts = ["..", ".", "/", "\\", "\0", "%2e", "%2f", "~", "mood", "outside", "prompts", "\ud83d"]
    parts += [draw.choice(string.printable), chr(draw.randrange(0x3000)), "a" * 300, ""]
    return "".join(draw.choice(parts) for _ in range(draw.randint(1, 6)))


def test_no_name_opens_what_is_outside_of_the_folder(app, work):
    outside = work / "outside"
    if not outside.exists():
        outside.symlink_to(work / "prompts" / "mood")  # could be loaded
    draw = random.Random(0)
    names = ["../outside", "..%2foutside", str(outside), "mood/../../outside", "outside", "mood"]
    names += ["a" * 200, "a" * 201, "a" * 5000]
    names += [odd_name(draw) for _ in range(NAMES)]
    loaded, opened = set(), []
    with TestClient(app, raise_server_exceptions=False) as client:
        watched.append(opened)
        for name in names:
            path = f"/admin/tasks/{quote(name.encode('utf-8', 'surrogatepass'), safe='')}"
            response = client.put(path, headers={"Authorization": "Bearer a"})
            assert response.status_code in (200, 404, 405, 422), (name, response.text)
            if response.status_code == 200:
                loaded.add(response.json()["name"])
        watched.pop()
    assert loaded == {"mood"}
    inside = str(work / "prompts") + os.sep
    files = [path for event, path in opened if event == "open" and str(work) in path]
    assert all(path.startswith(inside) and ".." not in path for path in files)
    assert files


def test_no_pickle_is_read(work, tmp_path):
    opened = []
    watched.append(opened)
    service = new_service(work)
    folder = tmp_path / "evil"
    folder.mkdir()
    torch.save({"x": torch.ones(1)}, folder / "prompt.bin")
    (folder / "prompt.safetensors").write_bytes((folder / "prompt.bin").read_bytes())
    app = create_app(service, prompts=tmp_path, admin_key="a")
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/models/mood", json={"inputs": TEXT}).status_code == 200
        response = client.put("/admin/tasks/evil", headers={"Authorization": "Bearer a"})
        assert response.status_code in (404, 422)
    watched.pop()
    assert [path for event, path in opened if event == "pickle.find_class"] == []
    assert opened  # the hook is at work


def test_memory_that_is_short_costs_no_answer(work):
    service = new_service(work, limits=Limits(tokens=400))
    run, draw = service.batcher._run, random.Random(0)

    def unlucky(tasks, inputs):
        if draw.random() < 0.1:
            raise torch.OutOfMemoryError("injected")
        return run(tasks, inputs)

    service.batcher._run = unlucky
    names = [name for name in CONFIGS if name not in ("reader", "choice")]
    with (
        TestClient(create_app(service), raise_server_exceptions=False) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        body = {"inputs": [TEXT] * 20}
        ask = [
            pool.submit(client.post, f"/models/{names[i % len(names)]}", json=body)
            for i in range(UNLUCKY)
        ]
        statuses = [one.result().status_code for one in ask]
    assert statuses.count(200) >= 0.9999 * UNLUCKY
    assert service.batcher.done.sequences == 20 * UNLUCKY

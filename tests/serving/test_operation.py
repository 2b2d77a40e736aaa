"""The server at work: keys, tasks that change, faults, floods, clients that leave, metrics."""

import asyncio
import json
import threading
import time

import pytest
import torch
from fastapi.testclient import TestClient

from ptv2.serving import Limits
from ptv2.serving.app import create_app
from tests.serving.work import CONFIGS, PATIENCE, TEXT, new_service


def test_keys_and_administration(work):
    service = new_service(work)
    app = create_app(service, prompts=work / "prompts", key="k", admin_key="a")
    with TestClient(app, raise_server_exceptions=False) as client:
        body = {"inputs": TEXT}
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Bearer a"}):
            assert client.post("/models/mood", json=body, headers=headers).status_code == 401
        key, admin = {"Authorization": "Bearer k"}, {"Authorization": "Bearer a"}
        assert client.post("/models/mood", json=body, headers=key).status_code == 200
        assert client.get("/health").status_code == client.get("/metrics").status_code == 200
        assert client.put("/admin/tasks/mood", headers=key).status_code == 401
        assert client.put("/admin/tasks/mood", headers=admin).json()["version"] == 2
        for name in ("none", "..", "%2e%2e%2fencoder", "a%2Fb", "a%00b"):
            assert client.put(f"/admin/tasks/{name}", headers=admin).status_code in (404, 405, 422)
        assert client.delete("/admin/tasks/mood", headers=admin).json() == {"name": "mood"}
        assert client.delete("/admin/tasks/mood", headers=admin).status_code == 404
        assert client.post("/models/mood", json=body, headers=key).status_code == 404
        assert client.get("/v1/models", headers=key).json()["data"][0]["id"] == "choice"
    assert not service.batcher.alive  # the end of the application is its end
    for keys in ({"key": ""}, {"admin_key": " "}, {"key": "secret\n"}, {"key": "schlüssel"}):
        with pytest.raises(ValueError, match=r"key: expected printable ASCII characters without"):
            create_app(service, prompts=work / "prompts", **keys)
    plain = create_app(new_service(work), prompts=work / "prompts")
    with TestClient(plain) as client:
        assert client.put("/admin/tasks/mood").status_code == 404


def wait_until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_faults_of_the_server_are_logged(work, caplog):
    service = new_service(work)
    (work / "odd" / "odd" / "prompt_config.json").mkdir(parents=True)
    app = create_app(service, prompts=work / "odd", admin_key="a")
    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.put("/admin/tasks/odd", headers={"Authorization": "Bearer a"})
        assert response.status_code == 500
        assert response.json() == {"error": "the server failed", "error_type": "internal"}
        (record,) = [x for x in caplog.records if x.levelname == "ERROR"]
        assert record.getMessage() == "PUT /admin/tasks/odd failed"
        assert record.exc_info[0] is IsADirectoryError
        assert client.head("/health").status_code == 200


def test_only_answers_count_as_answers(client):
    refused = {"inputs": TEXT, "parameters": {"function_to_apply": "max"}}
    assert client.post("/models/mood", json=refused).status_code == 422
    assert 'ptv2_task_requests_total{task="mood"}' not in client.get("/metrics").text
    assert client.post("/models/mood", json={"inputs": TEXT}).status_code == 200
    assert 'ptv2_task_requests_total{task="mood"} 1.0' in client.get("/metrics").text


def test_old_versions_go_while_nobody_asks(work, service, client):
    client.post("/models/mood", json={"inputs": TEXT})
    (old,) = [task for name, task in service.bank.tasks().items() if name == "mood"]
    assert service.on_device(old)
    for _ in range(3):
        service.bank.load(work / "prompts" / "mood", "mood")
    wait_until(lambda: not service.on_device(old))
    service.bank.unload("mood")
    wait_until(lambda: service.memory.used == 0 and not service.bank._retired)


def test_overload_and_death(work):
    service = new_service(work, limits=Limits(waiting=2))
    go, taken = threading.Event(), threading.Event()
    run = service.batcher._run

    def slow(tasks, inputs):
        taken.set()
        assert go.wait(PATIENCE)
        return run(tasks, inputs)

    service.batcher._run = slow
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        body = {"inputs": [TEXT, TEXT]}
        asking = []
        try:
            for left in (0, 2):  # the first is taken at once, the second waits
                thread = threading.Thread(
                    target=client.post, args=("/models/mood",), kwargs={"json": body}
                )
                thread.start()
                asking.append(thread)
                wait_until(lambda left=left: taken.is_set() and service.batcher.waiting == left)
            refused = client.post("/models/mood", json={"inputs": [TEXT, TEXT]})
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) >= 1
        finally:
            go.set()
        for thread in asking:
            thread.join(PATIENCE)

        def dies(tasks, inputs):
            raise SystemExit("injected")

        service.batcher._run = dies
        response = client.post("/models/mood", json={"inputs": TEXT})
        assert (response.status_code, response.json()["error_type"]) == (503, "unavailable")
        for path in ("/health", "/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 503
        assert "ptv2_alive 0.0" in client.get("/metrics").text


def call(app, path, *messages, method="POST"):
    """The messages that the application sends for those of a client, which then says no more."""
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": [],
        "query_string": b"", "root_path": "", "scheme": "http", "server": ("test", 80),
    }  # fmt: skip
    said, sent = iter(messages), []

    async def receive():
        message = next(said, None)
        if message is None:
            await asyncio.Event().wait()
        return message

    async def send(message):
        sent.append(message)

    async def within_time():
        async with asyncio.timeout(PATIENCE):
            await app(scope, receive, send)

    asyncio.run(within_time())
    return sent


def part(body, more=False):
    return {"type": "http.request", "body": body, "more_body": more}


def test_bodies_that_do_not_end(service, monkeypatch):
    app = create_app(service)
    monkeypatch.setattr("ptv2.serving.http.BODY_SECONDS", 0.05)
    sent = call(app, "/models/mood", part(b'{"inputs":', more=True))
    assert sent[0]["status"] == 408
    gone = {"type": "http.disconnect"}
    sent = call(app, "/models/mood", part(b'{"inputs":', more=True), gone)
    assert sent[0]["status"] == 499


def test_a_flood_is_refused_before_it_is_read(service):
    """Where no place is left: without waiting for bodies, and nothing but requests for answers."""
    app = create_app(service)
    half = part(b'{"inputs":', more=True)
    with service.batcher.reserved(Limits.waiting, "mood"):
        for path in ("/models/mood", "/v1/embeddings", "/v2/models/mood/infer"):
            sent = call(app, path, half)
            assert sent[0]["status"] == 429
            assert b"retry-after" in dict(sent[0]["headers"])
        assert call(app, "/v2/repository/index", part(b"{}"))[0]["status"] == 200
        assert call(app, "/health", method="GET")[0]["status"] == 200
    body = json.dumps({"inputs": TEXT}).encode()
    assert call(app, "/models/mood", part(body))[0]["status"] == 200


def test_a_client_that_leaves_is_worked_for_no_more(service):
    app, asked, left = create_app(service), [], threading.Event()

    def slow(tasks, inputs):
        asked.append(len(inputs))
        assert left.wait(PATIENCE)
        return [torch.zeros(2) for _ in tasks]

    service.batcher._run = slow
    service.batcher._most_tokens = 40
    body = json.dumps({"inputs": [TEXT] * 100}).encode()
    try:
        sent = call(app, "/models/mood", part(body), {"type": "http.disconnect"})
    finally:
        left.set()
    assert sent[0]["status"] == 499
    assert service.bank.readers(service.bank.tasks()["mood"]) == 0
    wait_until(lambda: service.batcher.waiting == 0)
    assert sum(asked) < 100


def test_a_forward_that_fails_says_no_more(service, client, caplog):
    def fails(tasks, inputs):
        raise RuntimeError("a path of this machine")

    service.batcher._run = fails
    response = client.post("/models/mood", json={"inputs": TEXT})
    assert response.status_code == 500
    assert "machine" not in response.text


def test_metrics_and_info(service, client):
    client.post("/models/mood", json={"inputs": TEXT})
    wait_until(lambda: service.batcher.done.batches == 1)
    client.get("/nowhere/at/all")
    text = client.get("/metrics").text
    assert 'ptv2_requests_total{route="/models/{task}",status="200"} 1.0' in text
    assert 'ptv2_task_requests_total{task="mood"} 1.0' in text
    assert "ptv2_batch_tokens_total 7.0" in text
    assert "ptv2_prompt_bytes 0.0" not in text
    assert 'ptv2_requests_total{route="none",status="404"} 1.0' in text
    assert f"ptv2_tasks {len(CONFIGS)}.0" in text
    info = client.get("/info").json()
    assert info["tasks"]["mood"]["version"] == 1
    assert client.get("/openapi.json").json()["paths"]["/models/{task}"]["post"]["requestBody"]

"""The server with a tiny encoder: every dialect, refusals, keys, administration."""

import asyncio
import base64
import json
import threading
import time

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from transformers import AutoTokenizer

from ptv2 import PromptModel
from ptv2.serving import Limits, Service
from ptv2.serving.app import create_app
from ptv2.serving.http import MAX_BODY
from tests.serving.work import CONFIGS, PATIENCE, TEXT, new_service

NUMBERS = b'{"inputs": {"question": "a", "choices": ["film", NaN, 1]}}'
LONG_QUESTION = {"inputs": {"question": "film " * 27, "context": "a film " * 300}}
"""It leaves two tokens for a part of the context."""


@pytest.fixture
def client(service, work):
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


def expected(work, name, text=TEXT):
    """The probabilities of classes, by the model itself."""
    model = PromptModel.from_pretrained(work / "encoder").eval()
    model.load_task(work / "prompts" / name)
    batch = AutoTokenizer.from_pretrained(work / "encoder")(text, return_tensors="pt")
    with torch.no_grad():
        return model(**batch, task=name).logits[0]


def test_hugging_face_classes(client, work):
    (found,) = client.post("/models/mood", json={"inputs": TEXT}).json()
    probabilities = expected(work, "mood").softmax(-1)
    by_label = {x["label"]: x["score"] for x in found}
    assert [by_label[label] for label in ("bad", "good")] == pytest.approx(probabilities.tolist())
    assert found[0]["score"] >= found[1]["score"]
    rows = client.post("/models/mood", json={"inputs": [TEXT, "dull"], "parameters": {"top_k": 1}})
    assert [len(row) for row in rows.json()] == [1, 1]
    (several,) = client.post("/models/topics", json={"inputs": TEXT}).json()
    wanted = expected(work, "topics").sigmoid().sort(descending=True)[0]
    assert [x["score"] for x in several] == pytest.approx(wanted.tolist())
    ((number,),) = client.post("/models/stars", json={"inputs": TEXT}).json()
    assert number["score"] == pytest.approx(float(expected(work, "stars")))
    raw = {"inputs": TEXT, "parameters": {"function_to_apply": "none", "top_k": None}}
    (raw,) = client.post("/models/mood", json=raw).json()
    assert raw[0]["score"] == pytest.approx(float(expected(work, "mood").max()))


def test_hugging_face_tags(client, service):
    tags = service.answer("cities", [TEXT])[0].answer["tags"]
    body = {"inputs": TEXT, "parameters": {"aggregation_strategy": "none"}}
    words = client.post("/models/cities", json=body).json()
    assert [(x["index"], x["entity"]) for x in words] == [
        (i, tag) for i, tag in enumerate(tags) if tag != "O"
    ]
    assert all(TEXT[x["start"] : x["end"]] == x["word"] for x in words)
    odd = "a\u00a0film \x0b in\x1crome"
    assert client.post("/models/cities", json={"inputs": odd}).status_code == 200
    for entity in client.post("/models/cities", json={"inputs": [TEXT]}).json()[0]:
        assert entity["entity_group"] == "city"
        assert TEXT[entity["start"] : entity["end"]] == entity["word"]


def test_hugging_face_other_kinds(client, service):
    question = {"question": "rome", "context": "a great film in rome"}
    got = client.post("/models/reader", json={"inputs": question}).json()
    assert got == service.answer("reader", [("rome", question["context"])])[0].answer
    choice = {"question": "film", "choices": ["great", "dull"]}
    got = client.post("/models/choice", json={"inputs": choice}).json()
    assert got == service.answer("choice", [("film", ["great", "dull"])])[0].answer
    one = client.post("/models/vectors", json={"inputs": TEXT}).json()
    (same,) = client.post("/models/vectors", json={"inputs": [TEXT]}).json()
    assert one == same == service.answer("vectors", [TEXT])[0].answer["embedding"]


def test_embeddings_inference(client):
    single = client.post("/models/mood/predict", json={"inputs": TEXT}).json()
    batch = client.post("/models/mood/predict", json={"inputs": [[TEXT], ["dull"]]}).json()
    assert [x["label"] for x in batch[0]] == [x["label"] for x in single]
    assert [x["score"] for x in batch[0]] == pytest.approx([x["score"] for x in single])
    pair = client.post("/models/mood/predict", json={"inputs": [TEXT, "dull"]}).json()
    (same,) = client.post("/models/mood/predict", json={"inputs": [[TEXT, "dull"]]}).json()
    assert pair == same
    assert {x["score"] for x in pair} != {x["score"] for x in single}
    (unit,) = client.post("/models/vectors/embed", json={"inputs": TEXT}).json()
    assert torch.tensor(unit).norm() == pytest.approx(1)
    body = {"inputs": [TEXT], "normalize": True, "truncate": False}
    assert client.post("/models/vectors", json=body).json() == [unit]
    info = client.get("/models/mood/info").json()
    assert info["model_type"] == {"sequence-classification": {"labels": ["bad", "good"]}}


def test_openai(client):
    names = [x["id"] for x in client.get("/v1/models").json()["data"]]
    assert names == sorted(CONFIGS)
    body = {"model": "vectors", "input": [TEXT, "dull"]}
    floats = client.post("/v1/embeddings", json=body).json()
    assert floats["usage"]["prompt_tokens"] == 10
    coded = client.post("/v1/embeddings", json=body | {"encoding_format": "base64"}).json()
    for a, b in zip(floats["data"], coded["data"], strict=True):
        decoded = np.frombuffer(base64.b64decode(b["embedding"]), dtype="<f4")
        assert decoded.tolist() == pytest.approx(a["embedding"])
    classes = client.post("/classify", json={"model": "mood", "input": TEXT}).json()["data"]
    assert sum(classes[0]["probs"]) == pytest.approx(1)
    assert classes[0]["num_classes"] == 2


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/models/none", {"inputs": TEXT}, 404, "task: 'none' is not served"),
        ("/models/mood", {"text": TEXT}, 422, "inputs: Field required"),
        ("/models/mood", {"inputs": []}, 422, "inputs: expected 1 to 128, got 0"),
        ("/models/mood", {"inputs": 3}, 422, "inputs: expected texts"),
        ("/models/mood", {"inputs": TEXT, "parameters": {"top_k": 0}}, 422, "top_k: expected"),
        ("/models/mood", {"inputs": TEXT, "parameters": {"x": 1}}, 422, "x would be ignored"),
        ("/models/mood", {"inputs": TEXT, "extra": 1}, 422, "extra: Extra inputs"),
        ("/models/mood", {"inputs": "a " * 5000}, 422, "at most 8000 characters in a text"),
        ("/models/mood", b'{"inputs": "\\ud800"}', 422, "JSON"),
        ("/models/mood", b'{"inputs": 1e999}', 422, "inputs"),
        ("/models/mood", b'{"inputs": NaN}', 422, "inputs: expected texts"),
        ("/models/choice", NUMBERS, 422, "inputs: expected texts as choices"),
        ("/models/choice", {"inputs": {"question": "a", "choices": [True]}}, 422, "as choices"),
        ("/models/cities", {"inputs": ["a film " * 400] * 60}, 422, "most 8192 words, got 48000"),
        ("/models/cities", {"inputs": ["a film " * 60] * 64}, 422, "at most 256 windows, got"),
        (
            "/models/mood",
            {"inputs": TEXT, "parameters": {"function_to_apply": "max"}},
            422,
            "function_to_apply: expected softmax, sigmoid or none, got 'max'",
        ),
        ("/models/mood", b"[" * 5000, 422, "JSON"),
        ("/models/mood", b"\xff\xfe", 422, "JSON"),
        ("/models/mood", b"", 422, "JSON"),
        ("/models/reader", {"inputs": TEXT}, 422, "inputs: expected a question and a context"),
        ("/models/reader", {"inputs": {"question": 1, "context": "a"}}, 422, "expected (question"),
        ("/models/vectors/predict", {"inputs": TEXT}, 422, "expected sequence-classification"),
        ("/models/mood/predict", {"inputs": [["a", "b", "c"]]}, 422, "expected a text or two"),
        ("/models/mood/predict", {"inputs": []}, 422, "inputs: expected a text or two, got 0"),
        ("/models/mood/predict", {"inputs": [1] * 100_000}, 422, "inputs"),
        ("/models/mood", {"inputs": ["a"] * 129}, 422, "inputs: expected 1 to 128, got 129"),
        ("/models/cities", {"inputs": [["a", "film"]]}, 422, "inputs: expected texts"),
        ("/models/mood/predict", {"inputs": TEXT * 9, "truncate": False}, 422, "fewer than 32"),
        ("/models/mood", {"inputs": TEXT, "normalize": True}, 422, "normalize would be ignored"),
        ("/models/vectors", {"inputs": TEXT, "truncation_direction": "left"}, 422, "truncation"),
        ("/models/vectors", {"inputs": TEXT, "parameters": {"normalize": True}}, 422, "ignored"),
        ("/models/reader", LONG_QUESTION, 422, "max_windows: expected at most 256 windows, the"),
        ("/models/mood/embed", {"inputs": TEXT}, 422, "expected feature-extraction"),
        ("/v1/embeddings", {"model": "../x", "input": TEXT}, 404, "is not served"),
        ("/v1/embeddings", {"model": "vectors", "input": TEXT, "dimensions": 8}, 422, "got 8"),
        ("/v1/embeddings", {"model": "vectors", "input": [[1, 2]]}, 422, "input"),
        ("/classify", {"model": "cities", "input": TEXT}, 422, "expected sequence-classification"),
        ("/nowhere", {}, 404, ""),
    ],
)  # fmt: skip
def test_what_is_refused(client, path, body, status, message):
    content = body if isinstance(body, bytes) else json.dumps(body)
    response = client.post(path, content=content)
    assert response.status_code == status, response.text
    assert message in response.text
    assert client.post("/models/mood", json={"inputs": TEXT}).status_code == 200


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_no_answer(service, client, value):
    service.batcher._run = lambda tasks, inputs: [torch.tensor([0.0, value]) for _ in tasks]
    response = client.post("/models/mood", json={"inputs": TEXT})
    assert (response.status_code, response.json()["error_type"]) == (500, "internal")


def test_what_could_never_be_answered(work):
    model = PromptModel.from_pretrained(work / "encoder")
    with pytest.raises(ValueError, match="patience: expected a positive number of seconds, got 0"):
        Service(model, patience=0)
    with pytest.raises(ValueError, match="limits: expected tokens of at least 32 for the longest"):
        Service(model, limits=Limits(tokens=31))
    service = Service(model, limits=Limits(tokens=31), max_length=31, budget=2000)
    with pytest.raises(ValueError, match=r"budget: expected at least \d+ bytes for 'mood'"):
        service.bank.load(work / "prompts" / "mood")
    assert service.bank.tasks() == {}
    assert service.close(PATIENCE)


def test_bodies_that_are_too_large(client):
    response = client.post("/models/mood", content=b" " * (MAX_BODY + 1))
    assert response.status_code == 413
    chunks = (b" " * 2**16 for _ in range(MAX_BODY // 2**16 + 2))
    response = client.post("/models/mood", content=chunks)  # announces no length
    assert response.status_code == 413


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

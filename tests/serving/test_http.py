"""The server with a tiny encoder: every dialect, and what it refuses."""

import base64
import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from ptv2 import PromptModel
from ptv2.serving import Limits, Service
from ptv2.serving.http import MAX_BODY
from tests.serving.work import CONFIGS, PATIENCE, TEXT

NUMBERS = b'{"inputs": {"question": "a", "choices": ["film", NaN, 1]}}'
LONG_QUESTION = {"inputs": {"question": "film " * 27, "context": "a film " * 300}}
"""It leaves two tokens for a part of the context."""


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
    with pytest.raises(ValueError, match="inputs: expected texts or lists of words, got 3"):
        service.answer("cities", [3])
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

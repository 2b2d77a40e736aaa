"""The Open Inference Protocol: tensors in JSON and in binary, metadata, refusals, repository."""

import json
import random

import numpy as np
import pytest
from fastapi.testclient import TestClient

from ptv2.serving.app import create_app
from ptv2.serving.dialects.tensors import LENGTH_HEADER
from ptv2.serving.http import MAX_BODY
from ptv2.serving.service import MAX_CHOICES
from tests.serving.tensors import binary_tensor, mutated, outputs, packed, tensor, with_binary
from tests.serving.work import CONFIGS, TEXT, new_service

TEXTS = [TEXT, "dull"]
INFER = "/v2/models/mood/infer"


@pytest.fixture(scope="module")
def service(work):
    service = new_service(work)
    yield service
    service.close(5)


@pytest.fixture(scope="module")
def client(service):
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


def both_ways(client, task, tensors):
    """The outputs, asked for in JSON and in binary, which are the same."""
    in_json = [
        tensor(name, list(np.shape(values)), np.ravel(values).tolist())
        for name, values in tensors.items()
    ]
    parts = [packed(*np.ravel(values)) for values in tensors.values()]
    in_binary = [
        binary_tensor(name, list(np.shape(values)), len(part))
        for (name, values), part in zip(tensors.items(), parts, strict=True)
    ]
    path = f"/v2/models/{task}/infer"
    found = outputs(client.post(path, json={"inputs": in_json}))
    body = {"inputs": in_binary, "parameters": {"binary_data_output": True}}
    response = client.post(path, **with_binary(body, *parts))
    assert response.headers["content-type"] == "application/octet-stream"
    again = outputs(response)
    assert list(found) == list(again)
    for name, values in found.items():
        np.testing.assert_array_equal(values.astype(again[name].dtype), again[name])
    described = client.get(f"/v2/models/{task}").json()["outputs"]
    assert [x["name"] for x in described] == list(found)
    for spec, values in zip(described, again.values(), strict=True):
        assert len(spec["shape"]) == values.ndim
        assert all(a in (-1, b) for a, b in zip(spec["shape"], values.shape, strict=True))
    return found


def test_classes(client):
    found = both_ways(client, "mood", {"text": TEXTS})
    wanted = client.post("/models/mood", json={"inputs": TEXTS}).json()
    for row, label, entries in zip(found["scores"], found["label"], wanted, strict=True):
        scores = {x["label"]: x["score"] for x in entries}
        assert row.tolist() == pytest.approx([scores[x] for x in ("bad", "good")])
        assert label == entries[0]["label"]
    column = both_ways(client, "mood", {"text": [[text] for text in TEXTS]})
    np.testing.assert_array_equal(column["scores"], found["scores"])
    pairs = both_ways(client, "mood", {"text_pair": ["dull", "film"], "text": TEXTS})
    (wanted,) = client.post("/models/mood/predict", json={"inputs": [[TEXTS[0], "dull"]]}).json()
    assert pairs["scores"][0].max() == pytest.approx(wanted[0]["score"])
    number = both_ways(client, "stars", {"text": TEXTS[:1]})["scores"]
    ((wanted,),) = client.post("/models/stars", json={"inputs": TEXTS[0]}).json()
    assert number.tolist() == [[pytest.approx(wanted["score"])]]


def test_other_kinds(client, service):
    texts = [TEXTS[0], "ein Film, in Zürich"]
    found = both_ways(client, "cities", {"text": texts})["entities"]
    wanted = client.post("/models/cities", json={"inputs": texts}).json()
    assert [json.loads(row) for row in found] == wanted
    assert any(wanted)
    contexts = ["a great film in rome", "ein großer Film in Zürich"]
    found = both_ways(client, "reader", {"question": ["rome", "Zürich"], "context": contexts})
    answers = service.answer("reader", list(zip(["rome", "Zürich"], contexts, strict=True)))
    for name in ("answer", "start", "end", "score"):
        exact = [outcome.answer[name] for outcome in answers]
        assert found[name].tolist() == (pytest.approx(exact) if name == "score" else exact)
    choices = [["great", "dull", "film"], ["rome", "a", "in"]]
    found = both_ways(client, "choice", {"question": ["film", "rome"], "choices": choices})
    answers = service.answer("choice", list(zip(["film", "rome"], choices, strict=True)))
    assert found["choice"].tolist() == [outcome.answer["choice"] for outcome in answers]
    assert found["scores"].shape == (2, 3)
    assert found["scores"].sum(1) == pytest.approx([1, 1])
    assert found["scores"].argmax(1).tolist() == found["choice"].tolist()
    found = both_ways(client, "vectors", {"text": TEXTS})["embedding"]
    wanted = [outcome.answer["embedding"] for outcome in service.answer("vectors", TEXTS)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_outputs_are_what_was_asked_for(client):
    inputs = [tensor("text", [2, 1], [[text] for text in TEXTS])]
    body = {"inputs": inputs, "id": "7", "outputs": [{"name": "label"}]}
    plain = client.post(INFER, json=body)
    assert LENGTH_HEADER not in plain.headers
    answer = plain.json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "mood", "1")
    assert [x["name"] for x in answer["outputs"]] == ["label"]
    body["outputs"] = [
        {"name": "label", "parameters": {"binary_data": False}},
        {"name": "scores"},
    ]
    mixed = client.post(INFER, json=body | {"parameters": {"binary_data_output": True}})
    found = outputs(mixed)
    assert list(found) == ["label", "scores"]
    head = json.loads(mixed.content[: int(mixed.headers[LENGTH_HEADER])])
    assert "data" in head["outputs"][0]
    assert head["outputs"][1]["parameters"] == {"binary_data_size": found["scores"].size * 4}
    every = client.post("/v2/models/mood/versions/1/infer", json={"inputs": inputs}).json()
    assert "id" not in every
    assert [x["name"] for x in every["outputs"]] == ["scores", "label"]


def test_health_and_metadata(client, service):
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert "binary_tensor_data" in client.get("/v2").json()["extensions"]
    assert client.get("/v2/models/mood/ready").status_code == 200
    metadata = client.get("/v2/models/mood/versions/1").json()
    assert metadata == client.get("/v2/models/mood").json()
    assert json.loads(metadata["parameters"]["labels"]) == ["bad", "good"]
    assert [x["name"] for x in metadata["inputs"]] == ["text", "text_pair"]
    config = client.get("/v2/models/reader/config").json()
    assert config["max_batch_size"] == 0
    assert {x["name"]: x["data_type"] for x in config["output"]} == {
        "answer": "TYPE_STRING", "score": "TYPE_FP32", "start": "TYPE_INT64", "end": "TYPE_INT64",
    }  # fmt: skip
    for path in ("", "/ready", "/config"):
        assert client.get(f"/v2/models/none{path}").status_code == 404
        for version in ("2", "01", "x"):
            response = client.get(f"/v2/models/mood/versions/{version}{path}")
            assert response.status_code == 404
            assert "is not served, expected 1" in response.json()["error"]
    index = client.post("/v2/repository/index").json()
    assert [x["name"] for x in index] == sorted(CONFIGS)
    assert {x["state"] for x in index} == {"READY"}
    assert client.post("/v2/repository/models/mood/load").status_code == 404
    assert "#/$defs" not in client.get("/openapi.json").text


TWO = packed(*TEXTS)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "inputs: expected text, text_pair, got "),
        ([tensor("texts", [1], ["a"])], "inputs: expected text, text_pair, got texts"),
        ([tensor("text_pair", [1], ["a"])], "got text_pair"),
        ([tensor("text", [1], ["a"])] * 2, "got text, text"),
        ([tensor("text", [1], ["a"])] * 9, "inputs: List should have at most 8 items"),
        ([tensor("text" * 50, [1], ["a"])], "name: String should have at most 64"),
        ([tensor("text", [1], ["a"]), tensor("text_pair", [2], ["a", "b"])], "got [1, 2]"),
        ([tensor("text", [2], ["a"])], "text: expected data of the shape [2]"),
        ([tensor("text", [2, 1], [["a"], ["b", "c"]])], "text: expected data of the shape [2, 1]"),
        ([tensor("text", [2], [["a"], ["b"]])], "text: expected data of the shape [2]"),
        ([tensor("text", [2], ["a", ["b"]])], "text: expected texts or lists of texts, got both"),
        ([tensor("text", [1, 2], ["a", "b"])], "text: expected a shape [n] or [n, 1], got [1, 2]"),
        ([tensor("text", [], [])], "shape: List should have at least 1 item"),
        ([tensor("text", [1, 1, 1], ["a"])], "shape: List should have at most 2 items"),
        ([tensor("text", [-1], ["a"])], "shape.0: Input should be greater than or equal to 0"),
        ([tensor("text", [2**70], ["a"])], "shape.0: "),
        ([tensor("text", [1000, 1000], ["a"])], "expected a shape of at most 1024 elements"),
        ([tensor("text", [1.0], ["a"])], "shape.0: Input should be a valid integer"),
        ([tensor("text", [0], [])], "inputs: expected 1 to 128, got 0"),
        ([tensor("text", [1], [1])], "inputs.0.data.0"),
        ([tensor("text", [1], ["a"], datatype="FP32")], "datatype: Input should be 'BYTES'"),
        ([tensor("text", [1])], "text: expected either data or binary_data_size"),
        ([tensor("text", [1], ["a"], parameters={"binary_data_size": 5})], "text: expected"),
        ([tensor("text", [1], ["a"], parameters={"content_type": "str"})], "content_type: Extra"),
        ([tensor("text", [1], parameters={"shared_memory_region": "x"})], "region: Extra inputs"),
        ([tensor("text", [129], ["a"] * 129)], "inputs: expected 1 to 128, got 129"),
        ([binary_tensor("text", [1], 5)], "text: expected 5 bytes of binary data, got 0"),
    ],
)  # fmt: skip
def test_inputs_that_are_refused(client, inputs, message):
    response = client.post(INFER, json={"inputs": inputs})
    assert response.status_code == 422, response.text
    assert message in response.json()["error"]


def test_questions_and_choices_that_are_refused(client):
    path = "/v2/models/choice/infer"
    for shape, data in ([2], ["a", "b"]), ([1, 1], ["a"]), ([0, 2], []), ([1, 0], []):
        inputs = [tensor("question", [1], ["q"]), tensor("choices", shape, data)]
        response = client.post(path, json={"inputs": inputs})
        assert response.status_code == 422
        assert "choices" in response.text or "rows" in response.text
    response = client.post("/v2/models/reader/infer", json={"inputs": inputs[:1]})
    assert response.json()["error"] == "inputs: expected question, context, got question"
    long = [tensor("question", [1], ["film " * 1600]), tensor("choices", [1, 300], ["a"] * 300)]
    response = client.post(path, json={"inputs": long})  # read 300 times
    assert response.status_code == 422
    assert "got 300 and 2400000" in response.json()["error"]
    many = {"inputs": {"question": "q", "choices": ["a"] * (MAX_CHOICES + 1)}}
    response = client.post("/models/choice", json=many)
    assert response.status_code == 422
    assert "expected at most 1024 choices" in response.json()["error"]


@pytest.mark.parametrize(
    ("shape", "size", "data", "message"),
    [
        ([2], len(TWO), TWO[:-1], f"text: expected {len(TWO)} bytes of binary data, got"),
        ([2], len(TWO), TWO + b"!", "body: 1 bytes of binary data belong to no input"),
        ([1], len(TWO), TWO, "text: 8 bytes of binary data are left after 1 elements"),
        ([3], len(TWO), TWO, "text: the binary data ends within element 2 of 3"),
        ([1], 3, b"\1\0\0", "text: the binary data ends within element 0 of 1"),
        ([1], 5, b"\xff\xff\xff\xffa", "text: the binary data ends within element 0 of 1"),
        ([1], 6, packed(b"\xff\xfe"), "text: expected UTF-8 in element 0: invalid start byte"),
        ([1], 7, packed(b"\xed\xa0\x80"), "text: expected UTF-8 in element 0"),
        ([1], -1, b"", "binary_data_size: Input should be greater than or equal to 0"),
        ([1], 2**40, b"", "binary_data_size: Input should be less than or equal to"),
        ([0], 0, b"", "inputs: expected 1 to 128, got 0"),
    ],
)
def test_binary_data_that_is_refused(client, shape, size, data, message):
    body = {"inputs": [binary_tensor("text", shape, size)]}
    response = client.post(INFER, **with_binary(body, data))
    assert response.status_code == 422, response.text
    assert message in response.json()["error"]


def test_requests_that_are_refused(client):
    body = {"inputs": [tensor("text", [1], ["a"])]}
    for fields, message in (
        ({"outputs": [{"name": "score"}]}, "outputs: expected of scores, label, got score"),
        ({"outputs": [{"name": "label"}] * 2}, "got label, label"),
        ({"outputs": [{"name": "label", "parameters": {"classification": 2}}]}, "classification"),
        ({"parameters": {"priority": 1}}, "parameters.priority: Extra inputs"),
        ({"parameters": {"timeout": 1}}, "parameters.timeout: Extra inputs"),
        ({"parameters": {"binary_data_output": 1}}, "binary_data_output: Input should be a valid"),
        ({"id": 1}, "id: Input should be a valid string"),
    ):
        response = client.post(INFER, json=body | fields)
        assert response.status_code == 422, response.text
        assert message in response.json()["error"]
    text = json.dumps(body).encode()
    for length in ("-1", "+5", "", "x", "1e2", "٣", str(len(text) + 1), "9" * 5000, "0", "5"):
        headers = {LENGTH_HEADER.encode(): length.encode()}
        response = client.post(INFER, content=text, headers=headers)
        assert response.status_code == 422, length
        assert len(response.text) < 500
    for content in (b"", b"[]", b"\xff", b"[" * 5000, b'{"inputs": NaN}', b'{"id": "\\ud800"}'):
        assert client.post(INFER, content=content).status_code == 422
    for encoding in ("gzip", "deflate", "br"):
        response = client.post(INFER, content=text, headers={"Content-Encoding": encoding})
        assert response.status_code == 422
        assert "Content-Encoding: expected none" in response.json()["error"]
    assert client.post("/v2/models/none/infer", json=body).status_code == 404
    assert client.post("/v2/models/mood/versions/2/infer", json=body).status_code == 404
    assert client.post(INFER, content=b" " * (MAX_BODY + 1)).status_code == 413
    assert client.post(INFER, json=body).status_code == 200


def test_no_body_is_the_servers_fault(client):
    chance = random.Random(0)
    wishes = [{"name": "scores", "parameters": {"binary_data": True}}]
    inputs = [tensor("text", [1, 1], [["a film"]]), binary_tensor("text_pair", [1], 8)]
    good = json.dumps({"id": "1", "inputs": inputs, "outputs": wishes}).encode()
    statuses = set()
    for _ in range(200):
        body = mutated(good + packed("dull"), chance)
        length = chance.choice((len(good), len(good), len(good), len(body), chance.randrange(999)))
        headers = {LENGTH_HEADER: str(length)}
        statuses.add(client.post(INFER, content=body, headers=headers).status_code)
    assert statuses <= {200, 422}
    assert 422 in statuses
    assert client.post(INFER, content=good + packed("dull"), headers={
        LENGTH_HEADER: str(len(good))
    }).status_code == 200  # fmt: skip


def test_keys_and_the_repository(work):
    service = new_service(work)
    app = create_app(service, prompts=work / "prompts", key="k", admin_key="a")
    with TestClient(app, raise_server_exceptions=False) as client:
        key, admin = {"Authorization": "Bearer k"}, {"Authorization": "Bearer a"}
        body = {"inputs": [tensor("text", [1], ["a"])]}
        assert client.get("/v2/health/ready").status_code == 200
        for path in ("/v2", "/v2/models/mood", "/v2/models/mood/ready"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers=key).status_code == 200
        for path in (INFER, "/v2/repository/index"):
            assert client.post(path, json=body).status_code == 401
        load, unload = (f"/v2/repository/models/mood/{x}" for x in ("load", "unload"))
        assert client.post(load, headers=key).status_code == 401
        config = {"parameters": {"config": "{}"}}
        assert client.post(load, json=config, headers=admin).status_code == 422
        assert client.post(load, content=b"{}", headers=admin).status_code == 200
        assert client.post(INFER, json=body, headers=key).json()["model_version"] == "2"
        assert client.get("/v2/models/mood/versions/1", headers=key).status_code == 404
        for name in ("none", "..", "%2e%2e%2fencoder", "a%2Fb", "a%00b"):
            response = client.post(f"/v2/repository/models/{name}/load", headers=admin)
            assert response.status_code in (404, 405, 422)
        parameters = {"parameters": {"unload_dependents": False}}
        assert client.post(unload, json=parameters, headers=admin).status_code == 200
        assert client.post(unload, headers=admin).status_code == 404
        assert client.get("/v2/models/mood/ready", headers=key).status_code == 404
    assert client.get("/v2/health/ready").status_code == 503
    assert client.get("/v2/health/live").status_code == 503
    index = client.post("/v2/repository/index", headers=key).json()
    assert {x["state"] for x in index} == {"UNAVAILABLE"}
    ready = client.post("/v2/repository/index", json={"ready": True}, headers=key)
    assert ready.json() == []

"""The page for people: its files, what they may load, and the state that it shows."""

import re
import threading
from importlib.resources import files

import pytest
from fastapi.testclient import TestClient

from ptv2.serving.app import create_app
from tests.serving.work import CONFIGS, TEXT, new_service

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/answers.js": ("answers.js", "text/javascript; charset=utf-8"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)
KEY = {"Authorization": "Bearer k"}


@pytest.fixture
def client(service):
    with TestClient(create_app(service, key="k"), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("path", FILES)
def test_files_need_no_key_and_may_load_nothing_else(client, path):
    name, kind = FILES[path]
    response = client.get(path)
    assert response.status_code == 200
    assert response.content == (files("ptv2.serving.page") / name).read_bytes()
    assert response.headers["content-type"] == kind
    assert response.headers["content-security-policy"] == POLICY
    assert response.headers["x-content-type-options"] == "nosniff"


def test_the_package_has_these_files_and_the_page_uses_all_of_them():
    folder = files("ptv2.serving.page")
    names = {name for name, _ in FILES.values()}
    assert {x.name for x in folder.iterdir()} - {"__init__.py", "__pycache__"} == names
    pattern = r'(?:href|src)="([^"]+)"|from "\./([^"]+)"'
    used = {x for name in names for pair in re.findall(pattern, _text(name)) for x in pair if x}
    assert used == names - {"index.html"}


@pytest.mark.parametrize("name", [name for name, _ in FILES.values()])
def test_no_address_elsewhere_and_no_text_as_html(name):
    forbidden = r"//[a-z0-9]|@import|url\(|innerHTML|outerHTML|insertAdjacentHTML|document\.write"
    forbidden += r"|eval\(|style=|<style|\son[a-z]+="
    assert not re.findall(forbidden, _text(name))


def _text(name):
    return (files("ptv2.serving.page") / name).read_text()


def test_state(client, service):
    assert client.get("/info").status_code == 401
    before = client.get("/info", headers=KEY).json()
    assert before["memory"] == {"used": 0, "budget": service.memory.budget}
    assert before["waiting"] == 0
    assert list(before["tasks"]) == sorted(CONFIGS)
    assert not any(task["on_device"] for task in before["tasks"].values())
    client.post("/models/cities", json={"inputs": TEXT}, headers=KEY)
    after = client.get("/info", headers=KEY).json()
    assert after["memory"]["used"] == service.memory.used > 0
    assert {name for name, task in after["tasks"].items() if task["on_device"]} == {"cities"}
    (served,) = (task for name, task in service.bank.tasks().items() if name == "cities")
    assert after["tasks"]["cities"] == {
        "task": "token-classification",
        "labels": 3,
        "version": 1,
        "sha256": served.sha256,
        "on_device": True,
    }


def test_state_while_prompts_come_and_go(work):
    service = new_service(work)
    budget = max(service._engine.pool.nbytes(task) for task in service.bank.tasks().values())
    service.close(5)
    service = new_service(work, budget=budget)  # every task makes room for the next
    with TestClient(create_app(service)) as client:

        def load():
            for _ in range(10):
                for name in ("mood", "topics", "stars", "cities"):
                    service.answer(name, [TEXT])

        thread = threading.Thread(target=load)
        thread.start()
        while thread.is_alive():
            info = client.get("/info").json()
            assert info["memory"]["used"] <= budget
        thread.join()
        places = [task["on_device"] for task in client.get("/info").json()["tasks"].values()]
    assert 1 <= sum(places) < len(CONFIGS)


def test_choices_with_all_scores(client):
    body = {"inputs": {"question": "film", "choices": ["great", "dull", "fine"]}}
    best = client.post("/models/choice", json=body, headers=KEY).json()
    body["parameters"] = {"top_k": 3}
    scores = client.post("/models/choice", json=body, headers=KEY).json()
    assert sorted(x["choice"] for x in scores) == [0, 1, 2]
    assert [x["text"] for x in scores] == [body["inputs"]["choices"][x["choice"]] for x in scores]
    assert sum(x["score"] for x in scores) == pytest.approx(1)
    assert scores == sorted(scores, key=lambda x: -x["score"])
    assert scores[0] == best | {"score": pytest.approx(best["score"], abs=1e-4)}
    body["parameters"] = {"top_k": 0}
    assert client.post("/models/choice", json=body, headers=KEY).status_code == 422

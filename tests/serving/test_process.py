"""`ptv2 serve` as a process: unmodified clients, and an end that loses no request."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import uvicorn

from ptv2 import PromptConfig, PromptModel
from ptv2.serving.server import Server
from tests.encoder import save_encoder
from tests.serving.work import PATIENCE, new_service

TEXT = "a great film in rome"
ENDS = int(os.environ.get("PTV2_ENDS", "1"))
"""Of servers under load; the published number is 50."""
CLIENT = """
import sys
from huggingface_hub import InferenceClient
url, text = sys.argv[1:]
mood, cities, reader, vectors = (
    InferenceClient(model=f"{url}/models/{x}") for x in ("mood", "cities", "reader", "vectors")
)
assert {x.label for x in mood.text_classification(text)} == {"bad", "good"}
(best,) = mood.text_classification(text, top_k=1)
found = cities.token_classification(text)
assert found and all(text[x.start : x.end] == x.word for x in found)
answer = reader.question_answering(question="rome", context=text)
assert text[answer.start : answer.end] == answer.answer
assert vectors.feature_extraction(text).shape[-1] == 16
"""
"""Another process, where huggingface_hub may go online."""


SERVER = """
import sys
from pathlib import Path
from ptv2.cli import app
from ptv2.serving import server

create_app, counts = server.create_app, [0, 0]

def counted(service, **options):
    application = create_app(service, **options)
    async def outer(scope, receive, send):
        async def noted(message):
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                counts[1] += 1
            if message["type"] == "lifespan.shutdown.complete":
                Path(place).write_text(f"{counts[0]} {counts[1]}")
        counts[0] += scope["type"] == "http"
        await application(scope, receive, noted)
    return outer

server.create_app = counted
place = sys.argv.pop(1)
app()
"""
"""`ptv2 serve` that leaves how many requests it took and how many it answered."""


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("process")
    save_encoder(folder / "encoder")
    torch.manual_seed(0)
    model = PromptModel.from_pretrained(folder / "encoder")
    configs = {
        "mood": PromptConfig("sequence-classification", ("bad", "good"), prompt_length=4),
        "cities": PromptConfig("token-classification", ("B-city", "I-city"), prompt_length=5),
        "reader": PromptConfig("question-answering", prompt_length=2),
        "vectors": PromptConfig("feature-extraction", prompt_length=3),
    }
    for name, config in configs.items():
        model.add_task(name, config)
        model.save_task(name, folder / "prompts" / name)
    return folder / "prompts"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def server(prompts, tmp_path, request):
    """The process and its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", SERVER, tmp_path / "counts", "serve", "--backbone"]
    command += [prompts.parent / "encoder", "--prompts", prompts, "--port", str(port)]
    command += getattr(request, "param", ())
    paths = os.pathsep.join(filter(None, sys.path))
    with (tmp_path / "log").open("wb") as log:
        environment = os.environ | {"PYTHONPATH": paths}
        process = subprocess.Popen(command, env=environment, stderr=log)
    try:
        wait_until_it_answers(process, url)
        yield process, url
    finally:
        process.kill()
        process.wait()


def wait_until_it_answers(process, url):
    end = time.monotonic() + 2 * PATIENCE
    while True:
        try:
            return urllib.request.urlopen(f"{url}/health", timeout=PATIENCE)
        except (urllib.error.URLError, ConnectionError):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)


def ask(url):
    """The status of a request, or None if it was not taken."""
    body = json.dumps({"inputs": [TEXT] * 20}).encode()
    try:
        with urllib.request.urlopen(f"{url}/models/mood", body, timeout=PATIENCE) as response:
            return response.status, len(json.load(response))
    except urllib.error.HTTPError as error:
        return error.code, 0
    except (urllib.error.URLError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        assert isinstance(reason, ConnectionError), reason
        return None  # also one that the system had queued for a server which did not take it


@pytest.mark.parametrize("run", range(ENDS))
def test_clients_and_the_end(server, tmp_path, run):
    """Then SIGTERM while many ask: whoever was taken is answered, and the process ends."""
    process, url = server
    if run == 0:
        online = {key: x for key, x in os.environ.items() if key != "HF_HUB_OFFLINE"}
        subprocess.run([sys.executable, "-c", CLIENT, url, TEXT], env=online, check=True)

    some = threading.Event()

    def ask_until_the_end():
        answered, end = [], time.monotonic() + PATIENCE
        while status := ask(url):
            answered.append(status)
            some.set()
            assert time.monotonic() < end
        return answered

    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(ask_until_the_end) for _ in range(16)]
        assert some.wait(PATIENCE)
        process.send_signal(signal.SIGTERM)
        answered = [status for one in asked for status in one.result()]
    assert set(answered) == {(200, 20)}
    assert process.wait(PATIENCE) == -signal.SIGTERM
    taken, done = map(int, (tmp_path / "counts").read_text().split())
    assert taken == done
    assert done >= len(answered)


def status(url):
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_second_signal_ends_the_drain_alone(work, monkeypatch):
    """And its timer, which would make a third of it: that one does not wait for answers."""
    service, seen = new_service(work), []
    monkeypatch.setattr("uvicorn.Server.handle_exit", lambda self, *signal: seen.append(signal))
    server = Server(uvicorn.Config(app=None), service, drain=0.2)
    server.handle_exit(signal.SIGINT, None)
    assert service.draining
    assert not seen
    server.handle_exit(signal.SIGINT, None)
    time.sleep(0.4)
    assert seen == [(signal.SIGINT, None)]
    service.close(5)


@pytest.mark.parametrize("server", [("--drain-seconds", "0.2")], indirect=True)
def test_an_end_that_is_announced_comes(server):
    process, url = server
    assert ask(url) == (200, 20)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == -signal.SIGTERM


@pytest.mark.parametrize("server", [("--drain-seconds", "600", "--json-logs")], indirect=True)
def test_an_end_that_is_announced(server, tmp_path):
    """Health says so before connections are refused; a second SIGTERM waits for no more."""
    process, url = server
    assert ask(url) == (200, 20)
    process.send_signal(signal.SIGTERM)
    end = time.monotonic() + PATIENCE
    while status(f"{url}/health") == 200:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert status(f"{url}/health") == 503
    assert ask(url) == (200, 20)  # whoever has not looked yet
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == -signal.SIGTERM
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()
             if line.startswith("{")]  # fmt: skip
    requests = [line for line in lines if line["message"] == "request"]
    answered = [line for line in requests if line["route"] == "/models/{task}"]
    assert [(line["status"], line["task"]) for line in answered] == [(200, "mood")] * 2
    assert {line["status"] for line in requests if line["route"] == "/health"} == {200, 503}

"""The page in headless Chromium, with a server of its own."""

import json
import os
import re
import shutil
import threading
import time

import pytest
import torch
import uvicorn

from ptv2 import PromptConfig, PromptModel
from ptv2.serving.app import create_app
from tests.serving.work import CONFIGS, make_work, new_service

pytestmark = pytest.mark.browser
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOSTILE = "<img src=x onerror=alert(1)>"
TEXT = f"\U0001f3a5 {HOSTILE} a great film in rome"


@pytest.fixture(scope="module")
def browser():
    """A browser: the one in PTV2_CHROMIUM, which has to be there, or one that is found."""
    place = os.environ.get("PTV2_CHROMIUM") or next(
        filter(None, map(shutil.which, BROWSERS)), None
    )
    if place is None:
        pytest.skip(f"needs a browser: one of {', '.join(BROWSERS)}, or its path in PTV2_CHROMIUM")
    if "PTV2_CHROMIUM" not in os.environ:
        pytest.importorskip("playwright", reason="needs playwright: pip install 'ptv2[browser]'")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # as root Chromium has no sandbox; what it opens is this server's
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        with playwright.chromium.launch(executable_path=place, args=options) as browser:
            yield browser


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Prompts of every kind, and one whose label is HTML."""
    folder = make_work(tmp_path_factory.mktemp("browser"))
    torch.manual_seed(0)
    model = PromptModel.from_pretrained(folder / "encoder")
    config = PromptConfig("sequence-classification", (HOSTILE, "good"), prompt_length=2)
    model.add_task("hostile", config)
    model.save_task("hostile", folder / "prompts" / "hostile")
    return folder


@pytest.fixture(scope="module")
def service(work):
    service = new_service(work)
    service.bank.load(work / "prompts" / "hostile", "hostile")
    yield service
    service.close(5)


@pytest.fixture(scope="module")
def serve(service):
    """Serves an application, from a port that is free; returns its address."""
    running = []

    def start(app):
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        end = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def url(serve, service):
    return serve(create_app(service))


@pytest.fixture
def page(browser):
    """A page of a new visitor, which complains of nothing but statuses."""
    complaints = []
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("console", lambda message: complaints.append(message.text))
        yield page
    assert [x for x in complaints if not x.startswith("Failed to load resource")] == []


def choose(page, *names):
    for name in names:
        page.get_by_role("checkbox", name=re.compile(f"^{name}\\b")).check()


def write(page, field, text):
    page.get_by_role("textbox", name=re.compile(f"^{field}\\b")).fill(text)


def ask(page):
    page.locator("textarea:visible").first.press("Control+Enter")
    page.locator("#progress", has_text="answered").wait_for()


def card(page, name):
    return page.locator("article").filter(has=page.get_by_role("heading", name=name, exact=True))


def marks(locator):
    """The marked parts of a text without their notes."""
    return locator.locator("mark").evaluate_all("all => all.map(x => x.firstChild.data)")


def scores(locator):
    names = locator.locator(".name").all_inner_texts()
    return dict(zip(names, map(float, locator.locator(".score").all_inner_texts()), strict=True))


def test_answers_of_all_kinds_side_by_side(page, url, service):
    page.goto(url)
    assert page.locator("textarea:visible").count() == 1
    choose(page, *CONFIGS, "hostile")
    assert page.locator("textarea:visible").count() == 5
    write(page, "Text", TEXT)
    write(page, "Question", "rome")
    context = "\U0001f3a5 a great film in rome"
    write(page, "Context", context)
    write(page, "Choices", "great\n\ndull\n")
    ask(page)
    assert page.locator("#progress").inner_text().startswith("8 answered,")

    for name in ("mood", "topics", "hostile"):
        found = scores(card(page, name))
        (answer,) = service.answer(name, [TEXT])
        row = answer.logits[0]
        wanted = row.sigmoid() if name == "topics" else row.softmax(-1)
        labels = service.bank.tasks()[name].config.labels
        assert found == pytest.approx(dict(zip(labels, wanted.tolist(), strict=True)), abs=6e-4)
    value = service.answer("stars", [TEXT])[0].answer["value"]
    assert float(card(page, "stars").locator(".number").inner_text()) == pytest.approx(value, 1e-3)

    tags = service.answer("cities", [TEXT])[0].answer["tags"]
    tagged = [word for word, tag in zip(TEXT.split(), tags, strict=True) if tag != "O"]
    assert tagged
    assert " ".join(marks(card(page, "cities"))).split() == tagged
    assert page.locator("article mark small").first.inner_text().startswith("city 0.")
    answer = service.answer("reader", [("rome", context)])[0].answer["answer"]
    assert marks(card(page, "reader")) == [answer]
    assert set(scores(card(page, "choice"))) == {"great", "dull"}
    assert sum(scores(card(page, "choice")).values()) == pytest.approx(1, abs=2e-3)
    assert "16 dimensions, norm " in card(page, "vectors").inner_text()
    assert page.locator("img").count() == 0


def test_pairs(page, url, service):
    page.goto(url)
    choose(page, "mood")
    write(page, "Text", "a great film")
    write(page, "Second text", "dull")
    ask(page)
    row = service.answer("mood", [("a great film", "dull")])[0].logits[0].softmax(-1)
    assert scores(card(page, "mood"))["bad"] == pytest.approx(float(row[0]), abs=6e-4)


def test_an_error_stays_in_its_card(page, url):
    page.goto(url)
    choose(page, "mood", "reader", "choice")
    write(page, "Text", "fine")
    write(page, "Question", "rome")
    write(page, "Choices", "one")
    ask(page)
    assert page.locator("#progress").inner_text().startswith("1 answered, 2 failed")
    assert card(page, "reader").locator(".error").inner_text() == "Missing: context."
    assert "at least 2" in card(page, "choice").locator(".error").inner_text()
    assert set(scores(card(page, "mood"))) == {"bad", "good"}


def test_search_and_a_choice_that_is_remembered(page, url):
    page.goto(url)
    page.get_by_label("Search").fill("CLASSIFICATION oo")
    page.locator("#count", has_text="1 of 8 tasks, 0 chosen").wait_for()
    choose(page, "mood")
    page.reload()
    page.locator("#count", has_text="8 of 8 tasks, 1 chosen").wait_for()
    assert page.get_by_role("checkbox", name=re.compile("^mood")).is_checked()
    page.get_by_label("Only chosen").check()
    assert page.locator("#tasks li").count() == 1
    page.get_by_role("button", name="Choose none").click()
    page.locator("#count", has_text="0 of 8 tasks, 0 chosen").wait_for()


def test_the_state_is_refreshed(page, work, serve):
    service = new_service(work)
    page.clock.install()
    page.goto(serve(create_app(service)))
    mood = page.locator("#tasks li").filter(has_text="mood")
    mood.locator(".place", has_text="host").wait_for()
    sha256 = service.bank.tasks()["mood"].sha256[:8]
    wanted = f"sequence-classification · 2 labels · v1 · {sha256}"
    assert mood.locator(".facts").inner_text() == wanted
    service.answer("mood", ["fine"])
    page.clock.run_for(6000)
    mood.locator(".place", has_text="device").wait_for()
    assert page.locator("#placed").inner_text() == f"1 of {len(CONFIGS)}"
    service.bank.load(work / "prompts" / "mood", "mood")
    service.bank.unload("cities")
    page.clock.run_for(6000)
    mood.locator(".facts", has_text="v2").wait_for()
    assert page.locator("#tasks li").count() == len(CONFIGS) - 1
    service.close(5)


def test_thousands_of_tasks_are_shown_in_parts(page, url):
    tasks = {f"task-{i:04}": {"task": "feature-extraction"} for i in range(3000)}
    facts = {"labels": 0, "version": 1, "sha256": "0" * 64, "on_device": False}
    page.goto(url)
    info = page.evaluate("async () => (await fetch('info')).json()")
    info["tasks"] = {name: task | facts for name, task in tasks.items()}
    page.route("**/info", lambda route: route.fulfill(body=json.dumps(info)))
    page.reload()
    page.locator("#count", has_text="3000 of 3000").wait_for()
    assert page.locator("#tasks li").count() == 100
    page.get_by_role("button", name="Show more of the other 2900").click()
    assert page.locator("#tasks li").count() == 200
    page.get_by_label("Search").fill("2999")
    assert page.locator("#tasks .name").all_inner_texts() == ["task-2999"]


def test_a_key_is_asked_for_and_kept_for_the_session(page, service, serve):
    page.goto(serve(create_app(service, key="right key")))
    field = page.get_by_label("This server wants a key")
    for key in ("wrong", "right key"):
        field.fill(key)
        field.press("Enter")
        if key == "wrong":
            page.get_by_text("This key was refused.").wait_for()
    choose(page, "mood")
    assert field.is_hidden()
    write(page, "Text", "fine")
    ask(page)
    assert scores(card(page, "mood"))
    page.reload()
    page.locator("#tasks li").first.wait_for()
    assert field.is_hidden()
    assert page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_screens_and_contrast(page, url, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(url)
    choose(page, *CONFIGS)
    write(page, "Text", "a great film in rome " + "x" * 200)
    ask(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    ratio = page.evaluate(
        """() => {
          const light = (color) => {
            const [r, g, b] = color.match(/[0-9.]+/g).map((x) => {
              const share = x / 255;
              return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const panel = light(getComputedStyle(document.querySelector("#ask")).backgroundColor);
          return [".name", ".facts", ".quiet", ".on-device", ".error"].map((part) => {
            const ink = light(getComputedStyle(document.querySelector(part)).color);
            return (Math.max(ink, panel) + 0.05) / (Math.min(ink, panel) + 0.05);
          });
        }"""
    )
    assert min(ratio) >= 4.5  # WCAG's for text

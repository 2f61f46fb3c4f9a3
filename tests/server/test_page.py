"""The page in a real Chromium: what a reader sees, does by keyboard, and is told when it fails."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect, sync_playwright

from tests.server.fake_page import FakePage, serving
from tests.server.test_live import wait_idle

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium (Debian: apt install chromium, or set CHROMIUM)"
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP: ViewportSize = {"width": 1280, "height": 860}
PHONE: ViewportSize = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def server() -> Iterator[FakePage]:
    with serving() as page:
        yield page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Reader:
    """Somebody with the page open; notes what the page should never do."""

    def __init__(self, browser: Browser, server: FakePage, **context: Any) -> None:
        context = {"viewport": DESKTOP, "reduced_motion": "reduce"} | context
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(60_000)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda m: self.complaints.append(m.text))
        self.page.on("request", lambda request: self._check(server, request.url))
        self.page.goto(server.url)
        expect(self.page.locator("#model")).to_have_text("Toy · 4 Medusa heads", timeout=60_000)

    def _check(self, server: FakePage, url: str) -> None:
        if not url.startswith(server.url):
            self.complaints.append(f"asked for {url}")

    def set(self, label: str, value: str) -> None:
        settings = self.page.locator("#settings")
        if settings.get_attribute("open") is None:
            settings.locator("summary").click()
        self.page.get_by_label(label, exact=True).fill(value)

    def ask(self, question: str) -> None:
        self.page.get_by_label("Prompt", exact=True).fill(question)
        self.page.keyboard.press("Enter")

    def wait(self) -> None:
        expect(self.page.get_by_role("button", name="Send")).to_be_visible(timeout=60_000)


@pytest.fixture
def reader(browser: Browser, server: FakePage) -> Iterator[Reader]:
    reader = Reader(browser, server)
    yield reader
    reader.context.close()
    wait_idle(server)


def test_a_comparison_from_prompt_to_verdict(reader: Reader) -> None:
    page = reader.page
    reader.set("Max tokens", "80")
    reader.ask("tell me a story")
    reader.wait()
    normal, medusa = page.locator(".pane.normal"), page.locator(".pane.medusa")
    assert normal.locator(".answer").inner_text() == medusa.locator(".answer").inner_text()
    assert normal.locator(".answer .t").count() == medusa.locator(".answer .t").count() == 80
    assert normal.locator(".t[data-depth]").count() == 0
    assert medusa.locator(".t.d1").count() > medusa.locator(".t.d3").count() > 0
    expect(normal.locator(".facts")).to_contain_text("1.00 tokens/step · 80 tokens")
    expect(medusa.locator(".facts")).to_contain_text("% kept")
    expect(page.locator(".verdict b")).to_have_text(re.compile(r"^\d+\.\d\d×$"))
    expect(page.locator(".verdict p")).to_contain_text("Medusa wrote the same text in")
    expect(page.locator("#announcer")).to_contain_text("tokens per second")
    assert reader.complaints == []


def test_the_trees_of_all_steps_can_be_looked_at(reader: Reader) -> None:
    page = reader.page
    reader.set("Max tokens", "60")
    reader.ask("tell me a story")
    reader.wait()
    slider = page.get_by_label("Step to show")
    slider.focus()
    page.keyboard.press("Home")
    expect(page.locator("#step-number")).to_have_text(re.compile(r"^1 of \d+$"))
    first = page.locator("#tree svg").get_attribute("aria-label")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#step-number")).to_have_text(re.compile(r"^2 of \d+$"))
    assert page.locator("#tree svg").get_attribute("aria-label") != first

    token = page.locator(".pane.medusa .t.d2").first
    token.click()
    marked = page.locator(".pane.medusa .t.here")
    kept = page.locator("#tree g.kept")
    assert marked.count() == kept.count() + 1 >= 3
    assert page.locator("#tree g.model").count() == 2
    shown = [text.strip() for text in marked.all_inner_texts()]
    drawn = page.locator("#tree g.kept text:first-of-type").all_text_contents()
    assert drawn == shown[:-1]
    rows = page.locator("#depths tbody tr")
    assert rows.count() == 4
    expect(rows.first).to_contain_text(re.compile(r"1 ahead\s*\d+ of \d+"))


def test_normal_is_replayed_beside_medusa(browser: Browser, server: FakePage) -> None:
    reader = Reader(browser, server, reduced_motion="no-preference")
    reader.set("Max tokens", "300")
    reader.ask("tell me a story")
    note = reader.page.locator(".pane.normal h3 small")
    expect(note).to_have_text("replay of its run", timeout=60_000)
    expect(note).to_have_text("stopped at max tokens", timeout=180_000)
    expect(reader.page.locator(".ghost")).to_have_count(0)
    expect(reader.page.locator(".pane.normal .answer .t")).to_have_count(300)
    assert reader.complaints == []
    reader.context.close()


def test_a_replay_ends_where_frames_are_slow(browser: Browser, server: FakePage) -> None:
    reader = Reader(browser, server, reduced_motion="no-preference")
    slow = "(draw) => setTimeout(() => draw(performance.now()), 500)"
    reader.page.evaluate(f"() => {{ window.requestAnimationFrame = {slow}; }}")
    reader.set("Max tokens", "40")
    reader.ask("tell me a story")
    reader.wait()
    expect(reader.page.locator(".pane.normal h3 small")).to_have_text("stopped at max tokens")
    expect(reader.page.locator(".ghost")).to_have_count(0)
    expect(reader.page.locator(".pane.normal .answer .t")).to_have_count(40)
    assert reader.complaints == []
    reader.context.close()


def test_a_chat_keeps_its_history_until_a_new_one(reader: Reader) -> None:
    page = reader.page
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda r: bodies.append(json.loads(r.post_data or "{}")))
    reader.set("Max tokens", "8")
    reader.set("System prompt", "be kind")
    page.get_by_label("Medusa", exact=True).check(force=True)
    reader.ask("one")
    reader.wait()
    answer = "".join(page.locator(".pane.medusa .answer").all_text_contents())
    reader.ask("two")
    reader.wait()
    assert [m["content"] for m in bodies[-1]["messages"]] == ["be kind", "one", answer, "two"]
    assert not bodies[-1]["fresh"] if "fresh" in bodies[-1] else True
    expect(page.locator(".turn")).to_have_count(2)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    reader.ask("three")
    reader.wait()
    assert [m["content"] for m in bodies[-1]["messages"]] == ["be kind", "three"]


def test_sampling_is_sent_as_set_and_both_sides_get_one_seed(reader: Reader) -> None:
    bodies: list[dict[str, Any]] = []
    reader.page.on("request", lambda r: bodies.append(json.loads(r.post_data or "{}")))
    for label, value in {
        "Max tokens": "9",
        "Temperature": "0.8",
        "Top k": "20",
        "Top p": "0.9",
        "Min p": "0.05",
    }.items():
        reader.set(label, value)
    reader.page.get_by_label("Drafts").select_option("fixed")
    reader.set("Fixed tree", "0;0,0;1")
    reader.ask("hello")
    reader.wait()
    normal, medusa = bodies
    wanted = {"max_tokens": 9, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05}
    assert wanted.items() <= normal.items()
    assert wanted.items() <= medusa.items()
    assert normal["seed"] == medusa["seed"] >= 0
    assert (normal["mode"], medusa["mode"]) == ("normal", "fixed")
    assert medusa["tree"] == [[0], [0, 0], [1]]
    assert normal["fresh"]
    assert medusa["fresh"]
    expect(reader.page.locator(".verdict p")).to_contain_text("the same text")


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stop_frees_the_engine_at_once(reader: Reader, server: FakePage, way: str) -> None:
    reader.set("Max tokens", "3000")
    reader.ask("tell me a long story")
    expect(reader.page.locator(".pane.normal .t").nth(5)).to_be_attached()
    if way == "button":
        reader.page.get_by_role("button", name="Stop").click()
    else:
        reader.page.keyboard.press("Escape")
    reader.wait()
    expect(reader.page.locator(".verdict p")).to_have_text("Stopped.")
    wait_idle(server)


def test_both_at_once_shares_the_machine_and_says_so(reader: Reader) -> None:
    reader.set("Max tokens", "40")
    reader.page.get_by_label("Comparison").select_option("together")
    reader.ask("tell me a story")
    reader.wait()
    expect(reader.page.locator(".verdict p")).to_contain_text("shared the machine")
    assert reader.page.locator(".pane.medusa .answer .t").count() == 40


def refuse(reader: Reader, status: int, code: str, message: str, **headers: str) -> None:
    def answer(route: Route) -> None:
        body = {"error": {"message": message, "type": "x", "param": None, "code": code}}
        route.fulfill(status=status, json=body, headers=headers)

    reader.page.route("**/live", answer)


def test_a_missing_key_leads_to_its_field(reader: Reader) -> None:
    refuse(reader, 401, "unauthorized", "send an API key")
    reader.ask("hello")
    trouble = reader.page.get_by_role("alert").filter(has_text="This server needs a key")
    expect(trouble).to_contain_text("send an API key")
    expect(reader.page.get_by_label("API key")).to_be_focused()
    expect(reader.page.get_by_label("Prompt", exact=True)).to_have_value("hello")
    reader.page.unroute("**/live")
    keys: list[str | None] = []
    reader.page.on("request", lambda r: keys.append(r.headers.get("authorization")))
    reader.page.get_by_label("API key").fill("secret")
    reader.set("Max tokens", "5")
    trouble.get_by_role("button", name="Try again").click()
    reader.wait()
    assert keys[-1] == "Bearer secret"
    expect(reader.page.locator(".pane.medusa .answer .t")).to_have_count(5)


def test_a_full_queue_says_when_to_come_back(reader: Reader) -> None:
    refuse(reader, 429, "queue_full", "256 requests wait already", **{"Retry-After": "1"})
    reader.ask("hello")
    trouble = reader.page.get_by_role("alert").filter(has_text="The server is busy")
    expect(trouble).to_contain_text("256 requests wait already")
    expect(trouble.get_by_role("button", name="Try again", exact=True)).to_be_enabled()


def test_a_loading_model_is_waited_for(browser: Browser, server: FakePage) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.route("**/ready", lambda r: r.fulfill(status=503, json={"status": "loading"}))
    page.goto(server.url)
    expect(page.locator("#model")).to_have_text("loading the model …")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    page.unroute("**/ready")
    expect(page.get_by_role("button", name="Send")).to_be_enabled(timeout=60_000)
    context.close()


def test_a_server_that_does_not_answer_is_named(reader: Reader) -> None:
    reader.page.route("**/live", lambda route: route.abort("connectionrefused"))
    reader.ask("hello")
    expect(reader.page.get_by_role("alert").filter(has_text="does not answer")).to_be_visible()


def test_an_answer_that_breaks_off_is_no_answer(reader: Reader) -> None:
    start = 'event: start\ndata: {"model":"Toy","heads":4,"prompt_tokens":1,"plain_step":1}\n\n'
    reader.page.route("**/live", lambda r: r.fulfill(body=start, content_type="text/event-stream"))
    reader.ask("hello")
    expect(reader.page.get_by_role("alert").filter(has_text="cut off")).to_be_visible()


def test_text_is_text_whatever_it_says(reader: Reader) -> None:
    reader.set("Max tokens", "4")
    reader.ask("<img src=/static/icon.svg onerror=alert(1)><b>bold</b>")
    reader.wait()
    expect(reader.page.locator(".question")).to_have_text(re.compile(r"^<img .*</b>$"))
    assert reader.page.locator(".turn img").count() == 0


def test_everything_can_be_reached_by_keyboard(reader: Reader) -> None:
    page = reader.page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the prompt")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Compare", exact=True)).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("Medusa", exact=True)).to_be_checked()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Send")).to_be_focused()


def test_every_field_has_a_name_and_bad_values_are_pointed_at(reader: Reader) -> None:
    page = reader.page
    reader.set("Temperature", "-1")
    page.locator("summary").click()
    reader.ask("hello")
    expect(page.get_by_label("Temperature", exact=True)).to_be_focused()
    expect(page.locator(".turn")).to_have_count(0)
    for field in page.locator("#composer").get_by_role("textbox").all():
        assert field.evaluate("e => e.labels.length") == 1
    for field in page.locator("#composer").get_by_role("spinbutton").all():
        assert field.evaluate("e => e.labels.length") == 1


def test_nothing_is_wider_than_a_phone(browser: Browser, server: FakePage) -> None:
    reader = Reader(browser, server, viewport=PHONE, is_mobile=True, has_touch=True)
    reader.set("Max tokens", "40")
    reader.ask("tell me a story " * 20)
    reader.wait()
    for selector in (".question", ".verdict", ".pane", ".card", "#settings", ".ask", "header"):
        for part in reader.page.locator(selector).all():
            box = part.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= PHONE["width"], selector
    reader.context.close()


def test_dark_mode_is_dark(browser: Browser, server: FakePage) -> None:
    reader = Reader(browser, server, color_scheme="dark")
    expect(reader.page.locator("body")).to_have_css("background-color", "rgb(16, 18, 22)")
    expect(reader.page.locator("body")).to_have_css("color", "rgb(232, 231, 228)")
    reader.context.close()

"""OMP_NUM_THREADS=1 python -m pytest tests/test_page.py

The chat page in headless Chromium, against the real application over a scripted engine.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn

from openmai.infer.config import Sampling
from openmai.infer.engine import Delivery, Engine, Increment, Request
from openmai.infer.load import load_assistant
from openmai.serve.app import create_app
from openmai.serve.server import listen

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script> & **bold** `code`"
MARKDOWN = "Two ways:\n\n1. `zip(a, b)`\n2. a **loop**\n\n```python\nfor x in <a>:\n    print(x)\n```\nDone."


class Scripted(Engine):
    """An engine that says what the test wants: the question itself, or forever the same word."""

    def submit(self, prompt: object, sampling: Sampling | None = None, deliver: Callable[[Delivery], None] | None = None) -> Request:
        request = Request(list(prompt), sampling or Sampling(), deliver)  # type: ignore[call-overload]
        threading.Thread(target=self._say, args=(request,), daemon=True).start()
        return request

    def _say(self, request: Request) -> None:
        asked = self.tokenizer.decode(request.prompt).split("<|im_start|>user\n")[-1].split("<|im_end|>")[0]
        endless = asked == "forever"
        for letter in ["word "] * 1000 if endless else asked:
            if request.cancelled:
                request.deliver(None)
                return
            time.sleep(0.01 if endless else 0)
            request.deliver(Increment(20, letter))
        request.deliver(Increment(20, "", None, "stop"))


@pytest.fixture(scope="module")
def address(tiny_checkpoint: Path) -> Iterator[str]:
    model, tokenizer, _ = load_assistant(tiny_checkpoint)
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(Scripted(model, tokenizer), "tiny"), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as library:
        found = library.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield found
        found.close()


@pytest.fixture
def page(browser, address: str):  # type: ignore[no-untyped-def]
    """A fresh page that fails the test on script errors and on requests to anywhere else."""
    context = browser.new_context()
    opened, problems = context.new_page(), []
    opened.set_default_timeout(15_000)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda request: None if request.url.startswith((address, "data:")) else problems.append(request.url))
    opened.goto(address)
    yield opened
    context.close()
    assert not problems


def ask(page, text: str) -> None:  # type: ignore[no-untyped-def]
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def test_markdown_is_shown_and_regenerated_and_kept(page) -> None:  # type: ignore[no-untyped-def]
    ask(page, MARKDOWN)
    answer = page.locator(".assistant .body")
    page.get_by_role("button", name="Regenerate").wait_for()
    assert page.locator(".user .body").inner_text() == MARKDOWN
    assert answer.locator("ol li").all_inner_texts() == ["zip(a, b)", "a loop"]
    assert answer.locator("strong").inner_text() == "loop"
    assert answer.locator("pre code").inner_text() == "for x in <a>:\n    print(x)"
    assert answer.locator("figcaption span").first.inner_text() == "python"
    page.get_by_role("button", name="Regenerate").click()
    page.get_by_role("button", name="Regenerate").wait_for()
    assert answer.count() == 1
    page.reload()
    page.locator("#list .pick").click()
    assert answer.locator("pre code").inner_text() == "for x in <a>:\n    print(x)"
    page.get_by_role("button", name="New chat").click()
    assert page.get_by_role("heading", name="What would you like to know?").is_visible()
    page.locator("#list .drop").click()
    assert page.locator("#list li").count() == 0


def test_html_in_an_answer_stays_text(page) -> None:  # type: ignore[no-untyped-def]
    ask(page, HOSTILE)
    page.get_by_role("button", name="Regenerate").wait_for()
    answer = page.locator(".assistant .body")
    assert "<script>document.title='taken'</script> & bold code" in answer.inner_text()
    assert answer.locator("img, script").count() == 0
    assert page.title() == "openmai chat"


def test_escape_stops_an_answer_and_settings_are_sent(page) -> None:  # type: ignore[no-untyped-def]
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be kind.")
    page.get_by_label("Longest answer").fill("77")
    page.get_by_role("button", name="Done").click()
    with page.expect_request("**/chat/completions") as sent:
        ask(page, "forever")
    body = sent.value.post_data_json
    assert (body["messages"][0], body["max_tokens"]) == ({"role": "system", "content": "Be kind."}, 77)
    page.get_by_text("word word").wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("stopped").wait_for()
    ask(page, "and again")
    page.locator(".assistant .body").nth(1).get_by_text("and again").wait_for()

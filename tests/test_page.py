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
from test_report import events, make, make_documents, results

from openmai.infer.config import Sampling
from openmai.infer.engine import Engine
from openmai.infer.load import load_assistant
from openmai.infer.request import Delivery, Increment, Request
from openmai.infer.sampling import Logprob
from openmai.serve.app import create_app
from openmai.serve.runs import Runs
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
            request.deliver(Increment(20, letter, Logprob(20, -0.5, ((20, -0.5), (21, -1.5)))))
        request.deliver(Increment(20, "", None, "stop"))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run: documents, a checkpoint and an evaluation, all with a name that means harm."""
    root = tmp_path_factory.mktemp("runs")
    first = make_documents(root / "laptop", [])
    base = make(root / "laptop", "pretrain", "checkpoint", [first], {"val_bpb": 1.5}, {"events.jsonl": events("pretrain", val_bpb=1.5)})
    make(root / "laptop", "eval", "eval", [base], {}, {"results.json": results(0.4)})
    return root


@pytest.fixture(scope="module")
def address(tiny_checkpoint: Path, run_folder: Path) -> Iterator[str]:
    model, tokenizer, _ = load_assistant(tiny_checkpoint)
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(Scripted(model, tokenizer), "tiny", runs=Runs(run_folder)), log_level="warning"))
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


def test_a_message_is_edited_and_its_probabilities_are_shown(page) -> None:  # type: ignore[no-untyped-def]
    ask(page, "first")
    page.get_by_role("button", name="Regenerate").wait_for()
    page.locator(".user").hover()
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit your message").fill("second")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Regenerate").wait_for()
    assert page.locator(".user .body").all_inner_texts() == page.locator(".assistant .body").all_inner_texts() == ["second"]
    page.get_by_role("button", name="Probabilities", exact=True).click()
    assert page.locator("#tokens button").count() == len("second")
    page.locator("#tokens button").nth(2).click()
    assert page.locator("#choices td:last-child").all_inner_texts() == ["60.7 %", "22.3 %"]
    page.keyboard.press("Escape")
    assert page.locator("#probs").is_hidden()


def test_sampling_controls_are_sent_and_kept(page) -> None:  # type: ignore[no-untyped-def]
    page.get_by_role("button", name="Settings").click()
    page.get_by_text("More sampling controls").click()
    page.get_by_label("Top-k (0: all)").fill("7")
    page.get_by_label("Seed (empty: random)").fill("11")
    page.get_by_label("Appearance").select_option("dark")
    page.get_by_role("button", name="Done").click()
    page.wait_for_function("getComputedStyle(document.body).backgroundColor === 'rgb(25, 25, 24)'")
    with page.expect_request("**/chat/completions") as sent:
        ask(page, "hello")
    body = sent.value.post_data_json
    assert (body["top_k"], body["seed"], "min_p" in body) == (7, 11, False)
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_runs_are_shown_and_their_names_stay_text(page, address: str) -> None:  # type: ignore[no-untyped-def]
    page.goto(f"{address}/runs")
    page.get_by_role("heading", name="Training: pretrain").wait_for()
    assert page.locator("svg.plot").count() >= 3
    assert page.get_by_role("table", name="Funnel of documents").locator("tbody tr").count() == 3
    assert "40.0 ± 3.0 %" in page.get_by_role("table", name="Questions").inner_text()
    assert page.title() == "openmai runs"


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(width: int, page, address: str) -> None:  # type: ignore[no-untyped-def]
    page.set_viewport_size({"width": width, "height": 800})
    ask(page, MARKDOWN + " " + "wide" * 60)
    page.get_by_role("button", name="Regenerate").wait_for()
    for where in ("", "/runs"):
        if where:
            page.goto(address + where)
            page.get_by_role("heading", name="Training: pretrain").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width

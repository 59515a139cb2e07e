"""OMP_NUM_THREADS=1 python -m pytest tests/test_data_browse.py

Browsing documents: lists, originals that can do nothing, judgements that survive, the overview, and the page in headless Chromium.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi.testclient import TestClient

from openmai.base.artifact import Artifact
from openmai.base.errors import OpenmaiError
from openmai.cli import main
from openmai.data.browse.app import PAGE_POLICY, create_app
from openmai.data.browse.browse import browse, listen
from openmai.data.browse.config import BrowseConfig
from openmai.data.browse.explain import differences, limits
from openmai.data.browse.judgements import Judgements, agreement, share
from openmai.data.browse.originals import rendered
from openmai.data.browse.overview import write_overview
from openmai.data.browse.room import Room
from openmai.data.build import build
from openmai.data.config import BuildConfig
from openmai.data.dedup.config import Dedup
from openmai.data.document import Raw
from openmai.data.filter.config import Thresholds
from openmai.data.filter.rules import RULES
from openmai.data.read.config import Source

WORDS = [
    ["old", "new", "wide", "quiet", "northern", "golden", "broken", "distant"],
    ["bridge", "harbour", "library", "market", "garden", "castle", "village", "mill"],
    ["guarded", "followed", "replaced", "crossed", "bordered", "flooded", "described"],
    ["river", "valley", "railway", "forest", "chapel", "island", "border", "highway"],
    ["summer", "winter", "morning", "spring", "autumn", "evening"],
]
HOSTILE = """<script>document.title='taken'; fetch('//SPY/script')</script><script src="//SPY/script.js"></script>
<link rel=preconnect href="//SPY"><link rel=stylesheet href="//SPY/x.css"><meta http-equiv="refresh" content="0; url=http://SPY/refresh">
<img src="//SPY/x.png" onerror="document.title='taken'"><iframe src="//SPY/frame"></iframe><video src="//SPY/x.mp4" autoplay></video>
<div style="background: url(//SPY/x.gif)">.</div><object data="//SPY/object"></object><p><a href="http://SPY/link">leave</a></p>"""


def prose(seed: int) -> list[str]:
    """Return sentences that another seed does not give."""
    draw = random.Random(seed)
    texts = []
    for _ in range(16):
        adjective, noun, verb, thing, time = (draw.choice(words) for words in WORDS)
        texts.append(
            f"In the {time} the {adjective} {noun} {verb} the {draw.choice(WORDS[0])} {thing}, and {draw.randint(3, 99)} people saw it."
        )
    return texts


def html(title: str, sentences: list[str], spy: str) -> str:
    body = "".join(f"<p>{sentence}</p>" for sentence in sentences)
    return f"<html><head><title>{title}</title></head><body>{HOSTILE.replace('SPY', spy)}<main><h1>{title}</h1>{body}</main></body></html>"


@pytest.fixture(scope="module")
def spy() -> Iterator[socket.socket]:
    """The address that the pages try to reach."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory, spy: socket.socket) -> Path:
    """Documents of a few pages: three kept, a near-duplicate, one too short, one of a trusted file of texts."""
    folder = tmp_path_factory.mktemp("browse")
    (folder / "pages").mkdir()
    pages = {
        "a": prose(0),
        "b": prose(3),
        "c": prose(5),
        "d": [*prose(0)[:-1], "A last sentence that is not the same."],
        "e": ["Too short."],
    }
    for name, sentences in pages.items():
        (folder / "pages" / f"{name}.html").write_text(
            html(f"Page {name}", sentences, f"127.0.0.1:{spy.getsockname()[1]}"), encoding="utf-8"
        )
    (folder / "texts.jsonl").write_text(
        json.dumps({"text": "By <b>hand</b> & trusted.", "url": "https://example.org/t"}) + "\n", encoding="utf-8"
    )
    sources = [Source(name="web", path=str(folder / "pages")), Source(name="texts", path=str(folder / "texts.jsonl"), trusted=True)]
    loose = Thresholds(min_words=20, max_duplicate_ngrams=(1,) * 6, max_top_ngrams=(1,) * 3, min_sentences=0)
    build(BuildConfig(out=folder / "documents", sources=sources, web=loose, languages=[], workers=1, dedup=Dedup(jaccard=0.7)))
    return folder / "documents"


@pytest.fixture
def room(documents: Path, tmp_path: Path) -> Room:
    return Room(BrowseConfig(documents=documents, judgements=tmp_path / "judgements.jsonl"))


@pytest.fixture
def client(room: Room) -> TestClient:
    return TestClient(create_app(room), base_url="http://127.0.0.1")


def rows_of(client: TestClient, **asked: object) -> list[dict]:
    answer = client.get("/api/documents", params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()["rows"]


def test_lists_by_verdict_source_search_and_sample(client: TestClient, documents: Path) -> None:
    about = client.get("/api/about").json()
    manifest = Artifact.load(documents).metrics
    assert (about["documents"], about["kept"]) == (manifest["documents"] + manifest["rejected"], manifest["documents"]) == (6, 4)
    assert {rule: count for step in about["steps"] for rule, count in step["rules"].items()} == {"gopher.words": 1, "near.duplicate": 1}
    assert {row["rule"] for row in rows_of(client, which="kept")} == {""}
    assert (
        [row["title"] for row in rows_of(client, which="gopher")]
        == ["Page e"]
        == [row["title"] for row in rows_of(client, which="gopher.words")]
    )
    assert [row["line"] for row in rows_of(client, source="texts")] == ["By <b>hand</b> & trusted."]
    assert [row["title"] for row in rows_of(client, query="TOO SHORT")] == ["Page e"]
    assert rows_of(client, query="too short", which="kept") == []
    orders = {tuple(row["row"] for row in rows_of(client, seed=seed)) for seed in range(5)}
    assert len(orders) > 1
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(6))}
    assert [row["row"] for row in rows_of(client, seed=3)] == [
        row["row"] for offset in (0, 4) for row in rows_of(client, seed=3, offset=offset, limit=4)
    ]


def test_a_document_tells_why(client: TestClient) -> None:
    short = client.get(f"/api/documents/{rows_of(client, which='gopher')[0]['row']}").json()
    words = next(score for score in short["scores"] if score["name"] == "words")
    assert (words["low"], words["within"], short["reason"].startswith("4 words"), short["profile"]) == (20, False, True, "web")
    trusted = client.get(f"/api/documents/{rows_of(client, source='texts')[0]['row']}").json()
    assert trusted["profile"] == "trusted"
    assert all(score["within"] for score in trusted["scores"])
    copy = client.get(f"/api/documents/{rows_of(client, which='near')[0]['row']}").json()
    partner = client.get(f"/api/documents/{copy['partner']['row']}").json()
    assert partner["id"] in copy["reason"]
    assert [other["id"] for other in partner["copies"]] == [copy["id"]]
    assert partner["rule"] == ""
    pieces = client.get(f"/api/compare/{copy['row']}/{partner['row']}").json()["pieces"]
    assert "".join(piece[1] for piece in pieces) == copy["text"]
    assert "".join(piece[2] for piece in pieces) == partner["text"]
    assert {piece[0] for piece in pieces} == {"same", "other"}
    assert client.get("/api/documents/6").status_code == 404


def test_every_rule_has_its_limit() -> None:
    """What the table of scores shows must be what the rules use: each rule's metric is limited by strict thresholds."""
    metrics = [name.split(".")[1].replace("toxic", "toxic_words").replace("low", "quality") for name in RULES]
    assert [name for name in metrics if limits(name, Thresholds()) == (None, None)] == []
    assert limits("curly", Thresholds(forbid_curly=False)) == (None, None) == limits("raw_bytes", Thresholds())


def test_differences_keep_both_texts() -> None:
    assert differences("a b c\nsame\n", "a x c\nsame\n") == [
        ("same", "a ", "a "),
        ("other", "b", "x"),
        ("same", " c\n", " c\n"),
        ("same", "same\n", "same\n"),
    ]
    long = "\n".join(str(number) for number in range(3000))
    assert differences(long, long[1:]) == [("other", long, long[1:])]


def test_the_original_is_shown_without_scripts_and_network(client: TestClient, documents: Path) -> None:
    row = rows_of(client, which="kept")[0]["row"]
    page = client.get(f"/original/{row}")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert policy.endswith("sandbox")
    assert (page.headers["content-type"], page.headers["x-content-type-options"]) == ("text/html; charset=utf-8", "nosniff")
    assert "<x-link rel=preconnect" in page.text
    assert not re.search("<(link|meta http)", page.text)
    source = client.get(f"/api/source/{row}").json()
    assert source["is_html"]
    assert source["text"] == (documents.parent / "pages" / "a.html").read_text(encoding="utf-8")
    defused = rendered(Raw(b"<META  http-equiv = 'Refresh' content=0><base href=/><iframe></iframe>", ""))
    assert defused.startswith("<x-META  http-equiv = 'Refresh' content=0><x-base href=/><x-iframe></x-iframe>")
    front = client.get("/")
    assert front.headers["content-security-policy"] == PAGE_POLICY
    assert "connect-src 'self'" in PAGE_POLICY


def test_an_original_that_is_gone_says_so(documents: Path, tmp_path: Path) -> None:
    copied = tmp_path / "documents"
    shutil.copytree(documents, copied)
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["config"]["sources"] = [{"name": "web", "path": "s3://bucket/pages"}, {"name": "texts", "path": str(tmp_path / "gone.jsonl")}]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    client = TestClient(create_app(Room(BrowseConfig(documents=copied))), base_url="http://127.0.0.1")
    assert "downloads are not kept" in client.get("/api/source/0").json()["detail"]
    assert "gone.jsonl" in client.get(f"/api/source/{rows_of(client, source='texts')[0]['row']}").json()["detail"]


def test_judgements_are_appended_and_taken_up(room: Room, client: TestClient, documents: Path) -> None:
    digest, kept, short = Artifact.load(documents).digest, rows_of(client, which="kept"), rows_of(client, which="gopher")[0]
    for row, verdict in ((kept[0], "good"), (kept[1], "bad"), (short, "good"), (kept[2], "unsure"), (kept[1], "good"), (kept[2], "none")):
        said = client.post("/api/judge", json={"id": row["id"], "verdict": verdict}).json()
    assert (said["judged"], said["kept_good"]["share"], said["rejected_good"]["share"]) == (3, 1.0, 1.0)
    assert said["agreement"]["hits"] == 2
    assert said["rules"]["gopher.words"]["share_good"]["number"] == 1
    lines = [json.loads(line) for line in room.judgements.path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 6
    assert lines[2] | {"time": ""} == {
        "id": short["id"],
        "verdict": "good",
        "rule": "gopher.words",
        "source": "web",
        "time": "",
    }
    with room.judgements.path.open("a") as file:
        file.write('{"id": "' + kept[2]["id"])  # a process was killed while it wrote
    again = Room(room.config)
    assert again.agreement() == said
    again.judge(kept[2]["id"], "bad")
    assert Room(room.config).judged == again.judged
    assert len(again.judged) == 4
    fresh = TestClient(create_app(again), base_url="http://127.0.0.1")
    assert {row["id"] for row in rows_of(fresh, judged="against")} == {short["id"], kept[2]["id"]}
    assert len(rows_of(fresh, judged="not")) == 2
    assert len(rows_of(fresh, judged="any")) == 4
    Artifact.load(documents, verify=True)
    assert Artifact.load(documents).digest == digest


def test_judging_is_for_this_page_only(client: TestClient, room: Room, documents: Path) -> None:
    body = {"id": rows_of(client)[0]["id"], "verdict": "good"}
    assert client.post("/api/judge", json=body, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.post("/api/judge", json=body, headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/api/about", headers={"Host": "evil.example"}).status_code == 400
    assert client.post("/api/judge", json={**body, "id": "0" * 32}).status_code == 409
    assert client.post("/api/judge", json={**body, "verdict": "great"}).status_code == 422
    assert not room.judgements.path.exists()
    assert client.post("/api/judge", json=body, headers={"Origin": "http://127.0.0.1"}).status_code == 200
    with pytest.raises(OpenmaiError, match="inside the artifact"):
        Room(BrowseConfig(documents=documents, judgements=documents / "judgements.jsonl"))


def test_export_feeds_the_quality_score(documents: Path, tmp_path: Path) -> None:
    room = Room(BrowseConfig(documents=documents, judgements=tmp_path / "mine.jsonl", texts=True))
    client = TestClient(create_app(room), base_url="http://127.0.0.1")
    good, bad = rows_of(client, which="kept")[0], rows_of(client, which="gopher")[0]
    client.post("/api/judge", json={"id": good["id"], "verdict": "good"})
    client.post("/api/judge", json={"id": bad["id"], "verdict": "bad"})
    files = client.post("/api/export", json={}).json()["files"]
    assert [(Path(file["path"]).name, file["documents"]) for file in files] == [("mine.good.jsonl", 1), ("mine.bad.jsonl", 1)]
    exported = json.loads((tmp_path / "mine.bad.jsonl").read_text(encoding="utf-8"))
    assert exported["id"] == bad["id"]
    assert exported["text"].endswith("Too short.")
    assert json.loads(room.judgements.path.read_text(encoding="utf-8").splitlines()[1])["text"] == exported["text"]


def test_shares_and_their_intervals() -> None:
    assert share(0, 0) is None
    half = share(5, 5)
    assert half
    assert (round(half["low"], 3), round(half["high"], 3)) == (0.237, 0.763)
    assert agreement([("", "good"), ("a.b", "unsure")])["rejected_good"] is None


def test_two_programs_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "shared.jsonl"
    pair = [Judgements(path), Judgements(path)]
    threads = [
        threading.Thread(target=lambda own=own, name=name: [own.add(f"{name}{n}", "good", text="x" * 9000) for n in range(20)])
        for name, own in enumerate(pair)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Judgements(path).verdicts) == 40


def test_the_overview_is_one_file_and_the_same_again(documents: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        status = main(
            [
                "data",
                "browse",
                f"--documents={documents}",
                f"--page={tmp_path / name}.html",
                f"--judgements={tmp_path / 'j'}",
                "--samples=4",
            ]
        )
        assert status == 0
    page = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert page == (tmp_path / "two.html").read_text(encoding="utf-8")
    for part in ("4 words, allowed 20", 'id="near.duplicate"', "By &lt;b&gt;hand", "Content-Security-Policy"):
        assert part in page
    assert "<script" not in page
    assert page.count("<article>") == 6
    room = Room(BrowseConfig(documents=documents, judgements=tmp_path / "j", page=tmp_path / "three.html"))
    room.judge(room.index.identity(0), "good")
    write_overview(room, tmp_path / "three.html")
    assert "Judged by people" in (tmp_path / "three.html").read_text(encoding="utf-8")


def test_what_cannot_be_browsed_is_said_before_it_is_read(documents: Path, tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(OpenmaiError, match="in use"):
        browse(BrowseConfig(documents=documents, port=taken.getsockname()[1]))
    with pytest.raises(OpenmaiError, match="no such folder"):
        Room(BrowseConfig(documents=tmp_path / "none"))


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture
def page(room: Room, spy: socket.socket) -> Iterator[object]:
    """The page in a browser; fails the test on script errors and when anything reaches the spy."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with listen("127.0.0.1", 0) as listener, playwright.sync_playwright() as library:
        server = uvicorn.Server(uvicorn.Config(create_app(room), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        address, problems = f"http://127.0.0.1:{listener.getsockname()[1]}", []
        browser = library.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        opened = browser.new_page(viewport={"width": 1440, "height": 900})
        opened.set_default_timeout(15_000)
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.goto(address)
        yield opened
        browser.close()
        server.should_exit = True
        thread.join(20)
        assert not problems
        with pytest.raises(BlockingIOError):
            spy.accept()


def test_the_page_shows_and_judges(page, room: Room) -> None:  # type: ignore[no-untyped-def]
    frame = page.frame_locator("#body iframe")
    frame.get_by_role("heading", name="Page a").wait_for()
    frame.get_by_role("link", name="leave").click(force=True)
    page.wait_for_timeout(300)
    assert page.locator("#body iframe").get_attribute("sandbox") == ""
    assert page.title() == "documents · openmai documents"
    for key in "gnbnu":  # faster than documents arrive: each verdict is for the document chosen by then
        page.keyboard.press(key)
    page.get_by_text("3: 1 ✓ 1 ✕ 1 ?").wait_for()
    assert room.judged == {0: "good", 1: "bad", 2: "unsure"}
    page.locator('[data-which="near.duplicate"]').click()
    page.get_by_role("button", name="compare").click()
    assert "A last sentence" in page.locator("#body .pane").first.locator("pre").inner_text()
    page.locator("#body mark").first.wait_for()
    page.get_by_label("Source").select_option("texts")
    page.locator('[data-which="all"]').click()
    page.get_by_role("tab", name="Text", exact=True).click()
    page.locator("#body pre", has_text="By <b>hand</b> & trusted.").wait_for()
    page.get_by_role("button", name="Write good.jsonl").click()
    page.get_by_text("positives and negatives").wait_for()
    assert room.judgements.path.with_suffix(".bad.jsonl").exists()

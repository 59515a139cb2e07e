"""pytest tests/test_data_crawl.py: a polite crawl of hostile and friendly sites on loopback, and a snapshot whose server hangs."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from loopback import Answer, Site, serve
from warcio.archiveiterator import ArchiveIterator
from warcio.checker import Checker

from openmai.base.artifact import Artifact
from openmai.base.config import validate
from openmai.base.errors import OpenmaiError
from openmai.data.capture import crawl as crawl_module
from openmai.data.capture import pydoc_server
from openmai.data.capture.archive import Log, Visit
from openmai.data.capture.config import CrawlConfig, SnapshotConfig
from openmai.data.capture.crawl import crawl
from openmai.data.capture.fetch import Fetched, _depth
from openmai.data.capture.links import read_marks, sitemap_entries
from openmai.data.capture.robots import Rules
from openmai.data.capture.snapshot import snapshot
from openmai.data.capture.urls import Scope, canonical
from openmai.data.read.config import Source
from openmai.data.read.sources import files_of, profile_of, read


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site()) as site:
        yield site


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the crawl would have slept, in order; it does not sleep."""
    taken: list[float] = []
    monkeypatch.setattr(crawl_module, "sleep", lambda seconds: taken.append(round(seconds, 1)) if seconds > 0 else None)
    return taken


def config_of(site: Site, out: Path, **settings: object) -> CrawlConfig:
    start = settings.pop("start", ["/"])
    return validate(CrawlConfig, {"out": out, "start": [site.base + path for path in start], "delay": 0, **settings}, "test")


def run(site: Site, out: Path, **settings: object) -> Artifact:
    return crawl(config_of(site, out, **settings))


def captured(artifact: Artifact | Path, site: Site) -> dict[str, bytes]:
    """Path -> body of each response in the archive, in its order."""
    path = (artifact.path if isinstance(artifact, Artifact) else artifact) / "pages.warc.gz"
    with open(path, "rb") as file:
        return {
            record.rec_headers.get_header("WARC-Target-URI").removeprefix(site.base): record.content_stream().read()
            for record in ArchiveIterator(file)
            if record.rec_type == "response"
        }


def skipped(artifact: Artifact, site: Site) -> dict[str, str]:
    found = json.loads((artifact.path / "skipped.json").read_text())
    return {url.removeprefix(site.base): reason.replace(site.base, "") for url, reason in found.items()}


# --- addresses, marks, rules ---


def test_one_spelling_for_an_address() -> None:
    drop = CrawlConfig(out=Path("x"), start=["http://localhost"]).drop_parameters
    for link, expected in {
        "HTTP://Example.ORG:80": "http://example.org/",
        "https://example.org:443/a/../b/./c#part": "https://example.org/b/c",
        "/%7euser/%c3%bc?x=%2f": "http://h/~user/%C3%BC?x=%2F",
        "ü?q=a b": "http://h/d/%C3%BC?q=a%20b",
        "?": "http://h/d/",
        "x?utm_source=a&id=3&gclid=x&UTM_TERM=1": "http://h/d/x?id=3",
        "x;jsessionid=A1B2?y": "http://h/d/x?y",
        "//other/z": "http://other/z",
        "a\n b": "http://h/d/a%20b",
        "http://user:secret@h/": "http://h/",
        "mailto:a@b.c": "",
        "javascript:void(0)": "",
        "http://[broken": "",
        "x" * 3000: "",
    }.items():
        assert canonical(link, "http://h/d/", drop) == expected, link


def test_scope() -> None:
    scope = Scope(["https://docs.example.org/a"], ["Example.org"], ["https://docs.example.org/guide/", "http://example.org/"], [r"\?print"])
    inside = ["https://docs.example.org/guide/x", "http://example.org/y"]
    outside = ["https://docs.example.org/api", "https://evil.org/guide/", "http://example.org:8080/", "http://example.org/y?print=1"]
    assert [scope.holds(url) for url in inside + outside] == [True, True, False, False, False, False]
    with pytest.raises(OpenmaiError, match=r"exclude: '\(' is not a regular expression"):
        Scope(["http://h/"], [], [], ["("])


def test_marks_of_a_page() -> None:
    body = b"""<base href="/sub/"><meta name=ROBOTS content="NoIndex, follow"><link rel="canonical" href="/sub/p?utm_x=1">
    <a href="b">b</a><a rel="external nofollow" href=c>c</a><area href=d><a href=b#2>b</a><a name=x>x</a><a href="mailto:x@y">m</a>"""
    marks = read_marks(body, "http://h/p", "utf-8", [], True, ["utm_*"])
    assert marks == type(marks)(("http://h/sub/b", "http://h/sub/d"), "http://h/sub/p", True)
    assert read_marks(body, "http://h/p", "utf-8", [], False, []).links == ("http://h/sub/b", "http://h/sub/c", "http://h/sub/d")
    plain = b"<a href=/b>b</a>"
    for value, links, noindex in [
        ("otherbot: none", 1, False),
        ("openmai: noindex", 1, True),
        ("none", 0, True),
        ("max-snippet: 3", 1, False),
    ]:
        marks = read_marks(plain, "http://h/", "no-such-charset", [value], True, [])
        assert (len(marks.links), marks.noindex) == (links, noindex)
    assert read_marks(b"<meta name=openmai content=nofollow>" + plain, "http://h/", "utf-8", [], True, []).links == ()


def test_robots_rules_of_rfc_9309() -> None:
    text = "User-agent: *\nDisallow: /\n\nUser-agent: OpenMai\nDisallow: /private*.html$\nAllow: /private/open\n"
    text += "Disallow: /private/\nCrawl-delay: 2.5\n"
    rules = Rules(text, time.time())
    paths = ["/", "/private/x", "/private/open/x", "/private-a.html", "/private-a.html?x", "/robots.txt"]
    assert [rules.allow(f"http://h{path}") for path in paths] == [True, False, True, False, True, True]
    assert rules.delay == 2.5
    assert Rules("User-agent: *\nRequest-rate: 1/5", 0).delay == 5
    assert Rules("<html>not a robots.txt</html>", time.time()).allow("http://h/x")
    assert not Rules("", time.time(), "unreachable").allow("http://h/x")
    assert [Rules("", time.time() - age).is_stale() for age in (3600, 90_000)] == [False, True]


def test_sitemap_entries() -> None:
    xml = b"<urlset><url><loc> http://h/a?x=1&amp;y=2 </loc></url><url><loc><![CDATA[http://h/b]]></loc></url></urlset>"
    assert sitemap_entries(xml) == sitemap_entries(gzip.compress(xml)) == (False, ["http://h/a?x=1&y=2", "http://h/b"])
    assert sitemap_entries(b"<sitemapindex><sitemap><loc>http://h/s</loc></sitemap></sitemapindex>") == (True, ["http://h/s"])
    assert sitemap_entries(b"http://h/a\nhttp://h/b\n") == (False, ["http://h/a", "http://h/b"])
    assert sitemap_entries(b"\x1f\x8bbroken") == (False, [])


# --- whole crawls ---


def test_a_site_breadth_first_with_its_wishes_honoured(site: Site, tmp_path: Path) -> None:
    site.pages["/robots.txt"] = Answer(b"User-agent: openmai\nDisallow: /secret\n")
    site.html(
        "/", "/b", "/a#top", "/a?utm_source=x", "/secret/x", "http://elsewhere.example/", "/deep", '<a rel="nofollow" href="/login">l</a>'
    )
    site.html("/a", "/deep", "/", text="a", head='<meta name="robots" content="nofollow">')
    site.html("/b", "/c", "/image", text="b", X_Robots_Tag="noindex")
    site.html("/c", "/missing", text="c")
    site.html("/deep", "/deeper", text="deep")
    site.pages["/image"] = Answer(b"\x89PNG", headers={"Content-Type": "image/png"})
    artifact = run(site, tmp_path / "crawl", max_depth=2)
    assert site.paths() == ["/robots.txt", "/", "/b", "/a", "/deep", "/c", "/image", "/deeper"]
    assert list(captured(artifact, site)) == ["/", "/a", "/deep", "/c"]
    assert skipped(artifact, site) == {
        "/secret/x": "robots.txt",
        "/b": "noindex",
        "/image": "content type image/png",
        "/deeper": "HTTP 404",
    }
    agents = {asked.headers["user-agent"].split("/")[0] for asked in site.asked}
    assert agents == {"openmai"}
    assert (artifact.metrics["pages"], artifact.metrics["visited"], artifact.metrics["profile"]) == (4, 8, "web")
    asked = len(site.asked)
    assert run(site, tmp_path / "crawl", max_depth=2, delay=5).digest == artifact.digest
    assert len(site.asked) == asked
    source = Source(name="site", path=str(artifact.path))
    pages = [record for file in files_of(source, tmp_path) for record in read(file, source)]
    assert [(page.url.removeprefix(site.base), page.status) for page in pages] == [("/", 200), ("/a", 200), ("/deep", 200), ("/c", 200)]
    assert profile_of(source) == "web"


def test_robots_can_be_switched_off_for_a_site_of_ones_own(site: Site, tmp_path: Path) -> None:
    site.pages["/robots.txt"] = Answer(b"User-agent: *\nDisallow: /\n")
    site.html("/", '<a rel="nofollow" href="/a">a</a>', head='<meta name="robots" content="none">')
    site.html("/a", text="a")
    with pytest.raises(OpenmaiError, match=r"no page could be captured \(.*: robots\.txt\)"):
        run(site, tmp_path / "obeyed")
    assert list(captured(run(site, tmp_path / "own", obey_robots=False), site)) == ["/", "/a"]


@pytest.mark.parametrize(("answer", "pages"), [(Answer(b"", 404), 1), (Answer(b"", 403), 1), (Answer(b"", 503), 0), (Answer(b"", 429), 0)])
def test_robots_that_is_missing_allows_and_one_that_fails_forbids(
    site: Site, tmp_path: Path, pauses: list[float], answer: Answer, pages: int
) -> None:
    site.html("/")
    site.pages["/robots.txt"] = answer
    if pages:
        assert run(site, tmp_path / "crawl").metrics["pages"] == pages
        return
    with pytest.raises(OpenmaiError, match=rf"robots.txt unreachable: HTTP {answer.status}"):
        run(site, tmp_path / "crawl")
    assert set(site.paths()) == {"/robots.txt"}
    site.pages["/robots.txt"] = [Answer(status=301, headers={"Location": "/moved.txt"})]  # what was unreachable is asked for again
    site.pages["/moved.txt"] = Answer(b"User-agent: *\nAllow: /\n")
    assert run(site, tmp_path / "crawl").metrics["pages"] == 1


def test_the_site_sets_the_pace(site: Site, tmp_path: Path, pauses: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    site.pages["/robots.txt"] = Answer(b"User-agent: *\nCrawl-delay: 7\n")
    site.html("/", "/a")
    site.html("/a", text="a")
    run(site, tmp_path / "asked", delay=2)
    assert pauses == [7.0, 7.0]
    assert "asks for 7 s between two requests" in capfd.readouterr().err
    del site.pages["/robots.txt"], pauses[:]
    run(site, tmp_path / "own", delay=2)
    assert pauses == [2.0, 2.0]


def test_redirects_are_followed_and_recorded_within_the_site(site: Site, tmp_path: Path) -> None:
    site.html("/", "/old", "/loop", "/endless?n=0", "/out", "/new")
    site.html("/new", text="new")
    for path, target in {"/old": "new#x", "/loop": "/loop2", "/loop2": "/loop", "/out": "http://10.0.0.1/admin"}.items():
        site.pages[path] = Answer(status=302, headers={"Location": target})

    def endless(handler: BaseHTTPRequestHandler) -> Answer:
        return Answer(status=301, headers={"Location": f"/endless?n={int(handler.path.partition('=')[2]) + 1}"})

    site.pages["/endless"] = endless
    artifact = run(site, tmp_path / "crawl", max_redirects=3)
    assert list(captured(artifact, site)) == ["/", "/old", "/loop", "/loop2", *[f"/endless?n={n}" for n in range(4)], "/new"]
    assert skipped(artifact, site) == {
        "/endless?n=3": "more than 3 redirects in a row",
        "/out": "redirect out of the site: http://10.0.0.1/admin",
    }
    assert site.paths().count("/loop") == site.paths().count("/new") == 1
    assert artifact.metrics["pages"] == 2


def test_a_public_site_cannot_lead_to_this_machine(site: Site, tmp_path: Path) -> None:
    site.html("/", "/a")
    for host in ("inner.test", "also.test"):
        with pytest.raises(OpenmaiError, match="contact: the site's operator must be able to reach you"):
            validate(CrawlConfig, {"out": tmp_path, "start": [f"http://{host}/"]}, "test")
    config = config_of(site, tmp_path / "crawl")
    with crawl_module.Fetcher(config) as fetcher:
        fetcher.start, fetcher.depths["127.0.0.1"] = 0, 2
        with pytest.raises(crawl_module.FetchError, match="inside this network") as caught:
            fetcher.get(f"{site.base}/", lambda answer: True, 1000)
        assert not caught.value.again
    assert site.asked == []
    assert [
        _depth(ip) for ip in ("93.184.216.34", "10.1.2.3", "169.254.169.254", "::1", "fe80::1%eth0", "::ffff:127.0.0.1", "0.0.0.0")
    ] == [*(0, 1, 2, 2, 2, 2, 2)]


def test_duplicates_by_content_and_by_canonical_mark(site: Site, tmp_path: Path) -> None:
    site.html("/", "/p?view=1", "/p?view=2", "/same", "/same2", "/q")
    for view in "12":
        site.html(f"/p?view={view}", text=f"view {view}", head='<link rel="canonical" href="/p">')
    site.pages["/same"] = site.pages["/same2"] = Answer(b'<a href="deeper/same">same</a>', headers={"Content-Type": "text/html"})
    site.pages["/deeper/same"] = site.pages["/deeper/deeper/same"] = site.pages["/same"]
    site.html("/q", text="q", head='<link rel="canonical" href="/">')  # a mark that names another page is not believed
    artifact = run(site, tmp_path / "crawl")
    assert list(captured(artifact, site)) == ["/", "/p?view=1", "/same", "/q"]
    assert skipped(artifact, site) == {
        "/p?view=2": "same page as /p?view=1, by its canonical mark",
        "/same2": "same content as /same",
        "/deeper/same": "same content as /same",
    }


def trickle(site: Site, chunks: int, pause: float) -> object:
    """Return a page that sends 1 kB now and then."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.end_headers()
        handler.close_connection = True
        handler.wfile.write(b'<a href="/linked">l</a>')
        for _ in range(chunks):
            if site.stop.wait(pause):
                return
            handler.wfile.write(b"word " * 200)

    return send


def hang(site: Site) -> object:
    """Return a page that never answers."""

    def wait(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        site.stop.wait(20)

    return wait


def drip(site: Site) -> object:
    """Return a page whose headers never end."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not site.stop.wait(0.05):
            handler.wfile.write(b"X: y\r\n")

    return send


def test_pages_that_hang_trickle_or_never_end(site: Site, tmp_path: Path) -> None:
    site.html("/", "/hang", "/drip", "/trickle", "/endless", "/bomb", "/cut", "/last")
    site.html("/last")
    site.html("/linked", text="linked")
    site.pages |= {"/hang": hang(site), "/drip": drip(site), "/trickle": trickle(site, 1000, 0.05), "/endless": trickle(site, 10**6, 0)}
    bomb = gzip.compress(b"<p>" + b"0" * 50_000_000)
    site.pages["/bomb"] = Answer(bomb, headers={"Content-Type": "text/html", "Content-Encoding": "gzip"})
    site.pages["/cut"] = Answer(b"<p>half", headers={"Content-Type": "text/html"}, length=1000)
    artifact = run(site, tmp_path / "crawl", page_timeout=0.6, read_timeout=0.3, max_page_megabytes=0.1, retries=0)
    bodies = captured(artifact, site)
    assert list(bodies) == ["/", "/trickle", "/endless", "/bomb", "/last", "/linked"]
    assert len(bodies["/endless"]) == len(bodies["/bomb"]) == 100_000
    assert 0 < len(bodies["/trickle"]) < 50_000
    reasons = skipped(artifact, site)
    assert (reasons["/hang"], reasons["/drip"]) == ("silent for 0.3 s", "no answer in 0.6 s")
    assert set(reasons) == {"/hang", "/drip", "/cut"}
    assert artifact.metrics["truncated"] == 3
    with open(artifact.path / "pages.warc.gz", "rb") as file:
        marks = {
            record.rec_headers.get_header("WARC-Target-URI").removeprefix(site.base): record.rec_headers.get_header("WARC-Truncated")
            for record in ArchiveIterator(file)
            if record.rec_type == "response"
        }
    assert marks == {"/": None, "/trickle": "time", "/endless": "length", "/bomb": "length", "/last": None, "/linked": None}


def test_busy_servers_are_waited_for(site: Site, tmp_path: Path, pauses: list[float]) -> None:
    ok = Answer(b"<p>at last</p>", headers={"Content-Type": "text/html"})
    site.html("/", "/slow", "/shaky", "/broken")
    site.pages["/slow"] = [Answer(status=429, headers={"Retry-After": "30"}), ok]
    site.pages["/shaky"] = [Answer(status=503), Answer(status=503), Answer(b"<p>well</p>", headers={"Content-Type": "text/html"})]
    site.pages["/broken"] = Answer(status=500)
    artifact = run(site, tmp_path / "crawl", retries=2)
    assert list(captured(artifact, site)) == ["/", "/slow", "/shaky"]
    assert skipped(artifact, site) == {"/broken": "HTTP 500"}
    assert pauses == [30.0, 1.0, 2.0, 1.0, 2.0]
    site.pages["/slow"] = [Answer(status=429, headers={"Retry-After": "9000"})]
    with pytest.raises(OpenmaiError, match=r"asks to come back in 9000 s; run the same command again then"):
        run(site, tmp_path / "refused")
    assert (tmp_path / "refused/.work.json").exists()


def test_a_site_that_goes_down_ends_the_crawl_and_is_gone_on_with(site: Site, tmp_path: Path, pauses: list[float]) -> None:
    site.html("/", *[f"/p{n}" for n in range(6)])
    for number in range(6):
        site.html(f"/p{number}", text=str(number))
    whole = captured(run(site, tmp_path / "undisturbed"), site)
    down = {path: site.pages.pop(path) for path in ("/p2", "/p3", "/p4")}
    site.pages |= dict.fromkeys(down, Answer(status=503))
    with pytest.raises(OpenmaiError, match=r"3 addresses in a row failed, the last with 'HTTP 503'; 3 pages are kept: run the same"):
        run(site, tmp_path / "crawl", max_failures=3)
    site.pages |= down
    site.asked.clear()
    artifact = run(site, tmp_path / "crawl", max_failures=3)
    assert captured(artifact, site) == whole
    assert site.paths() == ["/p2", "/p3", "/p4", "/p5"]


def test_limits_and_sitemap(site: Site, tmp_path: Path) -> None:
    site.pages["/robots.txt"] = Answer(f"Sitemap: {site.base}/map.xml\nSitemap: http://other.example/map.xml".encode())
    site.pages["/map.xml"] = Answer(f"<sitemapindex><sitemap><loc>{site.base}/m1.gz</loc></sitemap></sitemapindex>".encode())
    entries = "".join(f"<url><loc>{site.base}/s{n}</loc></url>" for n in range(3)) + "<url><loc>http://other.example/</loc></url>"
    site.pages["/m1.gz"] = Answer(gzip.compress(f"<urlset>{entries}</urlset>".encode()))
    site.html("/", "/x")
    for path in ("/s0", "/s1", "/s2", "/x"):
        site.html(path, text="words " * 50)
    artifact = run(site, tmp_path / "map", sitemap=True)
    assert list(captured(artifact, site)) == ["/", "/s0", "/s1", "/s2", "/x"]
    assert run(site, tmp_path / "pages", sitemap=True, max_pages=3).metrics["left_in_queue"] == 2
    assert run(site, tmp_path / "bytes", sitemap=True, max_megabytes=0.0007).metrics["pages"] == 3
    assert run(site, tmp_path / "visits", sitemap=True, max_requests=2).metrics["pages"] == 2
    assert run(site, tmp_path / "prefix", start=["/s0"], prefix=[f"{site.base}/s"], sitemap=True).metrics["pages"] == 3
    with pytest.raises(OpenmaiError, match=r"start: .*/x is outside `prefix`"):
        run(site, tmp_path / "outside", start=["/x"], prefix=[f"{site.base}/s"])


def test_the_archive_is_whole_and_says_what_was_asked(site: Site, tmp_path: Path) -> None:
    page = gzip.compress("<p>naïve café</p>".encode())
    site.pages["/"] = Answer(page, headers={"Content-Type": "text/html; charset=utf-8", "Content-Encoding": "gzip", "X-Two": "2"})
    artifact = run(site, tmp_path / "crawl", contact="mailto:me@example.org")
    path = artifact.path / "pages.warc.gz"
    with open(path, "rb") as file:
        records = []
        for record in ArchiveIterator(file, check_digests="raise"):
            records.append((record.rec_type, dict(record.rec_headers.headers), record.http_headers, record.content_stream().read()))
    assert [kind for kind, *_ in records] == ["warcinfo", "response", "request"]
    assert b"operator: mailto:me@example.org" in records[0][3]
    _, facts, http, body = records[1]
    assert body.decode() == "<p>naïve café</p>"
    assert http.get_header("X-Crawler-Content-Encoding") == "gzip"
    assert int(http.get_header("Content-Length")) == len(body)
    assert http.get_header("X-Two") == "2"
    assert (facts["WARC-IP-Address"], "WARC-Truncated" in facts) == ("127.0.0.1", False)
    _, asked, request, _ = records[2]
    assert asked["WARC-Concurrent-To"] == facts["WARC-Record-ID"]
    assert (request.protocol, request.statusline) == ("GET", "/ HTTP/1.1")
    assert "(+mailto:me@example.org)" in request.get_header("user-agent")
    with open(path, "rb") as file:
        assert file.read(4096).count(b"\x1f\x8b\x08") == 3  # one member per record
    checker = Checker(type("Arguments", (), {"inputs": [str(path)], "verbose": False}))
    checker.process_all()
    assert checker.exit_value == 0


def test_an_answer_says_when_to_come_again() -> None:
    def seconds(value: str) -> float:
        return Fetched("", 429, "", [("Retry-After", value)], []).retry_after()

    assert seconds("12") == 12
    assert seconds("Wed, 01 Jan 2020 00:00:00 GMT") == 0
    assert seconds("Fri, 01 Jan 2100 00:00:00 GMT") > 1e9
    assert seconds("soon") == seconds("") == 0


def test_log_drops_what_was_not_finished(tmp_path: Path) -> None:
    path, archive = tmp_path / "log", tmp_path / "archive"
    archive.write_bytes(b"x" * 100)
    visits = [Visit("http://h/a", "page", links=("http://h/b",), end=60), Visit("http://h/b", "skipped", "HTTP 404", 404, end=60)]
    lines = "".join(visit.to_line() for visit in visits)
    for rest in ("", '{"url": "http://h/c", "ki', Visit("http://h/c", "page", end=101).to_line() + Visit("http://h/d", "page").to_line()):
        path.write_text(lines + rest)
        log = Log(path, archive)
        assert ([log.next(), log.next(), log.next()], log.end) == ([*visits, None], 60)
        log.close()
        assert path.read_text() == lines


def test_a_killed_crawl_goes_on_and_gives_the_same_pages(site: Site, tmp_path: Path) -> None:
    for number in range(30):
        site.html(f"/{number or ''}", *[f"/{number * 2 + n}" for n in (1, 2)], text="x" * 5000)
    site.pages["/7"] = Answer(status=301, headers={"Location": "/29"})
    site.pages["/robots.txt"] = Answer(b"User-agent: *\nDisallow: /9\n")
    config = config_of(site, tmp_path / "killed")
    whole = crawl(config_of(site, tmp_path / "whole"))
    served = site.pages["/11"]
    site.pages["/11"] = hang(site)
    process = subprocess.Popen(
        [sys.executable, "-m", "openmai", "data", "crawl", f"--out={config.out}", f"--start={site.base}/", "--delay=0"],
        env=os.environ | {"OPENMAI_QUIET": "1"},
        stderr=subprocess.PIPE,
    )
    site.asked.clear()
    until = time.monotonic() + 60
    while "/11" not in site.paths():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    site.pages["/11"] = served
    with open(config.out / "pages.warc.gz", "ab") as file:
        file.write(gzip.compress(b"WARC/1.1\r\nhalf a record")[:-5])
    with open(config.out / "crawl.jsonl", "a") as file:
        file.write('{"url": "http://127.0')
    before = set(site.paths())
    site.asked.clear()
    artifact = crawl(config)
    assert not (before - {"/11"}) & set(site.paths())  # nothing is asked for twice
    assert list(captured(artifact, site).items()) == list(captured(whole, site).items())
    assert (artifact.path / "skipped.json").read_text() == (whole.path / "skipped.json").read_text()
    assert artifact.metrics == whole.metrics
    with open(artifact.path / "pages.warc.gz", "rb") as file:
        assert sum(1 for _ in ArchiveIterator(file, check_digests="raise")) == 1 + 2 * len(captured(whole, site))


# --- the snapshot of the documentation server ---

_FAKE_PYDOC = """
import http.server, sys, time, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/csv.html":
            time.sleep(60)
        links = "".join(f'<a href="json.{name}.html">x</a>' for name in ("decoder", "encoder")) if self.path == "/json.html" else ""
        body = f"<html>{self.path} {links}</html>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
print(f"at http://127.0.0.1:{server.server_port}/", flush=True)
sys.stdin.read()
"""


def test_snapshot_skips_a_page_that_hangs_and_starts_the_server_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydoc_server, "_SERVE", _FAKE_PYDOC)
    artifact = snapshot(SnapshotConfig(out=tmp_path / "snapshot", packages=["csv", "json"], page_timeout=1.0, servers=1))
    assert json.loads((artifact.path / "skipped.json").read_text()) == {"csv.html": "no answer in 1 s"}
    with open(artifact.path / "pages.warc.gz", "rb") as file:
        records = [(r.rec_type, r.rec_headers.get_header("WARC-Target-URI"), r.content_stream().read()) for r in ArchiveIterator(file)]
    assert [(kind, url.rpartition("/")[2]) for kind, url, _ in records[1:]] == [
        ("metadata", "csv.html"),
        ("response", "json.html"),
        ("response", "json.decoder.html"),
        ("response", "json.encoder.html"),
    ]
    assert json.load(io.BytesIO(records[1][2]))["skipped"] == "no answer in 1 s"
    assert artifact.metrics["pages"] == 3

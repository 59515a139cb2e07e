"""pytest tests/test_data_remote.py: sources that lie elsewhere, against servers on loopback: HTTP, object stores, Common Crawl, the Hub."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loopback import Answer, Site, serve
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from openmai.base.artifact import Artifact, create
from openmai.base.config import Config, validate
from openmai.base.errors import OpenmaiError
from openmai.data.read import commoncrawl, download, huggingface, remote
from openmai.data.read.commoncrawl import Query, check_record, fetch_commoncrawl
from openmai.data.read.config import CommonCrawl, HuggingFace, Source
from openmai.data.read.sources import files_of, local_input, read

TEXTS = [f"Text number {number}: naïve café." for number in range(8)]


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site()) as site:
        yield site


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that downloads would have waited; they do not wait."""
    taken: list[float] = []
    monkeypatch.setattr(download, "sleep", taken.append)
    return taken


def texts(files: list[Path], source: Source) -> list[str]:
    return [record.content.decode() for file in files for record in read(file, source)]


# --- HTTP ---


def test_download_waits_for_a_busy_server(site: Site, pauses: list[float]) -> None:
    busy = [Answer(status=503), Answer(status=429, headers={"Retry-After": "7"}), Answer(b"half", length=100), Answer(b"whole")]
    site.pages["/x"] = busy
    assert download.download(f"{site.base}/x") == b"whole"
    assert pauses == [1.0, 7.0, 4.0]
    for answer, match in (
        (Answer(status=404), "answers 404 Not Found; check the name"),
        (Answer(status=401), "wants credentials"),
        (Answer(status=503, headers={"Retry-After": "9999"}), "asks to come back in 9999 s"),
        (Answer(status=503), f"answers 503 Service Unavailable, {download.TRIES} times"),
        (Answer(status=302, headers={"Location": "/x"}), "edirects"),
    ):
        site.pages["/x"] = answer
        with pytest.raises(OpenmaiError, match=match):
            download.download(f"{site.base}/x")
    with pytest.raises(OpenmaiError, match=r"127.0.0.1:9: cannot be reached.*name local files"):
        download.download("http://127.0.0.1:9/x")


def test_a_range_is_whole_or_an_error(site: Site) -> None:
    site.pages["/x"] = Answer(b"0123456789", ranges=True)
    assert download.download_range(f"{site.base}/x", 3, 4) == b"3456"
    with pytest.raises(OpenmaiError, match="2 of 5 bytes"):
        download.download_range(f"{site.base}/x", 8, 5)
    site.pages["/x"] = Answer(b"0123456789")
    with pytest.raises(OpenmaiError, match="gives only whole files"):
        download.download_range(f"{site.base}/x", 3, 4)


def test_a_broken_off_download_goes_on_where_it_stood(site: Site, tmp_path: Path) -> None:
    body, mark = bytes(range(256)) * 10_000, {"ETag": '"v1"'}
    cut = Answer(body[:1_000_000], headers=mark, length=len(body))
    site.pages["/x"] = [Answer(body, headers=mark), cut, Answer(body, headers=mark, ranges=True)]
    facts = download.describe(f"{site.base}/x")
    assert facts == download.Facts(len(body), '"v1"')
    counted: list[int] = []
    download.download_file(f"{site.base}/x", tmp_path / "x", facts, counted.append)
    assert (tmp_path / "x").read_bytes() == body
    assert sum(counted) == len(body)
    assert [asked.headers.get("range") for asked in site.asked] == [None, None, "bytes=1000000-"]
    assert site.asked[-1].headers["if-range"] == '"v1"'
    # Another process goes on with the part that lies there; of a file that has changed nothing is kept.
    (tmp_path / ".y.part").write_bytes(body[:500])
    download.download_file(f"{site.base}/x", tmp_path / "y", facts)
    assert site.asked[-1].headers["range"] == "bytes=500-"
    (tmp_path / ".z.part").write_bytes(b"old" * 100)
    site.pages["/x"] = Answer(body[::-1], headers={"ETag": '"v2"'}, ranges=True)
    download.download_file(f"{site.base}/x", tmp_path / "z", download.Facts(len(body), '"v1"'))
    assert (tmp_path / "z").read_bytes() == body[::-1]
    (tmp_path / ".w.part").write_bytes(b"unknown")  # without a mark nothing says that it is the same file
    download.download_file(f"{site.base}/x", tmp_path / "w", download.Facts(len(body), ""))
    assert (tmp_path / "w").read_bytes() == body[::-1]
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []
    site.pages["/x"] = Answer(body, headers=mark)
    with pytest.raises(OpenmaiError, match=rf"{len(body)} of 77 bytes"):
        download.download_file(f"{site.base}/x", tmp_path / "v", download.Facts(77, '"v1"'))
    assert not (tmp_path / "v").exists()


def test_a_source_on_a_web_server(site: Site, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    site.pages["/data/my%20set.jsonl.gz"] = Answer(gzip.compress(lines.encode(), mtime=0), headers={"ETag": '"1"'}, ranges=True)
    source = Source(name="s", path=f"{site.base}/data/my%20set.jsonl.gz")
    files = files_of(source, tmp_path)
    assert [file.name for file in files] == ["my set.jsonl.gz"]
    assert texts(files, source) == TEXTS
    asked = len(site.asked)
    assert files_of(source, tmp_path) == files
    assert [one.method for one in site.asked[asked:]] == ["HEAD"]
    (before,) = local_input(source)
    site.pages["/data/my%20set.jsonl.gz"].headers["ETag"] = '"2"'
    (after,) = local_input(source)
    assert (before.path, before.digest != after.digest) == (source.path, True)
    assert files_of(source, tmp_path) != files
    for path, match in (("/none.txt", "answers 404"), ("/*.txt", "cannot list its files"), ("/data/my%20set.exe", "answers 404")):
        with pytest.raises(OpenmaiError, match=match):
            files_of(Source(name="s", path=site.base + path), tmp_path)


# --- object stores ---


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """An object store in memory."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def test_a_source_in_an_object_store(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    for number in range(3):
        memory.pipe(f"/bucket/texts/{number}.txt", TEXTS[number].encode())
    memory.pipe("/bucket/texts/deep/3.txt", TEXTS[3].encode())
    memory.pipe("/bucket/texts/ignored.bin", b"\0")
    for path, expected in {
        "memory://bucket/texts/1.txt": TEXTS[1:2],
        "memory://bucket/texts/*.txt": TEXTS[:3],
        "memory://bucket/texts/[02].txt": [TEXTS[0], TEXTS[2]],
        "memory://bucket/texts": TEXTS[:4],
        "memory://bucket/**/3.txt": TEXTS[3:4],
    }.items():
        source = Source(name="s", path=path)
        assert texts(files_of(source, tmp_path / "downloads"), source) == expected, path
    source = Source(name="s", path="memory://bucket/texts/*.txt")
    files, (before,) = files_of(source, tmp_path / "downloads"), local_input(source)
    memory.pipe("/bucket/texts/2.txt", b"changed")
    (after,) = local_input(source)
    assert before.digest != after.digest
    changed = files_of(source, tmp_path / "downloads")
    assert [old == new for old, new in zip(files, changed, strict=True)] == [True, True, False]
    assert changed[2].read_bytes() == b"changed"
    for path, match in (
        ("memory://bucket/none.txt", "no such file, folder or bucket"),
        ("memory://bucket/*.md", "nothing there"),
        ("memory://bucket/texts/ignored.bin", "ignored.bin is of an unknown kind"),
        ("nope://x/y.txt", "nope:// is not known; known: file, http"),
    ):
        with pytest.raises(OpenmaiError, match=match):
            files_of(Source(name="s", path=path), tmp_path)


def test_a_local_address_is_read_in_place(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXTS[0])
    assert files_of(Source(name="s", path=f"file://{tmp_path}/*.txt"), tmp_path / "downloads") == [tmp_path / "a.txt"]


def test_a_copy_goes_on_and_notices_change(memory: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_CHUNK", 1000)
    body = bytes(range(256)) * 20
    memory.pipe("/bucket/x.txt", body)
    (file,) = remote.find("memory://bucket/x.txt")
    asked: list[int] = []
    real = memory.cat_file

    def cat_file(path: str, start: int, end: int) -> bytes:
        asked.append(start)
        if len(asked) == 4:
            raise ConnectionResetError("connection reset")
        return real(path, start=start, end=end)

    monkeypatch.setattr(type(memory), "cat_file", lambda self, path, start, end: cat_file(path, start, end))
    with pytest.raises(OpenmaiError, match="connection reset; check the address"):
        remote.bring([file], tmp_path)
    (target,) = remote.bring([file], tmp_path)
    assert target.read_bytes() == body
    assert asked == [0, 1000, 2000, 3000, 3000, 4000, 5000]
    memory.pipe("/bucket/x.txt", body * 2)
    with pytest.raises(OpenmaiError, match="changed while it was downloaded"):
        remote.bring([file], tmp_path / "again")
    assert not list((tmp_path / "again").rglob("*x.txt*"))


class NoCredentialsError(Exception):
    """As botocore's."""


NoCredentialsError.__module__ = "botocore.exceptions"


@pytest.mark.parametrize(
    ("url", "error", "match"),
    [
        ("s3://b/x", ImportError("Install s3fs to access S3"), r"reading s3:// needs the package s3fs; pip install s3fs"),
        ("gs://b/x", ImportError("x"), r"needs the package gcsfs; pip install gcsfs"),
        ("sftp://b/x", ImportError("x"), r'needs another package \(SFTPFileSystem requires "paramiko"'),
        ("s3://b/x", PermissionError("Forbidden"), r"access refused \(Forbidden\); set AWS_ACCESS_KEY_ID .* FSSPEC_S3_ANON=true"),
        ("s3://b/x", NoCredentialsError("Unable to locate credentials"), r"access refused .*AWS_PROFILE"),
        ("gs://b/x", PermissionError("no"), r"gcloud auth application-default login"),
        ("s3://b/x", FileNotFoundError("The specified bucket does not exist"), r"no such file, folder or bucket"),
        ("s3://b/x", TimeoutError("timed out"), r"timed out; check the address and the connection"),
    ],
)
def test_what_a_store_raises_becomes_a_line_with_a_remedy(url: str, error: Exception, match: str) -> None:
    with pytest.raises(OpenmaiError, match=match), remote.explained(url):
        raise error


def test_errors_that_are_not_the_stores_go_on() -> None:
    for error in (KeyError("x"), OpenmaiError("plain"), AssertionError("ours"), OSError(28, "No space left on device")):
        with pytest.raises(type(error)) as caught, remote.explained("s3://b/x"):
            raise error
        assert caught.value is error


# --- Common Crawl ---


class Crawl:
    """A small Common Crawl behind a site: its archive, its index in pages of two rows, its lists of files."""

    def __init__(self, site: Site) -> None:
        self.site, self.rows, archive = site, [], io.BytesIO()
        writer = WARCWriter(archive, gzip=True)
        for number, text in enumerate(TEXTS):
            url, start = f"http://{'www.' * (number % 2)}example.org/docs/{number}.html", archive.tell()
            http = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
            record = writer.create_warc_record(url, "response", io.BytesIO(text.encode()), http_headers=http)
            writer.write_record(record)
            self.rows.append(
                {
                    "url": url,
                    "status": "200",
                    "mime": "text/html",
                    "mime-detected": "text/html",
                    "languages": "eng,deu" if number != 2 else "deu",
                    "digest": base64.b32encode(hashlib.sha1(text.encode()).digest()).decode(),
                    "filename": "crawl-data/CC-TEST/a.warc.gz",
                    "offset": str(start),
                    "length": str(archive.tell() - start),
                }
            )
        self.archive = Answer(archive.getvalue(), headers={"ETag": '"a"'}, ranges=True)
        site.pages["/crawl-data/CC-TEST/a.warc.gz"] = self.archive
        site.pages["/CC-TEST-index"] = self.index

    def index(self, handler: BaseHTTPRequestHandler) -> Answer:
        query = parse_qs(urlsplit(handler.path).query)
        if "showNumPages" in query:
            pages = (len(self.rows) + 1) // 2
            return Answer(json.dumps({"pages": pages, "pageSize": 5, "blocks": pages}).encode()) if pages else Answer(b"{}", 404)
        page = int(query["page"][0])
        return Answer("".join(json.dumps(row) + "\n" for row in self.rows[2 * page : 2 * page + 2]).encode())

    def config(self, **settings: object) -> CommonCrawl:
        values = {"crawl": "CC-TEST", "url": "example.org/docs/*", "index": self.site.base, "files": self.site.base + "/", **settings}
        return validate(CommonCrawl, values, "test")


@pytest.fixture
def crawl(site: Site) -> Crawl:
    return Crawl(site)


def test_url_patterns() -> None:
    assert Query.of("https://example.org/x?y") == Query("example.org/x?y", "exact")
    assert Query.of("example.org/docs/*") == Query("example.org/docs/", "prefix")
    assert Query.of("*.example.org") == Query.of("*.example.org/*") == Query("example.org", "domain")
    query = Query.of("*.example.org/news/*.html")
    assert (query.url, query.match) == ("example.org", "domain")
    urls = ["http://a.example.org/news/x.html", "http://example.org/news/a/b.html", "http://example.org/old/x.html", "http://example.org/"]
    assert [query.holds(url) for url in urls] == [True, True, False, False]
    inner = Query.of("example.org/*/index.html")
    assert (inner.url, inner.match) == ("example.org/", "prefix")
    assert inner.holds("https://www.example.org/a/index.html")
    assert not inner.holds("https://www.example.org/a/other.html")


def test_commoncrawl_by_url(crawl: Crawl, site: Site, tmp_path: Path) -> None:
    config = crawl.config(languages=["eng"], limit=5)
    source = Source(name="cc", commoncrawl=config)
    crawl.rows[3]["mime-detected"] = "application/pdf"
    crawl.rows.insert(1, dict(crawl.rows[0], url="http://example.org/copy"))  # the same content at another address
    (file,) = files_of(source, tmp_path / "downloads")
    assert texts([file], source) == [TEXTS[0], TEXTS[1], TEXTS[4], TEXTS[5], TEXTS[6]]
    first = site.asked[0].query
    assert (first["url"], first["matchType"], first["filter"]) == (["example.org/docs/"], ["prefix"], ["=status:200", "~languages:(eng)"])
    assert [asked.query["page"][0] for asked in site.asked if "page" in asked.query] == ["0", "1", "2", "3"]
    place = crawl.rows[0]
    asked = {one.headers["range"] for one in site.asked if "range" in one.headers}
    assert f"bytes={place['offset']}-{int(place['offset']) + int(place['length']) - 1}" in asked
    count = len(site.asked)
    assert fetch_commoncrawl(crawl.config(languages=["eng"], limit=5, concurrency=4), tmp_path / "downloads") == [file]
    assert len(site.asked) == count
    crawl.rows.clear()
    with pytest.raises(OpenmaiError, match=r"CC-TEST: its index has no page for example.org/docs/\*; check crawl id"):
        fetch_commoncrawl(crawl.config(), tmp_path)
    for wrong in ({"url": ""}, {"paths": "wet"}):
        with pytest.raises(OpenmaiError, match=r"give either url .* or paths"):
            crawl.config(**wrong)


def test_commoncrawl_waits_and_goes_on(crawl: Crawl, site: Site, tmp_path: Path, pauses: list[float]) -> None:
    (whole,) = fetch_commoncrawl(crawl.config(), tmp_path / "undisturbed")
    site.pages["/crawl-data/CC-TEST/a.warc.gz"] = [crawl.archive] * 3 + [Answer(status=503)]
    with pytest.raises(OpenmaiError, match="answers 503"):
        fetch_commoncrawl(crawl.config(concurrency=1), tmp_path / "cut")
    assert set(pauses) == {1.0, 2.0, 4.0, 8.0, 16.0, 32.0}
    part = next((tmp_path / "cut").glob(".*.part"))
    with open(part, "ab") as file:
        file.write(b"half a record")
    with open(next((tmp_path / "cut").glob(".*.ledger")), "a") as file:
        file.write("[12")
    site.pages["/crawl-data/CC-TEST/a.warc.gz"] = crawl.archive
    site.asked.clear()
    (file,) = fetch_commoncrawl(crawl.config(), tmp_path / "cut")
    assert file.read_bytes() == whole.read_bytes()
    assert len(site.asked) == len(TEXTS) - 3  # neither the index nor a record again
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {file.name, file.name.replace(".warc.gz", ".rows.jsonl")}


def test_commoncrawl_leaves_out_records_that_are_not_what_the_index_says(
    crawl: Crawl, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    crawl.rows[1]["digest"], crawl.rows[3]["offset"] = "A" * 32, crawl.rows[4]["offset"]
    crawl.rows[3]["length"] = crawl.rows[4]["length"]
    files = fetch_commoncrawl(crawl.config(), tmp_path)
    source = Source(name="cc", commoncrawl=crawl.config())
    assert texts(files, source) == [text for number, text in enumerate(TEXTS) if number not in (1, 3)]
    assert "2 of 8 records are damaged or are not what the index says" in capfd.readouterr().err
    for row in crawl.rows:
        row["digest"] = row["url"]
    with pytest.raises(OpenmaiError, match="all 8 records are damaged"):
        fetch_commoncrawl(crawl.config(limit=100), tmp_path)


def test_check_record(crawl: Crawl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commoncrawl, "_MAX_RECORD", 1 << 20)
    row = crawl.rows[0]
    data = crawl.archive.body[: int(row["length"])]
    assert check_record(data, row) == ""
    content = gzip.decompress(data)
    changed = content.replace(b"Text number 0", b"Text number 9")
    for wrong, match in (
        (data[:-9], "break off"),
        (data + data, "more than one record"),
        (b"plain text", "damaged gzip"),
        (gzip.compress(b"no archive"), "another record"),
        (gzip.compress(content + b"more"), "its head says"),
        (gzip.compress(changed), "differs from its digest"),
        (gzip.compress(b"\0" * (2 << 20)), "more than 1 MB"),
    ):
        assert match in check_record(wrong, row)


def test_whole_files_of_a_crawl(crawl: Crawl, site: Site, tmp_path: Path) -> None:
    names = [f"crawl-data/CC-TEST/segments/{number}/wet/part.warc.wet.gz" for number in range(4)]
    site.pages["/crawl-data/CC-TEST/wet.paths.gz"] = Answer(gzip.compress("\n".join(names).encode()))
    for number, name in enumerate(names):
        archive = io.BytesIO()
        writer = WARCWriter(archive, gzip=True)
        body = io.BytesIO(TEXTS[number].encode())
        writer.write_record(writer.create_warc_record("http://x/", "conversion", body, warc_content_type="text/plain"))
        site.pages[f"/{name}"] = Answer(archive.getvalue(), headers={"ETag": f'"{number}"'}, ranges=True)
    config = crawl.config(url="", paths="wet", segments=2, first_segment=1)
    source = Source(name="cc", commoncrawl=config)
    assert texts(files_of(source, tmp_path), source) == TEXTS[1:3]
    count = len(site.asked)
    files_of(source, tmp_path)
    assert site.paths()[count:] == ["/crawl-data/CC-TEST/wet.paths.gz"]
    for wrong, match in (({"segments": 4}, "has 4 wet files"), ({"paths": "warc"}, "no such crawl, or it has no warc files")):
        with pytest.raises(OpenmaiError, match=match):
            fetch_commoncrawl(config.model_copy(update=wrong), tmp_path)


# --- the Hugging Face Hub ---


class Hub:
    """A small hub behind a site: data sets of branches of files, with the answers that huggingface_hub asks for."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.token = ""
        site.missing = self.missing

    def put(self, branch: str, path: str, body: bytes, name: str = "me/set") -> None:
        self.files.setdefault((name, branch), {})[path] = body
        info = {"id": name, "sha": "0" * 40, "private": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": []}
        self.site.pages[f"/api/datasets/{name}"] = Answer(json.dumps(info).encode())
        self.site.pages[f"/api/datasets/{name}/revision/{branch}"] = Answer(json.dumps(info).encode())
        for folder in {"/".join(path.split("/")[:depth]) for depth in range(path.count("/") + 1)}:
            self.site.pages[f"/api/datasets/{name}/tree/{branch}{'/' + folder if folder else ''}"] = self.tree
        self.site.pages[f"/datasets/{name}/resolve/{branch}/{path}"] = self.resolve

    def missing(self, handler: BaseHTTPRequestHandler) -> Answer:
        known = any(f"/{name}/" in handler.path for name, _ in self.files)
        code = "RepoNotFound" if not known else "RevisionNotFound" if "/revision/" in handler.path else "EntryNotFound"
        return Answer(b"", 404, {"X-Error-Code": code, "X-Error-Message": code})

    def tree(self, handler: BaseHTTPRequestHandler) -> Answer:
        parts = urlsplit(handler.path)
        name, rest = parts.path.removeprefix("/api/datasets/").split("/tree/")
        branch, folder = next((b, unquote(rest)[len(b) :].strip("/")) for n, b in self.files if n == name and unquote(rest).startswith(b))
        recursive = parse_qs(parts.query).get("recursive", ["false"])[0].lower() in ("true", "1")
        found: dict[str, dict] = {}
        for path, body in self.files[name, branch].items():
            if folder and not path.startswith(folder + "/"):
                continue
            inner = path[len(folder) :].strip("/").split("/")
            for depth in range(1, len(inner)) if recursive else range(1, min(2, len(inner))):
                place = "/".join([*([folder] if folder else []), *inner[:depth]])
                found[place] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": place}
            if recursive or len(inner) == 1:
                found[path] = {"type": "file", "oid": hashlib.sha1(body).hexdigest(), "size": len(body), "path": path}
        return Answer(json.dumps(list(found.values())).encode(), headers={"Content-Type": "application/json"})

    def resolve(self, handler: BaseHTTPRequestHandler) -> Answer:
        if self.token and handler.headers.get("Authorization") != f"Bearer {self.token}":
            return Answer(b"", 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to dataset me/set is restricted"})
        name, rest = urlsplit(handler.path).path.removeprefix("/datasets/").split("/resolve/")
        branch, path = next((b, unquote(rest)[len(b) + 1 :]) for n, b in self.files if n == name and unquote(rest).startswith(b))
        body = self.files[name, branch][path]
        return Answer(body, headers={"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": "0" * 40}, ranges=True)

    def bytes_served(self) -> int:
        spans = [asked.headers["range"].removeprefix("bytes=").split("-") for asked in self.site.asked if "range" in asked.headers]
        return sum(int(last) - int(first) + 1 for first, last in spans)


@pytest.fixture
def hub(site: Site, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return Hub(site)


def parquet(rows: list[str], group: int = 1000) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": rows}), buffer, row_group_size=group, compression="none")
    return buffer.getvalue()


def hf(hub: Hub, **settings: object) -> Source:
    values = {"name": "me/set", "endpoint": hub.site.base, **settings}
    return validate(Source, {"name": "hf", "huggingface": values}, "test")


CONVERTED = "refs/convert/parquet"


def test_a_data_set_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    hub.put("main", "README.md", b"about")
    for number in range(2):
        hub.put(CONVERTED, f"default/train/{number:04d}.parquet", parquet(TEXTS[4 * number : 4 * number + 4]))
    hub.put(CONVERTED, "small/partial-test/0000.parquet", parquet(TEXTS[:1]))
    source = hf(hub)
    files = files_of(source, tmp_path)
    assert texts(files, source) == TEXTS
    served = hub.bytes_served()
    assert files_of(source, tmp_path) == files
    assert hub.bytes_served() == served
    assert texts(files_of(partial := hf(hub, config="small", split="test"), tmp_path), partial) == TEXTS[:1]
    for wrong, match in (
        ({"split": "test"}, "no split 'test'; it has train"),
        ({"config": "big"}, "no configuration 'big'; it has default, small"),
        ({"name": "me/other"}, r"no such file, folder or bucket .*or it is private: .*HF_TOKEN"),
        ({"endpoint": "http://127.0.0.1:9"}, "check the address and the connection, or name local files"),
    ):
        with pytest.raises(OpenmaiError, match=match):
            files_of(hf(hub, **wrong), tmp_path)


def test_a_limit_downloads_no_more_than_it_needs(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "_BLOCK", 1 << 15)
    rows = [f"{number} " + "x" * 5000 for number in range(200)]
    for number in range(2):
        hub.put(CONVERTED, f"default/train/{number:04d}.parquet", parquet(rows[100 * number : 100 * number + 100], group=10))
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()
    hub.put("main", "data/a.jsonl", lines)
    hub.put("main", "data/b.jsonl.gz", gzip.compress(lines, mtime=0))
    for settings, limit, most in (({}, 15, 200_000), ({}, 105, 900_000), ({"files": ["data/*.jsonl"]}, 15, 200_000)):
        hub.site.asked.clear()
        source = hf(hub, limit=limit, **settings)
        assert texts(files_of(source, tmp_path), source) == rows[:limit]
        assert 0 < hub.bytes_served() < most < 5000 * 200
    both = hf(hub, limit=250, files=["data/*"])
    assert texts(files_of(both, tmp_path), both) == [*rows, *rows[:50]]
    every = hf(hub, limit=1000, files=["data/a.jsonl"])
    assert len(texts(files_of(every, tmp_path), every)) == 200


def test_files_of_a_data_set_that_the_hub_has_not_converted(hub: Hub, tmp_path: Path) -> None:
    hub.put("main", "train.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:4]).encode())
    hub.put("main", "more/notes.txt", TEXTS[4].encode())
    with pytest.raises(OpenmaiError, match=r"not converted to Parquet .*files: \[pattern\]; it has more/notes.txt, train.jsonl"):
        files_of(hf(hub), tmp_path)
    source = hf(hub, files=["*.jsonl", "more/*.txt"])
    assert texts(files_of(source, tmp_path), source) == [TEXTS[4], *TEXTS[:4]]
    with pytest.raises(OpenmaiError, match=r"no file data/\* at main; it has more/notes.txt"):
        files_of(hf(hub, files=["data/*"]), tmp_path)


def test_a_gated_data_set_and_a_token(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put(CONVERTED, "default/train/0000.parquet", parquet(TEXTS))
    hub.token = "hf_secret"
    for settings in ({}, {"limit": 3}):
        with pytest.raises(OpenmaiError, match=r"access refused .*accept its terms on its page and set HF_TOKEN"):
            files_of(hf(hub, **settings), tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    source = hf(hub, limit=3)
    assert texts(files_of(source, tmp_path), source) == TEXTS[:3]
    assert "hf_secret" not in source.model_dump_json()


def test_the_hubs_name_and_address() -> None:
    assert HuggingFace(name="a/b").endpoint == "https://huggingface.co"
    assert Source(name="s", path="hf://datasets/a/b/x.jsonl").is_remote
    assert not Source(name="s", path="C:/windows/x.jsonl").is_remote


class Settings(Config):
    """Of an artifact that reads one address."""

    out: Path
    source: str = "memory://bucket/a.txt"


def test_changed_data_at_the_same_address_make_another_artifact(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    def key() -> str:
        config = Settings(out=tmp_path / "artifact")
        with create(config.out, kind="test", version=1, config=config, inputs=local_input(Source(name="s", path=config.source))) as work:
            if work.finished is None:
                work.finish(metrics={})
            return work.key

    memory.pipe("/bucket/a.txt", b"first")
    first = key()
    assert key() == first
    memory.pipe("/bucket/a.txt", b"second")
    assert key() != first
    assert Artifact.load(tmp_path / "artifact").inputs[0]["path"] == "memory://bucket/a.txt"

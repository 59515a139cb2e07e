"""A web server on loopback for tests: paths mapped to answers, every request remembered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Asked:
    """One request."""

    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    method: str


@dataclass
class Answer:
    """What a path answers; with `ranges`, Range and If-Range headers are honoured. `length` promises another length than the body has."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = False
    length: int | None = None


class Site:
    """`pages` maps a path to an Answer, to a list of them (one per request, the last again and again), or to a function of the handler;
    what it does not have is `missing`.
    """

    def __init__(self) -> None:
        self.pages: dict[str, Answer | list[Answer] | Callable[[BaseHTTPRequestHandler], Answer | None]] = {}
        self.missing: Answer | Callable[[BaseHTTPRequestHandler], Answer | None] = Answer(b"nothing here", 404)
        self.asked: list[Asked] = []
        self.stop = threading.Event()
        self.base = ""

    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    def html(self, path: str, *links: str, text: str = "", head: str = "", **headers: str) -> None:
        """Put a page with links at `path`."""
        body = f"<html><head><title>{path}</title>{head}</head><body><p>Page {path} {text}</p>{''.join(map(_link, links))}</body></html>"
        self.pages[path] = Answer(
            body.encode(), headers={"Content-Type": "text/html", **{k.replace("_", "-"): v for k, v in headers.items()}}
        )


def _link(link: str) -> str:
    return link if link.startswith("<") else f'<a href="{link}">to {link}</a>'


@contextmanager
def serve(site: Site) -> Iterator[Site]:
    """Serve `site` on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            site.asked.append(Asked(parts.path, parse_qs(parts.query), {k.lower(): v for k, v in self.headers.items()}, self.command))
            answer = site.pages.get(self.path) or site.pages.get(parts.path) or site.pages.get(unquote(parts.path), site.missing)
            if isinstance(answer, list):
                answer = answer.pop(0) if len(answer) > 1 else answer[0]
            if callable(answer):
                answer = answer(self)
            if answer is not None:
                self.reply(answer)

        do_HEAD = do_GET

        def reply(self, answer: Answer) -> None:
            body, status, headers = answer.body, answer.status, dict(answer.headers)
            wanted = self.headers.get("Range", "")
            if answer.ranges and wanted and self.headers.get("If-Range") in (None, headers.get("ETag")):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                total, status = len(body), 206
                body = body[int(first) : int(last) + 1 if last else None]
                headers["Content-Range"] = f"bytes {first}-{int(first) + len(body) - 1}/{total}"
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if answer.length is None else answer.length))
            if answer.length is not None:
                self.close_connection = True
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *arguments: object) -> None:
            pass  # a client that leaves in the middle is what some tests are about

    server = Server(("127.0.0.1", 0), Handler)
    site.base = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.stop.set()
        server.shutdown()
        thread.join()
        server.server_close()

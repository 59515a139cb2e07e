"""Configurations of the verbs that capture web pages into web archives."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from openmai.base.config import Config

# What a Python programmer looks up; what is not installed is left out. A name that stands twice takes two pages per turn.
# fmt: off
PACKAGES = [
    "topics", "topics", "stdlib", "stdlib", "stdlib", "stdlib", "torch", "torch", "numpy", "numpy", "tokenizers", "pydantic",
    "rich", "yaml", "jinja2", "safetensors", "httpx", "anyio", "fastapi", "starlette", "uvicorn", "click", "requests",
    "matplotlib", "pyarrow", "PIL", "markdown_it", "pygments", "hypothesis", "pytest", "huggingface_hub", "transformers.trainer",
    "networkx", "fsspec", "tqdm", "packaging", "dateutil", "regex", "zstandard", "gguf"
]
# fmt: on


class SnapshotConfig(Config):
    """Capture the pages of Python's own documentation server, over loopback, into a web archive."""

    out: Path
    """folder of the snapshot"""
    packages: list[str] = Field(default=PACKAGES, min_length=1)
    """what to capture: `stdlib`, `topics` (language reference), packages or dotted modules; a name given twice takes two pages per turn"""
    max_pages: int = Field(default=1000, ge=1)
    """stop after this many pages"""
    max_megabytes: float = Field(default=30.0, gt=0)
    """stop after this many megabytes of HTML"""
    max_page_megabytes: float = Field(default=3.0, gt=0)
    """leave out a page that is larger"""
    page_timeout: float = Field(default=60.0, gt=0)
    """seconds that one page may take before it is skipped and the server restarted"""
    delay: float = Field(default=0.0, ge=0)
    """seconds to wait between two requests to a server"""
    servers: int = Field(default=2, ge=1)
    """documentation servers, each asked one page at a time; part of the identity, as packages are dealt out to them"""


# Parameters that name a visitor, a campaign or a session, never a page; a name may end in *.
TRACKING = [
    "utm_*", "gclid", "gclsrc", "dclid", "fbclid", "msclkid", "yclid", "mc_cid", "mc_eid", "_ga", "_gl", "igshid", "ref_src",
    "phpsessid", "jsessionid", "aspsessionid*", "sessionid", "session_id"
]  # fmt: skip


class CrawlConfig(Config):
    """Capture the pages of one site, politely, into a web archive that `data build` reads."""

    not_in_key: ClassVar[tuple[str, ...]] = (
        *("delay", "contact", "connect_timeout", "read_timeout", "page_timeout", "retries", "max_wait", "max_failures"),
    )

    out: Path
    """folder of the capture"""
    start: list[str] = Field(min_length=1)
    """URLs to begin with, in this order"""
    hosts: list[str] = []
    """other hosts that belong to the site, such as docs.example.org or cdn.example.org:8080; those of `start` always do"""
    prefix: list[str] = []
    """take only URLs that begin with one of these; empty takes all of the hosts"""
    exclude: list[str] = []
    """regular expressions; a URL in which one is found is left out"""
    contact: str = ""
    """URL or e-mail address that the site's operator finds in the logs; required unless the site is on this machine"""
    max_pages: int = Field(default=1000, ge=1)
    """stop after this many pages"""
    max_megabytes: float = Field(default=1000.0, gt=0)
    """stop after this many megabytes of pages"""
    max_requests: int = Field(default=20_000, ge=1)
    """stop after this many URLs, kept or not: the way out of a site that leads on for ever"""
    max_depth: int = Field(default=10, ge=0)
    """most links between a start URL and a page"""
    max_redirects: int = Field(default=5, ge=0)
    """longest chain of redirects"""
    max_page_megabytes: float = Field(default=5.0, gt=0)
    """a larger page is cut off here and marked as truncated"""
    content_types: list[str] = ["text/html", "application/xhtml+xml", "text/plain"]
    """what to keep, by the server's Content-Type"""
    sitemap: bool = False
    """begin with the pages of the site's sitemaps too, which robots.txt names (or /sitemap.xml)"""
    obey_robots: bool = True
    """honour robots.txt, robots meta tags and rel=nofollow; switch off only for a site of your own"""
    drop_parameters: list[str] = TRACKING
    """query parameters to take off URLs, so that a page has one address; a name may end in *"""
    delay: float = Field(default=1.0, ge=0)
    """seconds between two requests to a host; robots.txt may ask for more"""
    connect_timeout: float = Field(default=15.0, gt=0)
    """seconds to reach a server"""
    read_timeout: float = Field(default=30.0, gt=0)
    """seconds of silence in the middle of an answer"""
    page_timeout: float = Field(default=120.0, gt=0)
    """seconds for a whole page; what has come by then is kept and marked as truncated"""
    retries: int = Field(default=3, ge=0)
    """further tries where a server is busy or breaks off"""
    max_wait: float = Field(default=300.0, gt=0)
    """longest pause before a retry; a server that asks for more ends the crawl, to be gone on with later"""
    max_failures: int = Field(default=10, ge=1)
    """end the crawl, to be gone on with later, when this many URLs in a row fail"""

    @field_validator("start")
    @classmethod
    def _are_web_addresses(cls, start: list[str]) -> list[str]:
        for url in start:
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                raise ValueError(f"{url}: not a web address; write it with http:// or https://")
        return start

    @model_validator(mode="after")
    def _says_who_asks(self) -> CrawlConfig:
        if not self.contact and not all(is_loopback(urlsplit(url).hostname or "") for url in self.start):
            raise ValueError("contact: the site's operator must be able to reach you; give a URL or an e-mail address")
        return self


def is_loopback(host: str) -> bool:
    """True for a name or address of this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")

"""Addresses that are dropped before their page is looked at: lists of domains, prefixes and patterns, and words of adult pages.

The words follow RefinedWeb's URL filter (Penedo et al. 2023, arXiv:2306.01116, appendix G.1): *strict* words count anywhere, also inside
other letters; *hard* words as whole words; *soft* words, which other pages use too, only when several of them stand in one address.
"""

from __future__ import annotations

import csv
import gzip
import re
from array import array
from bisect import bisect_left
from functools import cache
from itertools import accumulate
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from openmai.base.errors import OpenmaiError
from openmai.data.filter.signals_config import UrlRules

_WORDS_FILE = Path(__file__).parent / "adult_url_words.csv"

# Names below which anyone may register: one on a list stands for itself only, never for all below it (`.example.com` says all below).
# The frequent part of https://publicsuffix.org/list/.
_SECOND = "ac co com edu gov net ne or org go gob gouv mil nom id sch ltd plc me"
_COUNTRIES = "uk jp kr nz za in id il th au br cn tw hk sg my ph vn tr mx ar co pe ve uy ec ua pl ru ke ng eg sa ae at es pt gr ro hu rs"
_HOSTERS = """
blogspot.com wordpress.com tumblr.com weebly.com wixsite.com livejournal.com typepad.com github.io gitlab.io netlify.app vercel.app
pages.dev web.app firebaseapp.com herokuapp.com appspot.com azurewebsites.net cloudfront.net amazonaws.com s3.amazonaws.com
readthedocs.io sourceforge.net neocities.org substack.com medium.com altervista.org free.fr home.blog over-blog.com
"""
PUBLIC_SUFFIXES = frozenset(f"{second}.{country}" for second in _SECOND.split() for country in _COUNTRIES.split()) | set(_HOSTERS.split())


_SELF, _BELOW = 1, 2  # what an entry stands for: the host itself, the hosts below it; a prefix is its own name
_PLAIN = re.compile(r"(?!www\.)[a-z0-9-]+(?:\.[a-z0-9-]+)+")


class UrlList:
    """Domains, prefixes and patterns from list files; `find` says which entry an address is on.

    One entry per line, `#` and `!` begin comments:
    - `example.com`: the domain and all below it; `.example.com`: only what is below it; also `*.example.com` and `||example.com^`;
    - `example.com/path`: addresses that begin so;
    - `0.0.0.0 example.com`: a line of a hosts file;
    - `/pattern/` or `regex:pattern`: a regular expression that is found in the address without its scheme.

    Entries are kept as sorted hashes beside one text of all names: some 35 bytes each, a fourth of what a Python dictionary needs, since
    every worker process holds the lists and the large public ones have millions of domains. A hit is compared letter by letter.
    """

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.patterns: list[tuple[re.Pattern[str], int]] = []
        self.prefix_hosts: set[str] = set()
        entries: dict[str, int] = {}
        for number, file in enumerate(files):
            plain = (number << 2) | _SELF | _BELOW
            for line in _lines(file):
                if _PLAIN.fullmatch(line) and line not in PUBLIC_SUFFIXES:
                    entries[line] = entries.get(line, plain) | plain & 3
                    continue
                for name, what in self._parse(line, file, number):
                    entries[name] = entries.get(name, number << 2) | what
        self._freeze(entries)

    def __len__(self) -> int:
        return len(self.hashes) + len(self.patterns)

    def _parse(self, line: str, file: Path, number: int) -> list[tuple[str, int]]:
        line = line.partition(" #")[0].strip()
        if not line or line[0] in "#!":
            return []
        pattern = line[6:] if line.startswith("regex:") else line[1:-1] if len(line) > 2 and line[0] == line[-1] == "/" else ""
        if pattern:
            try:
                self.patterns.append((re.compile(pattern), number))
            except re.error as error:
                raise OpenmaiError(f"{file}: '{line}' is not a regular expression ({error}); correct or remove it") from None
            return []
        entries = _entries(line)
        self.prefix_hosts.update(name.partition("/")[0] for name, _ in entries if "/" in name)
        return entries

    def _freeze(self, entries: dict[str, int]) -> None:
        keys = np.fromiter(map(hash, entries), np.int64, len(entries))
        order = np.argsort(keys)
        names = [name.encode() for name in entries]
        names = [names[row] for row in order.tolist()]
        self.hashes = array("q", keys[order].tobytes())
        self.values = array("I", np.fromiter(entries.values(), np.uint32, len(entries))[order].tobytes())
        self.starts = array("Q", [0, *accumulate(map(len, names))])
        self.names = b"".join(names)
        self.mask = (8 << len(names).bit_length()) - 1  # at least eight places per entry, so seven of eight misses end here
        places = np.zeros(self.mask + 1, dtype=bool)
        places[keys & self.mask] = True
        self.places = np.packbits(places, bitorder="little").tobytes()

    def _value(self, name: str) -> int:
        """Return the number of the file that has this entry, times four, and what it stands for; 0 if there is no such entry."""
        key = hash(name)
        if not self.places[(key & self.mask) >> 3] & 1 << (key & 7):
            return 0
        row = bisect_left(self.hashes, key)
        while row < len(self.hashes) and self.hashes[row] == key:
            if self.names[self.starts[row] : self.starts[row + 1]] == name.encode():
                return self.values[row]
            row += 1
        return 0

    def find(self, url: str) -> str:
        """Return which entry `url` is on and in which list, "" if on none."""
        host, rest = split(url)
        return self._find_host(host) or self._find_prefix(host, rest) or self._find_pattern(host + rest)

    def _find_host(self, host: str) -> str:
        name, wanted = host, _SELF
        while name:
            value = self._value(name)
            if value & wanted:
                return f"domain {name} is on list {self.files[value >> 2].name}"
            name, wanted = name.partition(".")[2], _BELOW
        return ""

    def _find_prefix(self, host: str, rest: str) -> str:
        if host not in self.prefix_hosts:
            return ""
        path = _QUERY.split(rest, maxsplit=1)[0].rstrip("/")
        for place in [place for place, char in enumerate(path) if char == "/" and place] + [len(path)]:
            if value := self._value(host + path[:place]):
                return f"address {host}{path[:place]} is on list {self.files[value >> 2].name}"
        return ""

    def _find_pattern(self, address: str) -> str:
        for pattern, number in self.patterns:
            if pattern.search(address):
                return f"/{pattern.pattern}/ of list {self.files[number].name}"
        return ""


class UrlFilter:
    """Applies `rules` to addresses."""

    def __init__(self, rules: UrlRules) -> None:
        self.block, self.allow = UrlList(rules.block), UrlList(rules.allow)
        self.rules = rules

    def reason(self, url: str) -> str:
        """Return why `url` is dropped, "" if it stays."""
        if len(self.block) and (entry := self.block.find(url)):
            return entry
        if self.rules.allow and not self.allow.find(url):
            return "on no allow list"
        return adult_words(url, self.rules.adult_soft_words) if self.rules.adult_words else ""


_HOST_END = re.compile(r"[/?#\\]")
_QUERY = re.compile(r"[?#]")


def split(url: str) -> tuple[str, str]:
    """Return an address as (host, the rest from its slash on): host in lower case and punycode, without user, port and `www.`."""
    rest = url.strip()
    scheme = rest.find("://")
    rest = rest[scheme + 3 :] if 0 <= scheme < 12 else rest.removeprefix("//")
    end = match.start() if (match := _HOST_END.search(rest)) else len(rest)
    host, rest = rest[:end].rpartition("@")[2].lower(), rest[end:]
    host = f"{host.partition(']')[0]}]" if host.startswith("[") else host.partition(":")[0].rstrip(".")
    if not host.isascii():
        host = _punycode(host)
    return host.removeprefix("www."), rest


def _punycode(host: str) -> str:
    try:
        return host.encode("idna").decode()
    except UnicodeError:  # no valid name: compare it as it stands
        return host


def _entries(line: str) -> list[tuple[str, int]]:
    """Return the entries of a line: a host and what it stands for, or a prefix."""
    words = line.split()
    is_hosts = len(words) > 1 and re.fullmatch(r"[0-9.]{7,15}|[0-9a-f:]{2,}", words[0]) is not None
    entries = []
    for word in words[1:] if is_hosts else words[:1]:
        word = word.removeprefix("||").partition("^")[0]
        host, path = split(word.lstrip("*."))
        if path.rstrip("/"):
            entries.append((host + path.rstrip("/"), _SELF))
        elif word.startswith((".", "*.")):
            entries.append((host, _BELOW))
        elif "." in host:  # not `localhost`; below a public suffix the pages are other people's
            entries.append((host, _SELF if host in PUBLIC_SUFFIXES else _SELF | _BELOW))
    return entries


def _lines(file: Path) -> list[str]:
    try:
        data = file.read_bytes()
        return (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8-sig", errors="replace").splitlines()
    except FileNotFoundError:
        raise OpenmaiError(f"{file}: no such list of addresses; correct its path") from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise OpenmaiError(f"{file}: not a whole gzip file ({error}); get it again") from None


@cache
def _adult_lists() -> dict[str, frozenset[str]]:
    rows = [row for row in csv.reader(_WORDS_FILE.read_text(encoding="utf-8").splitlines()) if not row[0].startswith("#")]
    levels = ("strict", "hard", "soft", "innocent", "calm")
    return {level: frozenset(word for kind, words in rows[1:] if kind == level for word in words.split()) for level in levels}


_NO_LETTERS = {code: " " for code in range(128) if not chr(code).isalpha()}


def adult_words(url: str, soft_words: int = 2) -> str:
    """Return which words of adult pages an address has, "" if it has none or too few."""
    lists = _adult_lists()
    address = url.lower()
    if "%" in address:
        address = unquote(address)
    found = {word for word in lists["strict"] if word in address and not _is_innocent(word, address)}
    if not found:
        tokens = set(address.translate(_NO_LETTERS).split())
        found = tokens & lists["hard"]
        soft = tokens & lists["soft"]
        if not found and len(soft) >= soft_words and not tokens & lists["calm"]:
            found = soft
    return f"adult words in the URL: {', '.join(sorted(found))}" if found else ""


def _is_innocent(word: str, address: str) -> bool:
    """Tell whether `word` occurs only inside words that are known to contain it."""
    for longer in _adult_lists()["innocent"]:
        if word in longer:
            address = address.replace(longer, "")
    return word not in address

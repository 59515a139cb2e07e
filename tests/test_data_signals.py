"""pytest tests/test_data_signals.py: private data, addresses, adult words."""

from __future__ import annotations

import gzip
import random
import string
from itertools import pairwise
from pathlib import Path

import pytest

from openmai.base.errors import OpenmaiError
from openmai.data.filter.lexicon import toxic_words
from openmai.data.filter.pii import FINDERS, find, is_card, is_iban, is_luhn, mask
from openmai.data.filter.signals_config import Pii, UrlRules
from openmai.data.filter.urls import UrlFilter, UrlList, adult_words, split

ALL = frozenset(Pii().kinds)

PRIVATE = [
    ("write to anna.b+x@mail.example.co.uk, please", "write to <EMAIL>, please"),
    ("<o'neil_7@uni-a.edu>", "<<EMAIL>>"),
    ("anna [at] example [dot] org", "<EMAIL>"),
    ("seen from 8.25.140.9 today", "seen from <IP> today"),
    ("AAAA 2a02:908:1a2:77::1 ok", "AAAA <IP> ok"),
    ("IP address 9.9.9.9", "IP address <IP>"),
    ("Call (202) 555-0143 or 202-555-0144.", "Call <PHONE> or <PHONE>."),
    ("+44 (0)20 7946 0018", "<PHONE>"),
    ("+4915208649244", "<PHONE>"),
    ("Tel. 030 / 269 97-361, Fax: 030/26997362", "Tel. <PHONE>, Fax: <PHONE>"),
    ("please call 0800 058 2844 or 0800 138 1018", "please call <PHONE> or <PHONE>"),
    ("phone: 555-0134", "phone: <PHONE>"),
    ("card 4111 1111 1111 1111, exp 12/27", "card <CARD>, exp 12/27"),
    ("3782-822463-10005", "<CARD>"),
    ("5555555555554444", "<CARD>"),
    ("IBAN: DE89 3704 0044 0532 0130 00.", "IBAN: <IBAN>."),
    ("GB29NWBK60161331926819 is mine", "<IBAN> is mine"),
    ("SSN: 123-45-6789", "SSN: <SSN>"),
    ("her social security number is 078 05 1120", "her social security number is <SSN>"),
    ("key=AKIAQYLPMN5HHHFPZAM2;", "key=<KEY>;"),
    ("token ghp_" + "a1B2" * 9, "token <KEY>"),
    ("xoxb-123456789012-abcdefABCDEF", "<KEY>"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1g", "<KEY>"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIB\nAAAA\n-----END RSA PRIVATE KEY-----\nnext", "<KEY>\nnext"),
]

NOT_PRIVATE = [
    "version 1.2.3.4 and Python 3.12.4.1",
    "see § 34.120.56.2 and section 200.30.40.50",
    "hosts 10.0.0.1, 192.168.1.20, 127.0.0.1, 192.0.2.7, 2001:db8::1, ::1, fe80::1",
    "std::vector, face::bed, the year 2006::, 12:30:45",
    "git@github.com:openmai/openmai.git, logo@2x.png, @property, a @ b, ssh://build@site.org/x",
    "ISBN 978-0-306-40615-7 and ISBN 0-306-40615-2",
    "from 2019-12-31 to 31.12.2020, 1914-1918, 12/31/1999",
    "18 U.S.C. 1030, 410 U.S. 113 (1973), D.C. Law 22-168, 65 DCR 9388, No. 123-45-6789",
    "3.14159265358979323846264338327950288",
    "1234567812345678 and 4111 1111 1111 1112 and 4111-1111 1111-1111",
    "DE89 3704 0044 0532 0130 01 and AB12 CDEF 3456 7890",
    "SSN: 000-12-3456, SSN: 666-12-3456, SSN: 912-34-5678",
    "population 12,345,678 in 1990; 1 000 000 000 km; $1,234,567.89",
    "AKIASHORT, sk-learn, ghp_short, eyJust some words",
    "call me at 5 or phone home in 2020; tel aviv",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
]


@pytest.mark.parametrize(("text", "masked"), PRIVATE)
def test_private_data_becomes_a_placeholder(text: str, masked: str) -> None:
    assert mask(text, ALL)[0] == masked


@pytest.mark.parametrize("text", NOT_PRIVATE)
def test_what_only_looks_private_stays(text: str) -> None:
    assert mask(text, ALL) == (text, {})


def test_counts_and_kinds() -> None:
    text = "a@b.com, c@d.org, +41 44 668 18 00"
    assert mask(text, ALL) == ("<EMAIL>, <EMAIL>, <PHONE>", {"email": 2, "phone": 1})
    assert mask(text, frozenset({"phone"})) == ("a@b.com, c@d.org, <PHONE>", {"phone": 1})
    assert mask(text, frozenset()) == (text, {})
    assert list(FINDERS) == Pii().kinds


def test_what_is_found_does_not_overlap() -> None:
    text = "Tel. 4111 1111 1111 1111 a@b.com 202-555-0143@x.com +1 (202) 555-0143 IBAN GB29 NWBK 6016 1331 9268 19 " * 5
    spans = [span for span, _ in find(text + "x@y.com [at] z.org", ALL)]
    assert len(spans) == 26
    assert all(left.end <= right.start for left, right in pairwise(spans))


def test_validators() -> None:
    assert is_luhn("79927398713")
    assert not is_luhn("79927398710")
    assert is_card("6011111111111117")
    assert not is_card("1011111111111117")
    assert is_iban("FR1420041010050500013M02606")
    assert not is_iban("FR1520041010050500013M02606")


HOSTILE = [
    "1", "1 ", "1.", "@", "a@", "a@a.", "a" * 64 + "@", "eyJ", "eyJaaaaaaaaa.", "-----BEGIN PRIVATE KEY-----", "2001:", "(at)", "aa (at) ",
    "+1", "+1 (", "IBAN DE89 ", "tel ", "tel 1234567 ", "AKIA", "xoxb-", "a@b.com 4111 1111 1111 1111 (202) 555-0143 ",
    "123456" + " " * 999,
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_text_takes_linear_time(piece: str) -> None:
    """A pattern that backtracks without bound would not come back from this."""
    text = piece * (100_000 // len(piece))
    masked, counts = mask(text, ALL)
    assert bool(counts) == (masked != text)


def test_random_text_survives() -> None:
    random_ = random.Random(0)
    for _ in range(300):
        text = "".join(random_.choice(string.printable + "@.:+-€é\u00ad") for _ in range(400))
        masked, counts = mask(text, ALL)
        assert sum(masked.count(f"<{kind.upper()}>") for kind in ALL) >= sum(counts.values())


def test_addresses_are_taken_apart() -> None:
    assert split("HTTPS://User:pw@WWW.Example.COM:8080/A/b?q#f") == ("example.com", "/A/b?q#f")
    assert split("//example.com") == ("example.com", "")
    assert split("example.com./x") == ("example.com", "/x")
    assert split("http://bücher.example/") == ("xn--bcher-kva.example", "/")
    assert split("http://[2001:db8::1]:80/x") == ("[2001:db8::1]", "/x")


LIST = """# a list
bad.com
*.below.net
||blocked.org^
evil.co.uk/path/to
0.0.0.0 ads.example.net tracker.example.net
127.0.0.1 localhost
blogspot.com
bücher.example
/[0-9]{6}\\.html$/
regex:^shop\\.[a-z]+\\.io/
"""


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        ("http://bad.com/x", "domain bad.com"),
        ("https://www.BAD.com", "domain bad.com"),
        ("https://a.b.bad.com:443/x?y", "domain bad.com"),
        ("https://user@bad.com/", "domain bad.com"),
        ("https://notbad.com/bad.com", ""),
        ("https://bad.com.example.org", ""),
        ("https://below.net/", ""),
        ("https://x.below.net/", "domain below.net"),
        ("https://x.blocked.org/", "domain blocked.org"),
        ("https://evil.co.uk/path/to/page?x", "address evil.co.uk/path/to"),
        ("https://evil.co.uk/path/to", "address evil.co.uk/path/to"),
        ("https://evil.co.uk/path/tower", ""),
        ("https://evil.co.uk/", ""),
        ("https://tracker.example.net/", "domain tracker.example.net"),
        ("http://localhost/", ""),
        ("https://blogspot.com/", "domain blogspot.com"),
        ("https://mine.blogspot.com/", ""),
        ("https://xn--bcher-kva.example/", "domain xn--bcher-kva.example"),
        ("https://ok.org/news/123456.html", "/[0-9]{6}\\.html$/"),
        ("https://shop.some.io/x", "/^shop\\.[a-z]+\\.io//"),
        ("", ""),
    ],
)
def test_lists_of_addresses(url: str, entry: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(LIST, encoding="utf-8")
    with gzip.open(tmp_path / "packed.txt.gz", "wt", encoding="utf-8") as file:
        file.write(LIST)
    for name in ("list.txt", "packed.txt.gz"):
        found = UrlList([tmp_path / name]).find(url)
        assert found.startswith(entry)
        assert bool(found) == bool(entry)
        assert not found or found.endswith(f"list {name}")


def test_many_entries_are_found_exactly(tmp_path: Path) -> None:
    names = [f"site{number}.example{number % 7}.com" for number in range(20_000)]
    (tmp_path / "many.txt").write_text("\n".join(names[::2]))
    block = UrlList([tmp_path / "many.txt"])
    assert len(block) == 10_000
    assert [bool(block.find(f"http://{name}/x")) for name in names] == [number % 2 == 0 for number in range(20_000)]


def test_block_and_allow(tmp_path: Path) -> None:
    (tmp_path / "block").write_text("bad.org\n")
    (tmp_path / "allow").write_text(".edu\ngood.org\nbad.org\n")
    rules = UrlFilter(UrlRules(block=[tmp_path / "block"], allow=[tmp_path / "allow"]))
    assert rules.reason("https://cs.some.edu/") == ""
    assert rules.reason("https://good.org/") == ""
    assert rules.reason("https://other.org/") == "on no allow list"
    assert rules.reason("https://bad.org/") == "domain bad.org is on list block"
    assert UrlFilter(UrlRules()).reason("https://other.org/") == ""


def test_bad_lists_are_named(tmp_path: Path) -> None:
    with pytest.raises(OpenmaiError, match="no such list"):
        UrlList([tmp_path / "none"])
    (tmp_path / "pattern").write_text("/(/\n")
    with pytest.raises(OpenmaiError, match="not a regular expression"):
        UrlList([tmp_path / "pattern"])
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"a.com\n" * 99)[:-5])
    with pytest.raises(OpenmaiError, match="not a whole gzip"):
        UrlList([tmp_path / "cut.gz"])


@pytest.mark.parametrize(
    ("url", "is_adult"),
    [
        ("http://freeporn.example/", True),
        ("http://a.example/hot-milf-videos", True),
        ("http://a.example/naked-teens", True),
        ("http://a.example/%73%65%78/cams", True),
        ("http://sussex.ac.uk/sextant/essex", False),
        ("http://a.example/sex-education-for-teens", False),
        ("http://a.example/pussy-willow-care", False),
        ("http://a.example/analysis/cockpit/titles/scunthorpe", False),
        ("http://a.example/dating", False),
    ],
)
def test_adult_words_in_addresses(url: str, is_adult: bool) -> None:
    assert bool(adult_words(url)) == is_adult
    assert bool(UrlFilter(UrlRules()).reason(url)) == is_adult
    assert UrlFilter(UrlRules(adult_words=False)).reason(url) == ""


def words(text: str) -> list[str]:
    return text.split()


def test_share_of_toxic_words() -> None:
    assert toxic_words([]) == 0
    assert toxic_words(words("The cat sat on the mat")) == 0
    assert toxic_words(words("Free PORN here")) == pytest.approx(1 / 3)
    assert toxic_words(words("wild live sex cam now")) >= 2 / 5
    assert toxic_words(words("naked porn")) == 1
    assert toxic_words(["porn"], language="xx") == 0
    assert toxic_words(["porn"], language="../en") == 0


def test_soft_words_need_company_and_yield_to_context() -> None:
    anatomy = words("The penis and the vagina are organs of sexual reproduction ; sperm cells from the testicles")
    assert toxic_words(anatomy) == 0
    lesson = words("A court fined the porn site : sexual abuse of patients is a crime , says the law ; treatment helps")
    assert toxic_words(lesson) == pytest.approx(1 / len(lesson))

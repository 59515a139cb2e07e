"""pytest tests/test_data_text.py: extraction and cleaning."""

from __future__ import annotations

import random

import pytest

from openmai.data.config import Annotation
from openmai.data.document import Raw, raw_batch
from openmai.data.engine.steps import annotate
from openmai.data.extract import pydoc_pages
from openmai.data.extract.clean import clean, drop_empty_headings, drop_repeated_paragraphs
from openmai.data.extract.html import ExtractError, decode, extract

PROSE = (
    "The river that runs past the old mill is slow in summer and wild in spring. Many people of the town walk along it with their dogs. "
    "In the evening, herons stand in the shallow water and wait for fish to come near. Nobody knows how old the stone bridge is, but the "
    "oldest map shows it already. A small museum beside it tells of floods, trade and two long wars."
)


def test_extract_keeps_structure() -> None:
    page = """<html><head><title> A  title </title><style>x{}</style></head><body><nav><a href="/">Home</a></nav>
    <h1>Head&amp;line</h1><p>First   <b>bold</b> &lt;tag&gt;.<br>Second line.</p><ul><li>one</li><li>two</li></ul>
    <table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table><pre>def f(x):\n    return x</pre>
    <div class="main-menu">Menu words</div><script>if (a < b) { "</div>" }</script><dl><dt>term</dt><dd>meaning</dd></dl>
    <p><a href="/x">more links</a> <a href="/y">and more</a></p></body></html>"""
    found = extract(page, 100)
    assert found.title == "A title"
    assert found.text == (
        "# Head&line\n\nFirst bold <tag>.\nSecond line.\n\n- one\n- two\n\na | b\n1 | 2\n\ndef f(x):\n    return x\n\nterm\n    meaning"
    )


def test_extract_prefers_main_element() -> None:
    assert extract("<body><p>around it</p><main><p>the text</p></main></body>", 100).text == "the text"


def test_hostile_pages() -> None:
    with pytest.raises(ExtractError, match="deeper than 400") as error:
        extract("<div>" * 200_000 + "text", 400)
    assert error.value.rule == "extract.depth"
    assert extract("<p>unclosed <b>and <i>crossed</b> tags</i> <a href='>'>x", 400).text.startswith("unclosed and crossed tags")
    assert extract("", 400).text == ""
    noise = random.Random(1)
    for _ in range(300):
        extract(
            "".join(
                noise.choice(["<p>", "</p>", "<a href=x>", "</a>", "<table>", "<td>", "x ", "<!--", "-->", "&", "<", "\0"])
                for _ in range(60)
            ),
            400,
        )


def test_decode() -> None:
    assert decode("naïve".encode("latin-1"), "iso-8859-1") == "naïve"
    assert decode('<meta charset="windows-1251"><p>привет'.encode("windows-1251"), "").endswith("привет")
    assert "abc" in decode(b"abc\xff\xfe\x80def", "utf-8")


def test_clean() -> None:
    assert clean("a\r\nb  \n\n\n\nc\x00 <function f at 0x7f00deadbeef>\n") == "a\nb\n\nc <function f>"
    assert clean("e\u0301") == "é"
    assert drop_empty_headings("# A\n\n## B\n\n## C\n\ntext\n\n## D\n\n# E") == "# A\n\n## C\n\ntext"
    repeated = "x" * 40
    assert drop_repeated_paragraphs(f"{repeated}\n\nshort\n\n{repeated}\n\nshort", 40) == f"{repeated}\n\nshort\n\nshort"


def test_pydoc_page() -> None:
    page = """<title>Pydoc: module m</title><body><div style='float:left'>Python 3<br>Linux</div><div>
    <table class="heading"><tr><td class="title">&nbsp;<br><strong class="title">m</strong></td>
    <td class="extra"><a href=".">index</a></td></tr></table>
    <p><span class="code">About&nbsp;m:<br>\n&nbsp;&nbsp;&nbsp;&nbsp;code()</span></p>
    <table class="section"><tr><td class="section-title"><strong>Modules</strong></td></tr>
    <tr><td>&nbsp;</td><td><a href="re.html">re</a></td></tr></table>
    <table class="section"><tr><td class="section-title">class <strong>C</strong>(object)</td></tr><tr><td>&nbsp;</td><td>
    <dl><dt>Method resolution order:</dt><dd><a href="#C">C</a></dd></dl><hr>Methods defined here:<br>
    <dl><dt><strong>go</strong>(self, a=1) -&gt; int</dt><dd><span class="code">Go&nbsp;there.</span></dd></dl>
    <hr>Data descriptors defined here:<br><dl><dt><strong>__dict__</strong></dt>
    <dd>dictionary for instance variables</dd></dl></td></tr></table></div>"""
    text = extract(page, 100, pydoc_pages.hint).text
    assert drop_empty_headings(pydoc_pages.clean(text)) == (
        "# m\n\nAbout m:\n    code()\n\n## class C(object)\n\ngo(self, a=1) -> int\n    Go there."
    )


def test_annotate_marks_and_never_removes() -> None:
    pages = [
        Raw(content=f"<p>{PROSE}</p>".encode(), url="good", mime="text/html"),
        Raw(content=b"%PDF", url="pdf", mime="application/pdf"),
        Raw(content=b"", url="gone", mime="text/html", status=404),
        Raw(content=b"<p>" * 1000, url="deep", mime="text/html"),
        Raw(content=b"x" * 9_000_000, url="big", mime="text/html"),
        Raw(content=b"\xff\xfe\x00\xd8" * 10, url="bytes", mime="text/html", charset="utf-16"),
    ]
    rows = annotate(raw_batch([("file", number, page) for number, page in enumerate(pages)], "s", "CC0"), Annotation()).to_pylist()
    assert [row["rule"] for row in rows[:5]] == ["", "extract.mime", "extract.status", "extract.empty", "extract.size"]
    assert rows[0]["text"] == PROSE
    assert rows[0]["language"] == "en"
    assert rows[0]["license"] == "CC0"
    assert len(rows) == 6
    assert dict(rows[0]["scores"])["words"] == len(PROSE.split())

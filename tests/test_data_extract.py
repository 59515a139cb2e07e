"""pytest tests/test_data_extract.py: main text of pages, its structure, metadata, opt-outs and character sets."""

from __future__ import annotations

import csv
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from openmai.data.extract import depth as depth_module
from openmai.data.extract import features as features_module
from openmai.data.extract import model
from openmai.data.extract import scan as scan_module
from openmai.data.extract.clean import clean
from openmai.data.extract.depth import is_deep
from openmai.data.extract.encoding import decode
from openmai.data.extract.html import ExtractError, Page, extract
from openmai.data.extract.signals import opt_out

SENTENCES = [
    "The river that runs past the old mill is slow in summer and wild in spring, and many people of the town walk along it.",
    "In the evening, herons stand in the shallow water and wait for fish to come near, while the last light falls on the bridge.",
    "Nobody knows how old the stone bridge is, but the oldest map that was found in the town hall, drawn in 1620, shows it already.",
    "A small museum beside it tells of floods, of trade and of two long wars, and it is open on most days of the week.",
]


def text_of(body: str, form: str = "text") -> str:
    return extract(f"<html><body>{body}</body></html>", 400, format=form).text  # type: ignore[arg-type]


# --- main text


def news_page() -> str:
    menu = "".join(f'<li><a href="/{name}">{name.title()}</a></li>' for name in ("news", "sport", "culture", "travel", "contact"))
    paragraphs = "".join(f"<p>{a} {b}</p>" for a, b in zip(SENTENCES * 3, SENTENCES[1:] * 4, strict=False))
    teasers = "".join(
        f'<div class="teaser"><h3><a href="/{n}">Another story number {n}</a></h3><p>Words about it. <a href="/{n}">More</a></p></div>'
        for n in range(5)
    )
    comments = "".join(f'<div class="comment"><span class="author">Guest {n}</span><p>I do not agree at all!</p></div>' for n in range(4))
    return f"""<html lang="en-GB"><head><title>The old bridge - The Daily Example</title>
    <meta property="article:published_time" content="2021-03-04T10:00:00Z"></head><body>
    <header><div class="logo">The Daily Example</div><nav class="main-menu"><ul>{menu}</ul></nav></header>
    <main><article class="post"><h1>The old bridge</h1><div class="entry-content">{paragraphs}</div></article>
    <div id="comments"><h2>4 comments</h2>{comments}</div></main>
    <aside class="sidebar"><h2>Related stories</h2>{teasers}</aside>
    <footer class="site-footer"><p>Copyright 2021 The Daily Example. All rights reserved. <a href="/privacy">Privacy</a></p></footer>
    </body></html>"""


def test_main_text_without_the_rest() -> None:
    text = extract(news_page(), 400).text
    assert all(sentence in text for sentence in SENTENCES)
    for unwanted in ("Culture", "Another story", "do not agree", "All rights reserved", "4 comments"):
        assert unwanted not in text


def test_reference_page_keeps_short_lines_and_code() -> None:
    entries = "".join(
        f'<dl class="function"><dt id="f{n}"><code>do_{n}(path, mode={n})</code><a class="headerlink" href="#f{n}">¶</a></dt>'
        f"<dd><p>Open the file at <em>path</em> in mode {n}.</p><pre>x = do_{n}('a')\n    .close()</pre></dd></dl>"
        for n in range(12)
    )
    side = "".join(f'<li><a href="#f{n}">do_{n}()</a></li>' for n in range(12))
    text = text_of(
        f'<div class="related" role="navigation"><a href="/">index</a> | <a href="/m">modules</a></div>'
        f'<div class="document"><div class="body" role="main"><h1>The module</h1><p>{SENTENCES[0]}</p>{entries}</div></div>'
        f'<div class="sphinxsidebar" role="navigation"><h3>Table of Contents</h3><ul>{side}</ul></div>'
    )
    assert "# The module" in text
    for n in range(12):
        assert f"do_{n}(path, mode={n})\n    Open the file at path in mode {n}." in text.replace("\n\n", "\n")
        assert f"    x = do_{n}('a')\n        .close()" in text
    assert "¶" not in text
    assert "Table of Contents" not in text


def test_article_text_of_the_metadata_when_the_page_has_none() -> None:
    body = " ".join(SENTENCES)
    page = f'<script type="application/ld+json">{{"@type": "Article", "articleBody": "{body}"}}</script><p>Please enable JavaScript.</p>'
    assert extract(page, 400).text == body


# --- structure

STRUCTURE = """<h2>Head&amp;line</h2><p>First   <b>bold</b> &lt;tag&gt; <code>f(x)</code>.<br>Second line.</p>
<ul><li>one</li><li>two<ul><li>inner</li></ul></li></ul><ol start="3"><li><p>three</p></li><li><p>four</p></li></ol>
<table><tr><th>a</th><th>b</th></tr><tr><td></td><td>2</td></tr></table>
<pre>def f(x):
    return  x &lt; 1</pre><blockquote><p>said</p></blockquote><dl><dt>term</dt><dd>meaning</dd></dl>
<p>H<sub>2</sub>O, 10<sup>-3</sup> m<sup>2</sup>, 1<sup>st</sup><sup class="reference"><a href="#1">[1]</a></sup> <q>so</q></p>"""


def test_structure_as_text() -> None:
    assert text_of(STRUCTURE) == (
        "## Head&line\n\nFirst bold <tag> f(x).\nSecond line.\n\n- one\n- two\n  - inner\n\n3. three\n4. four\n\na | b\n2\n\n"
        "def f(x):\n    return  x < 1\n\nsaid\n\nterm\n    meaning\n\nH2O, 10⁻³ m², 1st “so”"
    )


def test_structure_as_markdown() -> None:
    assert text_of(STRUCTURE, "markdown") == (
        "## Head&line\n\nFirst bold <tag> `f(x)`.\nSecond line.\n\n- one\n- two\n    - inner\n\n3. three\n4. four\n\n"
        "| a | b |\n| --- | --- |\n|  | 2 |\n\n```\ndef f(x):\n    return  x < 1\n```\n\n> said\n\nterm\nmeaning\n\nH2O, 10⁻³ m², 1st “so”"
    )


def test_layout_tables_are_not_rows() -> None:
    assert text_of("<table><tr><td><p>a</p><p>b</p></td><td>c</td></tr></table>") == "a\n\nb\n\nc"


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("x <math><mi>a</mi><annotation encoding='application/x-tex'>\\alpha &lt; b</annotation></math> y", "x $\\alpha < b$ y"),
        ("<math display='block' alttext='{\\displaystyle a^2}'><mi>a</mi></math>", "$$a^2$$"),
        ("<math><mfrac><mi>a</mi><mrow><mi>b</mi><mo>+</mo><mn>1</mn></mrow></mfrac></math>", "$a/{b + 1}$"),
        ("<math><msup><mi>x</mi><mn>2</mn></msup><msqrt><mi>y</mi></msqrt></math>", "$x^2sqrt(y)$"),
        ('<script type="math/tex; mode=display">x</script>', "$$x$$"),
        (
            '<span class="katex"><span class="katex-mathml"><math><annotation encoding="application/x-tex">q</annotation></math></span>'
            '<span class="katex-html" aria-hidden="true"><span>q</span></span></span>',
            "$q$",
        ),
        (
            '<span class="mwe-math-element"><span class="mwe-math-mathml-inline" style="display: none;"><math alttext="{\\displaystyle E}">'
            '<mi>E</mi></math></span><img class="mwe-math-fallback-image-inline" alt="E"></span>',
            "$E$",
        ),
        ('<img class="latex" alt="\\frac12">', "$\\frac12$"),
    ],
)
def test_formulas(html: str, text: str) -> None:
    assert text_of(f"<p>{html}</p>") == text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ('<pre><span class="lineno">1</span><code>a\n  b</code></pre>', "a\n  b"),
        ("<ruby>漢<rt>かん</rt></ruby>字", "漢字"),
        ("a<!-- b -->c<script>d</script><style>e</style><svg><text>f</text></svg>", "ac"),
        ('a<span style="display : none">b</span><span class="sr-only">c</span><span hidden>d</span>', "a"),
        ("a<br><br>b<br>c", "a\n\nb\nc"),
        ("<p>&nbsp;</p><p>&nbsp;a</p>", "a"),
    ],
)
def test_details(html: str, text: str) -> None:
    assert text_of(html) == text


def test_hint_makes_headings_and_leaves_out() -> None:
    def hint(tag: str, attributes: str) -> int | None:
        return {"td": 2, "div": 0}.get(tag)

    assert extract("<table><tr><td>head</td></tr></table><div>gone</div><p>kept</p>", 400, hint).text == "## head\n\nkept"


# --- what the page says about itself


@pytest.mark.parametrize(
    ("html", "date"),
    [
        ('<meta property="article:published_time" content="2020-02-29T23:59:59+02:00">', "2020-02-29"),
        ('<meta name="DC.date" content="20190304">', "2019-03-04"),
        ('<meta name="date" content="March 4th, 2019">', "2019-03-04"),
        ('<meta name="pubdate" content="Mon, 04 Mar 2019 10:00:00 GMT">', "2019-03-04"),
        ('<meta name="date" content="4.3.2019">', "2019-03-04"),
        ('<meta name="date" content="2019-02-31">', ""),
        ('<script type="application/ld+json">[{"@graph": [{"datePublished": "2018-01-02"}]}]</script>', "2018-01-02"),
        ('<script type="application/ld+json">{"datePublished": "2018-01-02"</script>', "2018-01-02"),
        ('<time datetime="2016-01-01">now</time><time class="published" datetime="2017-05-06">', "2017-05-06"),
        ('<span itemprop="datePublished" content="2017-05-06"></span>', "2017-05-06"),
        ('<link rel="canonical" href="https://example.org/2017/05/06/title">', "2017-05-06"),
        ("<p>4 March 2019</p>", ""),
    ],
)
def test_date(html: str, date: str) -> None:
    assert extract(html, 400).date == date


@pytest.mark.parametrize(
    ("html", "language"),
    [
        ('<html lang="de-AT">', "de"),
        ('<html xml:lang="fr">', "fr"),
        ('<meta http-equiv="Content-Language" content="pt-BR, en">', "pt"),
        ('<meta property="og:locale" content="en_US">', "en"),
        ('<html lang="english please">', ""),
        ("", ""),
    ],
)
def test_language(html: str, language: str) -> None:
    assert extract(html, 400).language == language


@pytest.mark.parametrize(
    ("html", "license"),
    [
        ('<a rel="license" href="http://creativecommons.org/licenses/by-sa/3.0/de/">', "CC-BY-SA-3.0"),
        ('<a href="https://creativecommons.org/publicdomain/zero/1.0/" rel="nofollow license">', "CC0-1.0"),
        ('<link rel="license" href="https://example.org/terms">', "https://example.org/terms"),
        ('<script type="application/ld+json">{"license": {"url": "https://creativecommons.org/licenses/by/4.0"}}</script>', "CC-BY-4.0"),
        ('<footer><a href="//creativecommons.org/licenses/by-nc/2.5/">CC</a></footer>', "CC-BY-NC-2.5"),
        ('<img><a href="https://creativecommons.org/licenses/by/2.0/">photo</a>' + "<p>text</p>" * 500, ""),
        ("", ""),
    ],
)
def test_license(html: str, license: str) -> None:
    assert extract(html, 400).license == license


@pytest.mark.parametrize(
    ("metas", "headers", "reason"),
    [
        ([("robots", "index, noai")], {}, "meta robots: noai"),
        ([("Robots", "NOML")], {}, "meta robots: noml"),
        ([("robots", "noindex, nosnippet, noarchive, noimageai")], {}, ""),
        ([("googlebot", "noindex")], {}, ""),
        ([("CCBot", "nofollow")], {}, "meta ccbot: nofollow"),
        ([("description", "how to set noai")], {}, ""),
        ([("tdm-reservation", "1")], {}, "meta tdm-reservation: 1"),
        ([("tdm-reservation", "0")], {"TDM-Reservation": "1"}, "header tdm-reservation: 1"),
        ([], {"x-robots-tag": "noindex, noai, noimageai"}, "header X-Robots-Tag: noai"),
        ([], {"X-Robots-Tag": "googlebot: nofollow, otherbot: noml"}, "header X-Robots-Tag: otherbot: noml"),
        ([], {"X-Robots-Tag": "GPTBot: noindex"}, "header X-Robots-Tag: gptbot: noindex"),
        ([], {"X-Robots-Tag": "unavailable_after: 25 Jun 2030 15:00:00 PST"}, ""),
        ([], {"Content-Usage": "search=y, train-ai=n"}, "header Content-Usage: train-ai=n"),
        ([], {"Content-Usage": "train-ai=y"}, ""),
        ([], {}, ""),
    ],
)
def test_opt_out(metas: list[tuple[str, str]], headers: dict[str, str], reason: str) -> None:
    assert opt_out(metas, headers) == reason


def test_page_carries_its_opt_out() -> None:
    assert extract('<meta name="robots" content="noai, noimageai"><p>x', 400).opt_out == "meta robots: noai"


# --- character sets

GERMAN, RUSSIAN, JAPANESE = "Größe – „gut“ für 5 €", "Привет, мир! Как дела?", "日本語の文章です。今日は天気がいい。"
CHINESE, TAIWANESE, KOREAN = "这是一个中文网页，内容很好。", "這是一個中文網頁，內容很好。", "한국어 문서입니다. 오늘은 날씨가 좋다."


@pytest.mark.parametrize(
    ("content", "charset", "text"),
    [
        (b"\xef\xbb\xbf" + GERMAN.encode(), "iso-8859-1", GERMAN),
        (GERMAN.encode("utf-16"), "", GERMAN),
        (b"\xfe\xff" + GERMAN.encode("utf-16-be"), "", GERMAN),
        (f"<p>{GERMAN}</p>".encode("utf-16-le") * 9, "", f"<p>{GERMAN}</p>" * 9),
        (f"<p>{GERMAN}</p>".encode("utf-16-be") * 9, "", f"<p>{GERMAN}</p>" * 9),
        (GERMAN.encode(), "iso-8859-1", GERMAN),  # the server is wrong
        (GERMAN.encode("cp1252"), "iso-8859-1", GERMAN),  # what browsers read as latin-1
        (b"a \x81 b \xe9", "latin1", "a \x81 b é"),
        (f'<meta charset="windows-1251">{RUSSIAN}'.encode("cp1251"), "", f'<meta charset="windows-1251">{RUSSIAN}'),
        (f"<?xml version='1.0' encoding='KOI8-R'?>{RUSSIAN}".encode("koi8-r"), "", f"<?xml version='1.0' encoding='KOI8-R'?>{RUSSIAN}"),
        (JAPANESE.encode("shift_jis"), "Shift_JIS", JAPANESE),
        ("①髙".encode("cp932"), "x-sjis", "①髙"),  # beyond the standard, in all real pages
        (JAPANESE.encode("euc-jp"), "euc-jp", JAPANESE),
        (b"<p>" + JAPANESE.encode("iso2022_jp"), "iso-2022-jp", "<p>" + JAPANESE),
        (CHINESE.encode("gb18030"), "gb2312", CHINESE),
        (TAIWANESE.encode("big5"), "big5", TAIWANESE),
        (KOREAN.encode("cp949"), "ks_c_5601-1987", KOREAN),
        (RUSSIAN.encode("cp1251") * 20, "", RUSSIAN * 20),  # nothing is said
        (RUSSIAN.encode("cp1251") * 20, "utf-8", RUSSIAN * 20),  # something wrong is said
        (b"abc", "no-such-thing", "abc"),
        (b"", "utf-8", ""),
        ("GrÃ¶ÃŸe".encode(), "utf-8", "GrÃ¶ÃŸe"),  # garbled before it was written
    ],
)
def test_decode(content: bytes, charset: str, text: str) -> None:
    assert decode(content, charset) == text


def test_decode_mends_what_is_cut() -> None:
    text = decode(GERMAN.encode() * 50 + "ü".encode()[:1], "utf-8")
    assert text == GERMAN * 50 + "\ufffd"


# --- hostile pages

MANY = 30_000


@pytest.mark.parametrize(
    "html",
    [
        "<b>" * 300 + "<p>" * 300,
        "<!--" + "x" * MANY,
        '<p class="' + "a b " * MANY,
        '<div a="' * MANY,
        "<" * MANY,
        "&" * MANY,
        "\0" * MANY,
        "<table><tr><td>a<td>b</table>" * MANY,
        "<table>" + "<tr><td>a<td>b" * MANY,
        "<tr>" + "<td>a" * MANY,
        "<math>" * 300 + "<mi>x",
        "<p><sup>" * 300,
        "<br>" * MANY,
        '<script type="application/ld+json">{"license": ' + "[" * MANY + "</script>",
        '<script type="application/ld+json">{"datePublished": ' * 300,
        '<meta name=date content="' + "1" * MANY + '">',
        '<time datetime="2020-13-45">' * MANY,
        '<a href="creativecommons.org/" rel="license">' * 300,
        '<p style="' + "display:" * MANY + '">',
    ],
)
def test_hostile_pages_end(html: str) -> None:
    for form in ("text", "markdown"):
        extract(html, 10**6, format=form).text.encode()  # type: ignore[arg-type]


def test_what_a_page_hides_is_left_out_unless_it_is_nearly_all() -> None:
    shown, hidden = (f"<p>{SENTENCES[k]} {SENTENCES[k + 1]}</p>" for k in (0, 2))
    for how in ('style="display: none"', "hidden", 'style="color:red;visibility:hidden"'):
        text = text_of(f"<h1>The bridge</h1><div>{shown * 4}</div><div {how}>{hidden * 4}</div>")
        assert SENTENCES[0] in text
        assert SENTENCES[3] not in text
        assert SENTENCES[3] in text_of(f"<h1>The bridge</h1><div {how}>{shown * 8}{hidden * 8}</div>")


def test_a_short_page_is_read_without_what_it_hides() -> None:
    assert text_of(f'<p>{SENTENCES[0]}</p><div style="visibility: hidden"><p>{SENTENCES[1]}</p></div>') == SENTENCES[0]
    assert text_of(f"<div hidden><p>{SENTENCES[0]}</p></div>") == SENTENCES[0]


def trail(last: str) -> str:
    return f'<nav aria-label="Breadcrumb"><ul><li><a href="/">Towns</a></li><li><a href="/b">Bridges</a></li><li>{last}</li></ul></nav>'


def test_what_stands_in_nav_is_left_out_unless_it_is_nearly_all() -> None:
    last, body = "§ 12. The bridge by the old mill", "".join(f"<p>{sentence}</p>" for sentence in SENTENCES * 3)
    page = f"<head><title>{last}</title></head><div>{trail(last)}<main><article><h1>{last}</h1>{body}</article></main></div>"
    assert extract(page, 400).text == f"# {last}\n\n" + "\n\n".join(SENTENCES * 3)
    links = "".join(
        f'<li><a href="/{n}">Law {n}. Act of {1900 + n} about the bridge by the old mill and its keepers.</a></li>' for n in range(40)
    )
    assert "- Law 7. Act of 1907" in text_of(f"<main><article><h1>The laws</h1><nav><ul>{links}</ul></nav></article></main>")


def test_a_short_page_keeps_a_heading_that_a_list_of_contents_names() -> None:
    page = f'{trail("The bridge")}<main><article><h1 class="h__toc">The bridge</h1><p>{SENTENCES[0]}</p></article></main>'
    assert text_of(page) == f"# The bridge\n\n{SENTENCES[0]}"


def test_deep_pages() -> None:
    deep = "<div>" * 200_000 + "text"
    assert extract(deep, 10**6).text == "text"
    with pytest.raises(ExtractError, match="deeper than 400"):
        extract(deep, 400)
    lists = extract("<ul><li>a" * 5_000, 10**6).text
    assert len(lists) < 500_000


@pytest.mark.parametrize(
    "piece",
    [
        *("(x<rt class=nav>", "<optgroup>", "<div><span>", "<span><div></span>", "<x-y/>", "<svg/><rt/>", "<svg></svg><div/>"),
        *("<svg><b></svg>", "<div a='>'>", "<select><b></select>", "<button><i></button>", "<form><div></form>", "<form><select></form>"),
        *("<p><b><p><div>", "<li><ul>", "<b><div></b>", "<svg><foreignObject><x-y/>"),
    ],
)
def test_deep_pages_are_rejected_before_they_are_parsed(piece: str) -> None:
    """The parser would take seconds: for many a tag it looks through all that is open."""
    assert is_deep(piece * 10_000, 400)
    with pytest.raises(ExtractError, match="deeper than 400"):
        extract(piece * 10_000, 400)


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "<p>x",
            "<li>x",
            "<tr><td>x",
            "<br><img>",
            "<div><span>x</div>",
            "<!-- <div> -->",
            "<!div>",
            "</p></x>",
            "<script>'<div>'</script>",
        ),
        *("<svg><path/><path/></svg>", "<div title='<div>'>x</div>", "<ruby>x<rt>y</ruby>", "<select><option>x</select>", "<DIV>x</div>"),
        *("<math><mi>x</mi><mo/></math>", "a < b <3 <div<div></div<div>", "<textarea><div></textarea>", "<b><div>x</b></div>"),
        *("<table><tr><td><b>x</table>", "<svg><path><circle></svg>", "<svg><title>x</title><path/></svg>"),
    ],
)
def test_long_pages_are_not_deep(piece: str) -> None:
    assert not is_deep("<body>" + piece * 20_000, 400)
    assert not is_deep("<svg>" + "<path/>" * 20_000, 400)


PARTS = [
    *(
        "<p>",
        "</p>",
        "<div class='nav x'>",
        "</div>",
        "<a href=x>",
        "</a>",
        "<table><tr>",
        "<td>",
        "<th>",
        "</tr>",
        "</table>",
        "<ul>",
        "<li>",
    ),
    *("</ul>", "<ol start=7>", "<pre>", "</pre>", "<code>", "</code>", "<br>", "<hr>", "<sup>", "</sup>", "<q>", "</q>", "<h2>", "</h2>"),
    *("<math>", "</math>", "<mi>", "<svg>", "</svg>", "<script>", "</script>", "<!--", "-->", "<blockquote>", "<dl><dt>", "<dd>", "</dl>"),
    *(
        "&amp;",
        "&",
        "<",
        ">",
        "\0",
        "é",
        "\ud800",
        " | ",
        "`",
        "$",
        "word ",
        SENTENCES[0],
        "<plaintext>",
        "<template>",
        "<noscript>",
        "</body>",
    ),
]
PIECE = st.one_of(st.sampled_from(PARTS), st.text(max_size=8))


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECE, max_size=60), st.booleans())
@example(["<tr>", "<td>", "<td>", "</tr>", "word "], True)
def test_any_page(pieces: list[str], long: bool) -> None:
    html = "".join(pieces) + (f"<p>{' '.join(SENTENCES)}</p>" * 3 if long else "")
    for form in ("text", "markdown"):
        try:
            page = extract(html, 200, format=form)  # type: ignore[arg-type]
        except ExtractError:
            continue
        assert page == extract(html, 200, format=form)  # type: ignore[arg-type]
        assert isinstance(page, Page)
        clean(page.text).encode()
        assert not re.search("[\x01-\x05]", page.text.replace("\t", "")) or re.search("[\x01-\x05]", html)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["", "utf-8", "gbk", "shift_jis", "utf-16", "iso-2022-jp", "latin1", "?"]))
def test_decode_any_bytes(content: bytes, charset: str) -> None:
    decode(content, charset).encode()


# --- the compiled parts


def test_trees_against_definition() -> None:
    """Walks the trees of the file node by node."""
    names = [*features_module.NAMES, *model.CONTEXT_NAMES]
    matrix = np.random.default_rng(0).integers(-5, 120, (40, len(names)), dtype=np.int32)
    trees: dict[tuple[str, int], list[dict[str, str]]] = {}
    with model.FILE.open(newline="") as file:
        number = 0
        for row in csv.DictReader(file):
            number += row["node"] == "0"
            trees.setdefault((row["stage"], number), []).append(row)
    for stage in (0, 1):
        expected = np.zeros(len(matrix), dtype=np.int64)
        for (of_stage, _), nodes in trees.items():
            for i in range(len(matrix) if of_stage == str(stage) else 0):
                node = nodes[0]
                while node["feature"]:
                    node = nodes[int(node["left" if matrix[i, names.index(node["feature"])] <= int(node["threshold"]) else "right"])]
                expected[i] += int(node["value"])
        assert model.score(matrix, model.load(model.FILE)[stage]).tolist() == expected.tolist()


def test_blocks_of_a_page() -> None:
    page = scan_module.scan('<p class="main-menu">Hi, <a href="x">you &amp; I</a>.</p><p> \n </p><div>Ä <b>b</b></div>', "", 10)
    found = page.blocks[:, [scan_module.CHARS, scan_module.WORDS, scan_module.LINKS, scan_module.ANCHORS, scan_module.COMMAS]]
    assert found.tolist() == [[12, 3, 8, 1, 1], [3, 2, 0, 0, 0]]
    matrix = features_module.features(page.blocks, page.elements, np.zeros(2, dtype=np.int64))
    row = dict(zip(features_module.NAMES, matrix[0].tolist(), strict=True))
    assert (row["link_share"], row["up_nav"], row["up_share"], row["chars@1"], row["blocks_of_page"]) == (66, 0, 20, 3, 2)


def test_compiled_code_is_made_anew_with_what_it_was_compiled_from() -> None:
    """numba looks at a function's own file only; constants and functions that it takes from others are compiled in."""
    for module in (depth_module, scan_module, features_module):
        folder = Path(str(module.__file__)).parent
        sources = "".join((folder / name).read_text(encoding="utf-8").split("COMPILED_WITH", 1)[0] for name in module.COMPILED_FROM)
        found = hashlib.sha256(sources.encode()).hexdigest()[:16]
        assert found == module.COMPILED_WITH, f"set COMPILED_WITH = {found!r} in {module.__file__}"

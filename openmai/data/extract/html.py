"""HTML into plain text that keeps its structure: headings, lists, table rows, indentation of definitions, and code as it stands.

Lexbor parses (resiliparse) and writes the tree out again as well-formed HTML; one scan over its tags then makes the text. That is
several times faster than visiting nodes from Python, and linear in the size of the page whatever its depth. Boilerplate goes in two ways:
elements whose role is not content, and blocks made of links (Kohlschütter et al. 2010, "Boilerplate detection using shallow text
features").
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import ElementNode, HTMLTree

Hint = Callable[[str, str], int | None]
_TAG = re.compile(r"<(?:!--.*?-->|(/?)([a-zA-Z][^\s/>]*)((?:[^>\"]|\"[^\"]*\")*)>)", re.S)
_NAMES = re.compile(r"\b(?:class|id)=\"([^\"]*)\"")
_VOID = {"br", "hr", "img", "input", "meta", "link", "source", "track", "wbr", "area", "base", "col", "embed", "param"}
_RAW = {"script", "style", "iframe", "xmp", "noembed", "noframes", "plaintext"}
_SKIP = {
    "script",
    "style",
    "noscript",
    "template",
    "svg",
    "math",
    "nav",
    "footer",
    "aside",
    "form",
    "iframe",
    "button",
    "select",
    "textarea",
    "object",
    "video",
    "audio",
    "canvas",
    "head",
    "dialog",
}
_SPACED = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "pre", "blockquote", "figure", "hr", "section", "article"}
_BLOCKS = _SPACED | {
    "div",
    "li",
    "dt",
    "dd",
    "tr",
    "main",
    "header",
    "body",
    "address",
    "center",
    "fieldset",
    "details",
    "summary",
    "figcaption",
    "tbody",
    "thead",
    "caption",
}
_CELLS = {"td", "th"}
_CONTAINERS = (_BLOCKS | _CELLS | {"a", "span"}) - {"main", "body", "article"}
_HEADINGS = {f"h{level}" for level in range(1, 7)}
_INDENT = {"dd": 4}
_WHITE = re.compile(r"[ \t\n\r\f]+")
_BOILERPLATE = re.compile(
    r"(?:^|[\s_-])(?:nav|navbar|navigation|menu|sidebar|footer|breadcrumbs?|comments?|share|sharing|social|cookies?|banner|advert\w*|ads?"
    r"|related|promo|pagination|pager|toolbar|popup|modal|newsletter|subscribe|skip-link|headerlink)(?:$|[\s_-])",
    re.I,
)
_LINK_SHARE = 0.6


class ExtractError(Exception):
    """A page that is not to be extracted; `rule` names the limit, the message says what was found."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


@dataclass
class _Block:
    """Lines that belong together; `links` counts characters inside links, `gap` asks for a blank line before."""

    text: str
    indent: int
    level: int
    gap: bool
    links: int
    bullet: str


@dataclass
class _State:
    blocks: list[_Block] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    links: int = 0
    indent: int = 0
    level: int = 0
    gap: bool = False
    bullet: str = ""
    in_link: int = 0
    in_pre: int = 0

    def flush(self) -> None:
        """End the running block."""
        text = "".join(self.pieces)
        if text.strip():
            self.blocks.append(_Block(text, self.indent, self.level, self.gap, self.links, self.bullet))
            self.gap, self.bullet = False, ""
        self.pieces, self.links = [], 0


def decode(content: bytes, charset: str) -> str:
    """Return HTML bytes as text: the declared character set if it fits, else the detected one; bytes that fit nowhere are replaced."""
    declared = map_encoding_to_html5(charset, fallback_utf8=False) if charset else None
    encoding = declared or detect_encoding(content[:65536], html5_compatible=True) or "utf-8"
    return bytes_to_str(content, encoding, fallback_encodings=("utf-8", "windows-1252"))


def no_hint(tag: str, attributes: str) -> int | None:
    """Say nothing about any element."""
    return None


def extract(html: str, max_depth: int, hint: Hint = no_hint) -> tuple[str, str]:
    """Return (title, text) of a page.

    `hint(tag, attributes)` knows a site: 1-6 makes the element a heading of that level, 0 leaves it out, None says nothing.
    Raises ExtractError for a tree deeper than `max_depth`.
    """
    tree = HTMLTree.parse(html)
    title = " ".join((tree.title or "").split())
    root = _main_element(tree)
    return title, _render(_scan(root.html, max_depth, hint)) if root is not None else ""


def _main_element(tree: HTMLTree) -> ElementNode | None:
    body = tree.body
    if body is None:
        return None
    for selector in ("main", "[role=main]", "article"):
        found = body.query_selector_all(selector)
        if len(found) == 1:
            return found[0]
    return body


def _scan(html: str, max_depth: int, hint: Hint) -> list[_Block]:
    state = _State()
    stack: list[tuple[str, Callable[[], None] | None]] = []
    position, skipped_at = 0, 0  # depth of the element that is being left out, 0 for none
    while (match := _TAG.search(html, position)) is not None:
        if not skipped_at and match.start() > position:
            _add_text(html[position : match.start()], state)
        position = match.end()
        end, tag, attributes = match.groups()
        if tag is None:
            continue
        if tag == "br" and not end:
            state.pieces.append("\n")
        elif end:
            while stack:
                name, leave = stack.pop()
                if len(stack) < skipped_at:
                    skipped_at = 0
                if leave:
                    leave()
                if name == tag:
                    break
        elif tag not in _VOID:
            level = None if skipped_at else hint(tag, attributes)
            stack.append((tag, None))
            if len(stack) > max_depth:
                raise ExtractError("extract.depth", f"elements nested deeper than {max_depth}")
            if tag in _RAW:
                position = max(position, html.find(f"</{tag}", position))
            if not skipped_at:
                if tag in _SKIP or level == 0 or _is_boilerplate(tag, attributes):
                    skipped_at = len(stack)
                else:
                    stack[-1] = (tag, _enter(tag, attributes, level, state))
    state.flush()
    return state.blocks


def _add_text(text: str, state: _State) -> None:
    if "&" in text:  # what Lexbor writes out has only these
        text = text.replace("&nbsp;", "\xa0").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    if not state.in_pre:
        text = _WHITE.sub(" ", text)
        if state.pieces and state.pieces[-1] == "\n":
            text = text.lstrip(" ")  # the line end of the source after a <br>; indentation is made of no-break spaces
        if not text or (text == " " and (not state.pieces or state.pieces[-1].endswith((" ", "\n")))):
            return
    state.pieces.append(text)
    if state.in_link:
        state.links += len(text.strip())


def _is_boilerplate(tag: str, attributes: str) -> bool:
    if not attributes or tag not in _CONTAINERS:
        return False
    return any(_BOILERPLATE.search(names) for names in _NAMES.findall(attributes))


def _enter(tag: str, attributes: str, level: int | None, state: _State) -> Callable[[], None] | None:
    """Change the state on the way into an element; return what undoes it on the way out."""
    if tag == "a":
        return _enter_link(state) if "href=" in attributes else None
    if tag in _CELLS and not level:
        state.pieces = [*state.pieces, " | "] if "".join(state.pieces).strip() else []
        return None
    if tag not in _BLOCKS and not level:
        return None
    level = level or (int(tag[1]) if tag in _HEADINGS else 0)
    spaced = tag in _SPACED or bool(level)
    state.flush()
    state.gap = state.gap or spaced
    before = (state.indent, state.level, state.in_pre)
    state.indent += _INDENT.get(tag, 0)
    state.level = level
    state.in_pre += tag == "pre"
    if tag == "li":
        state.bullet = "- "

    def leave() -> None:
        state.flush()
        state.gap = state.gap or spaced
        state.indent, state.level, state.in_pre = before

    return leave


def _enter_link(state: _State) -> Callable[[], None]:
    def leave() -> None:
        state.in_link -= 1

    state.in_link += 1
    return leave


def _render(blocks: list[_Block]) -> str:
    lines: list[str] = []
    gap = False
    for block in blocks:
        gap = gap or block.gap
        if not block.level and block.links > _LINK_SHARE * len("".join(block.text.split())):
            continue
        if gap and lines:
            lines.append("")
        gap = bool(block.level)
        lines += _lines(block)
    return "\n".join(lines)


def _lines(block: _Block) -> list[str]:
    if block.level:
        return ["#" * block.level + " " + " ".join(block.text.split())]
    text = block.text.replace("\xa0", " ").strip("\n")
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[0]:
        lines.pop(0)
    while lines and not lines[-1]:
        lines.pop()
    pad = " " * block.indent
    first = pad + block.bullet + (lines[0].lstrip() if block.bullet else lines[0])
    return [first.rstrip(), *(pad + line if line else "" for line in lines[1:])]

"""Formulas as TeX: the annotation that MathML carries, MathJax's source, or MathML itself in a linear form."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape

_MATH = re.compile(r"<math\b([^>]{0,5000})>(.*?)</math>", re.S)
_MATHJAX = re.compile(r'<script\b[^>]*\btype="math/(?:la)?tex([^"]*)"[^>]*>(.*?)</script>', re.S)
_ANNOTATION = re.compile(r'<annotation\b[^>]*encoding="(?:application/x-tex|TeX|latex|text/x-tex)"[^>]*>(.*?)</annotation>', re.S | re.I)
_IMAGE = re.compile(r"<img\b[^>]*>")
_CLASS, _ALT_OF_IMAGE = re.compile(r'\bclass="([^"]*)"'), re.compile(r'\balt="([^"]*)"')
_FORMULA_CLASS = re.compile(r"(?:^|\s)latex(?:\s|$)")  # WordPress
_ALT = re.compile(r'\balttext="([^"]*)"')
_DISPLAY = re.compile(r'\bdisplay="block"|mode="display"|mode=display')
_ANY_ANNOTATION = re.compile(r"<annotation(?:-xml)?\b.*?</annotation(?:-xml)?>", re.S)
_TAG = re.compile(r"<(/?)([a-zA-Z]+)[^>]*>([^<]*)")
_STYLE = re.compile(r"^\{\\displaystyle\s*(.*)\}$", re.S)
# MathML elements whose children are joined by a sign; the others are written one after the other.
_BETWEEN = {"msup": "^", "msub": "_", "mfrac": "/", "munder": "_", "mover": "^", "msubsup": "_^", "munderover": "_^"}


def expand_formulas(html: str) -> str:
    """Return `html` (as written out by Lexbor) with formulas as text, `$...$` or, on a line of their own, `$$...$$`."""
    if "latex" in html:
        html = _IMAGE.sub(_image, html)
    if "math" not in html:
        return html
    if 'type="math/' in html:
        html = _replace(_MATHJAX, lambda match: _dollars(match[2], bool(_DISPLAY.search(match[1]))), html, "</script>")
    if "<math" in html:
        html = _replace(_MATH, lambda match: _math(match[1], match[2]), html, "</math>")
    return html


def _replace(pattern: re.Pattern[str], replacement: Callable[[re.Match[str]], str], text: str, *ends: str) -> str:
    """Replace what ends in one of `ends`; from what begins behind the last of them the search would run to the end in vain, each time."""
    last = _last(text, *ends)
    return pattern.sub(replacement, text[:last]) + text[last:]


def _last(text: str, *ends: str) -> int:
    return max(text.rfind(end) + len(end) for end in ends)


def _image(match: re.Match[str]) -> str:
    alt, name = _ALT_OF_IMAGE.search(match[0]), _CLASS.search(match[0])
    if alt is None or name is None or not _FORMULA_CLASS.search(name[1]):
        return match[0]
    return _dollars(unescape(alt[1]).strip().strip("$"), False)


def _math(attributes: str, inner: str) -> str:
    annotation, alt = _ANNOTATION.search(inner, 0, _last(inner, "</annotation>")), _ALT.search(attributes)
    if annotation:
        tex = unescape(annotation[1])
    elif alt:
        tex = unescape(unescape(alt[1]))
    else:
        tex = unescape(_linear(_replace(_ANY_ANNOTATION, lambda match: "", inner, "</annotation>", "</annotation-xml>")))
    return _dollars(tex, bool(_DISPLAY.search(attributes)))


def _dollars(tex: str, display: bool) -> str:
    tex = " ".join(tex.split())
    styled = _STYLE.match(tex)
    tex = (styled[1] if styled else tex).strip()
    if not tex:
        return ""
    tex = tex.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"$${tex}$$" if display else f"${tex}$"


def _linear(inner: str) -> str:
    """Write presentation MathML on one line: scripts with ^ and _, fractions with /, roots as sqrt()."""
    stack: list[tuple[str, list[str]]] = [("", [])]
    for end, tag, text in _TAG.findall(inner):
        if not end:
            stack.append((tag, [text.strip()] if text.strip() else []))
            continue
        if len(stack) > 1 and stack[-1][0] == tag:
            name, parts = stack.pop()
            stack[-1][1].append(_compose(name, parts))
    while len(stack) > 1:
        name, parts = stack.pop()
        stack[-1][1].append(_compose(name, parts))
    return "".join(stack[0][1])


def _compose(tag: str, parts: list[str]) -> str:
    signs = _BETWEEN.get(tag)
    if signs and len(parts) == len(signs) + 1:
        grouped = [part if len(part) == 1 or part.isalnum() else "{" + part + "}" for part in parts]
        return grouped[0] + "".join(sign + part for sign, part in zip(signs, grouped[1:], strict=False))
    if tag == "msqrt":
        return f"sqrt({''.join(parts)})"
    if tag == "mtr":
        return " & ".join(parts) + "; "
    return (" " + parts[0] + " " if tag == "mo" and parts and parts[0] in "=<>≤≥≠≈→+−-" else "".join(parts)) if parts else ""

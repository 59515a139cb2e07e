"""Bytes of a page as text.

What a page declares is often wrong, so evidence comes first: a byte order mark, then UTF-8 that fits to the last byte (text in another
character set practically never does), then the declaration of the server, then that of the page (https://encoding.spec.whatwg.org/#names-and-labels
says what the labels mean), then statistics. Text that was already garbled when it was written is left as it is.
"""

from __future__ import annotations

import re

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

_META = re.compile(
    rb"<meta\b[^>]{0,500}?\bcharset\s*=\s*[\"']?\s*([\w.:-]{1,40})|<\?xml\b[^>]{0,200}?\bencoding\s*=\s*[\"']([\w.:-]{1,40})", re.I
)
_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_HEAD = 4096  # a declaration must stand in the first 1024 bytes; real pages are less strict
_SAMPLE = 65_536
_MAX_BROKEN = 0.01  # share of the characters beyond ASCII that may be broken in the character set that is declared
# Python's supersets of what the labels name, which is what browsers read: the euro sign in "latin-1", the level 3 of JIS, and so on.
_CODECS = {
    "shift_jis": "cp932",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "euc_kr": "cp949",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
}
_UNDEFINED_1252 = {code: chr(code) for code in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}  # controls in WHATWG's table, errors in Python's


def decode(content: bytes, charset: str) -> str:
    """Return HTML bytes as text; `charset` is what the server declared, or "". Bytes that fit nowhere become U+FFFD."""
    for mark, codec in _MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(codec, "replace")
    declared = [codec for label in (charset, _declared(content)) if (codec := _codec(label))]
    if b"\x1b$" in content and "iso2022_jp" in declared:  # seven bits, so it would pass as UTF-8
        return content.decode("iso2022_jp_ext", "replace")
    wide = _wide(content)
    if wide:
        return content.decode(wide, "replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        pass
    for codec in declared:
        text = _read(content, codec)
        if _fits(text):
            return text
    detected = _codec(detect_encoding(content[:_SAMPLE], html5_compatible=True) or "")
    candidates = [_read(content, codec) for codec in dict.fromkeys(["utf-8", *([detected] if detected else []), *declared, "cp1252"])]
    fitting = [text for text in candidates if _fits(text)]
    return fitting[0] if fitting else min(candidates, key=lambda text: text.count("\ufffd"))


def _declared(content: bytes) -> str:
    found = _META.search(content[:_HEAD])
    return (found[1] or found[2]).decode("ascii", "replace") if found else ""


def _codec(label: str) -> str:
    """Return Python's name of the character set that browsers read for `label`, "" for an unknown one."""
    name = map_encoding_to_html5(label.strip().lower(), fallback_utf8=False) if label.strip() else None
    if not name:
        return ""
    name = name.lower()
    if name.startswith("utf-16"):
        return "utf-8"  # who could read the declaration was not reading UTF-16
    return _CODECS.get(name, name)


def _read(content: bytes, codec: str) -> str:
    try:
        text = content.decode(codec, "surrogateescape" if codec == "cp1252" else "replace")
    except LookupError:
        return "\ufffd" * len(content)
    if codec == "cp1252":
        text = re.sub("[\udc80-\udcff]", lambda match: _UNDEFINED_1252[ord(match[0]) - 0xDC00], text)
    return text


def _fits(text: str) -> bool:
    beyond = len(text) - len(text.encode("ascii", "ignore"))
    return text.count("\ufffd") <= max(1, _MAX_BROKEN * beyond)


def _wide(content: bytes) -> str:
    """Return the byte order of UTF-16 without a mark, told by the zeros beside ASCII's characters; "" for anything else."""
    sample = content[:1024]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    enough = len(sample) // 5
    if odd > enough > 0 and even < odd // 20:
        return "utf-16-le"
    return "utf-16-be" if even > enough > 0 and odd < even // 20 else ""

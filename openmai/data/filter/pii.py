"""Private data in a text, found by cheap gates, linear patterns and validators, and replaced by typed placeholders.

Precision goes before recall where a number may be something else: a card needs its check digit and a known prefix, an IBAN its country's
length and remainder, a social security number the word beside it, a phone number a form that only phone numbers have or a word before it.
No pattern can backtrack over more than a bounded number of characters, so the time is linear in the text whatever it holds.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple

from openmai.data.filter.pii_facts import ASSETS, CALLING_CODES, CARD_PREFIXES, IBAN_LENGTHS, TOP_LEVEL


class Span(NamedTuple):
    """Characters `start` to `end` of a text are private."""

    start: int
    end: int


def mask(text: str, kinds: frozenset[str]) -> tuple[str, dict[str, int]]:
    """Return `text` with private data of `kinds` replaced by <KEY>, <EMAIL>, <IBAN>, <CARD>, <SSN>, <IP>, <PHONE>, and counts by kind."""
    found = find(text, kinds)
    if not found:
        return text, {}
    pieces, end = [], 0
    for span, kind in found:
        pieces += [text[end : span.start], f"<{kind.upper()}>"]
        end = span.end
    return "".join([*pieces, text[end:]]), dict(Counter(kind for _, kind in found))


def find(text: str, kinds: frozenset[str]) -> list[tuple[Span, str]]:
    """Return the private data in `text` in order; of what overlaps, the kind that is first in FINDERS stays."""
    runs = [Span(*match.span()) for match in _NUMBERS.finditer(text)] if kinds & _NUMERIC_KINDS else []
    taken: list[tuple[Span, str]] = []
    for kind, finder in FINDERS.items():
        if kind in kinds:
            end, free = 0, []
            for span in sorted(finder(text, runs)):
                if span.start >= end and _is_free(span, taken):
                    free.append((span, kind))
                    end = span.end
            taken = sorted([*taken, *free]) if free else taken
    return taken


def _is_free(span: Span, taken: list[tuple[Span, str]]) -> bool:
    """Tell whether `span` overlaps nothing in `taken`, which is in order."""
    after = bisect_left(taken, span.start, key=lambda item: item[0].start)
    follows = after < len(taken) and taken[after][0].start < span.end
    return not follows and (after == 0 or taken[after - 1][0].end <= span.start)


# A stretch in which a card, a phone number, an SSN or an IPv4 address may lie, and that nearly every IBAN has. A scan that fails begins at
# one of at most six digits in a row, so the time is linear.
_NUMBERS = re.compile(r"[0-9][0-9 .()\-/\u00a0\u2011\u2013]{5,}[0-9]")
_NUMERIC_KINDS = frozenset({"iban", "card", "ssn", "ip", "phone"})
Finder = Callable[[str, list[Span]], Iterator[Span]]


def _before(text: str, start: int, chars: int) -> str:
    return text[max(0, start - chars) : start]


# --- e-mail -----------------------------------------------------------------------------------------------------------------------

_LOCAL = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+-'\u00ad"
_DOMAIN = re.compile(r"(?:[^\W_](?:[^\W_]|-){0,62}\.){1,8}(?:[A-Za-z]{2,24}|xn--[a-z0-9-]{2,59})(?![^\W_]|[-@])")
_SPELLED = re.compile(
    r"(?<![\w.+-])[\w.+-]{2,64} ?[(\[<{] ?at ?[)\]>}] ?"
    r"[a-z0-9-]{2,63}(?: ?[(\[<{] ?dot ?[)\]>}] ?[a-z0-9-]{2,63}|\.[a-z0-9-]{2,63}){1,4}",
    re.IGNORECASE,
)
_SPELLED_GATES = ("[at]", "(at)", "[ at ]", "( at )", "[AT]", "(AT)", "{at}", "<at>")


def emails(text: str, runs: list[Span]) -> Iterator[Span]:
    """Find e-mail addresses, also those spelled `name [at] site [dot] org`."""
    at = text.find("@")
    while at >= 0:
        window = _before(text, at, 65)
        local = window[len(window.rstrip(_LOCAL)) :].lstrip(".'-%+")
        match = _DOMAIN.match(text, at + 1) if local and len(local) <= 64 and local[-1] not in ".'" else None
        start = at - len(local)
        if match and _is_mail(local, match[0], text[match.end() : match.end() + 1]) and _before(text, start, 3) != "://":
            yield Span(start, match.end())
        at = text.find("@", at + 1)
    if any(gate in text for gate in _SPELLED_GATES):
        yield from (Span(*match.span()) for match in _SPELLED.finditer(text))


def _is_mail(local: str, domain: str, after: str) -> bool:
    """Tell addresses from `git@host:path` and `image@2x.png`."""
    top = domain.rpartition(".")[2].lower()
    if top in ASSETS or (local == "git" and after in (":", "/")):
        return False
    return len(top) == 2 or top in TOP_LEVEL or top.startswith("xn--")


# --- IP addresses -----------------------------------------------------------------------------------------------------------------

_IPV4 = re.compile(r"(?<![\w.\-])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w]|\.[0-9]|-[0-9])")
# Global addresses are 2000::/3 (RFC 4291), so they begin with a group of four digits; at least three groups, or it is a year and a colon.
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9a-fA-F]{3}(?:::?[0-9a-fA-F]{1,4}){2,7}(?![\w:])")
_NOT_ADDRESS = re.compile(
    r"(?:version|release|build|firmware|revision|section|chapter|clause|rule|table|figure|article|§|\bv(?:er)?\.?|[a-z_-][=>~]=)\s*$",
    re.IGNORECASE,
)
_ADDRESS = re.compile(
    r"(?:version|release|build|firmware|revision|section|chapter|clause|rule|table|figure|article|§{1,2}|\bv(?:er)?\.?|[a-z_-]+[=>~]=)\s*$",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"\b(?:ip|ipv4|address|host|server|ping|dns|gateway|client|remote|from|https?)\b", re.IGNORECASE)


def addresses(text: str, runs: list[Span]) -> Iterator[Span]:
    """Find public IPv4 and IPv6 addresses; not private, loopback, reserved or documentation ranges, nor versions and section numbers."""
    for run in runs:
        for match in _IPV4.finditer(text, run.start, run.end + 1):
            if _is_public(IPv4Address, match[0]) and _is_address(match[0], _before(text, match.start(), 32)):
                yield Span(*match.span())
    colon = text.find(":")
    while colon >= 0:
        group = _IPV6.match(text, colon - 4) if colon >= 4 and text[colon - 4] in "23" else None
        if group and _is_public(IPv6Address, group[0]):
            yield Span(*group.span())
        colon = text.find(":", colon + 1)


def _is_public(kind: type[IPv4Address] | type[IPv6Address], address: str) -> bool:
    try:
        parsed = kind(address)
    except AddressValueError:
        return False
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved


def _is_address(address: str, before: str) -> bool:
    """Mostly small numbers are a version or a section unless the words before say otherwise."""
    if _NOT_ADDRESS.search(before):
        return False
    first, *rest = map(int, address.split("."))
    return first >= 32 or sorted([first, *rest])[-2] >= 32 or _ADDRESS.search(before) is not None


# --- phone numbers ----------------------------------------------------------------------------------------------------------------

_INTERNATIONAL = re.compile(r"(?<![\w+.,*/-])\+[1-9][0-9 ().\-/\u00a0\u2011]{6,22}[0-9](?!\w)")
# North America: (202) 555-0143, 202-555-0143, 202.555.0143, with or without a leading 1; area and exchange begin with 2-9.
_NORTH_AMERICAN = re.compile(
    r"(?<![\w+/.,$§#\-\u2011\u2013])(?:\+?1[ .\-])?"
    r"(?:\([2-9][0-8][0-9]\)[ \u00a0]?[2-9][0-9]{2}[ .\-\u2011\u2013]|[2-9][0-8][0-9]([.\-\u2011\u2013])[2-9][0-9]{2}\1)[0-9]{4}"
    r"(?![\w/]|[.\-][0-9])"
)
_CALL = re.compile(
    r"(?<![a-z])(?:tel|telephone|phone|fax|telefax|fon|mobile?|cell|cellphone|call|dial|hotline|whatsapp|telefon|t[eé]l[eé]phone)s?"
    r"(?:[ -](?:no|nr|number|numbers|us|me|him|her|them|toll-free|on|at|is)\.?){0,3}[\s.:#]{1,4}(?:\[[0-9]{1,4}\] )?\(?$",
    re.IGNORECASE,
)
_LOCAL_NUMBER = re.compile(r"[0-9]{1,14}\)?(?: ?[ .\-/\u00a0\u2011\u2013] ?[0-9]{1,8}){0,5}(?!\w|[.,][0-9])")
_ANOTHER = re.compile(r"\s?(?:,|;|/|or|and|oder|und|&)\s\(?")
_DATE = re.compile(r"[0-9]{1,4}[./\-][0-9]{1,2}[./\-][0-9]{1,4}|(?:1[0-9]|20)[0-9]{2}\s?[-–/]\s?(?:1[0-9]|20)[0-9]{2}")


def phones(text: str, runs: list[Span]) -> Iterator[Span]:
    """Find phone numbers: international with a plus sign, North American in their usual forms, others after a word such as `Tel.:`."""
    last = -1
    for run in runs:
        start, end = max(0, run.start - 2), run.end + 1
        found = [match for match in _INTERNATIONAL.finditer(text, start, end) if is_calling(match[0])]
        spans = [Span(*match.span()) for match in found or _NORTH_AMERICAN.finditer(text, start, end)]
        is_next = last >= 0 and _ANOTHER.fullmatch(text, last, run.start) is not None
        spans = spans or _after_a_word(text, run, is_next)
        last = spans[-1].end if spans else -1
        yield from spans


def is_calling(number: str) -> bool:
    """Tell whether a number with a plus sign has a known country code and 8 to 15 digits (ITU-T E.164)."""
    groups = re.findall(r"[0-9]+", number)
    digits = "".join(groups)
    if not 8 <= len(digits) <= 15 or len(groups) > 7:
        return False
    if digits[0] == "1":
        return len(digits) == 11 and digits[1] in "23456789" and digits[4] in "23456789"
    code = next((digits[:length] for length in (1, 2, 3) if digits[:length] in CALLING_CODES), "")
    return bool(code) and len(groups[0]) >= len(code)


def _after_a_word(text: str, run: Span, is_next: bool) -> list[Span]:
    """Return the number that `run` begins with if a word such as `Tel.:`, or another phone number, stands before it."""
    if not is_next and not _CALL.search(_before(text, run.start, 40)):
        return []
    match = _LOCAL_NUMBER.match(text, run.start, run.end + 1)
    digits = sum(map(str.isdigit, match[0])) if match else 0
    if match is None or not 7 <= digits <= 14 or _DATE.fullmatch(match[0]):
        return []
    return [Span(match.start() - (_before(text, match.start(), 1) == "("), match.end())]


# --- payment cards, IBAN, social security numbers ------------------------------------------------------------------------------------

_CARD = re.compile(
    r"(?<![\w.\-+])(?:[0-9]{4}([ \-]?)[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?|3[0-9]{3}([ \-]?)[0-9]{6}\2[0-9]{4,5}|4[0-9]{12})"
    r"(?![\w]|[.\-][0-9])"
)
_CARD_WORD = re.compile(r"\b(?:card|visa|master ?card|amex|american express|discover|diners|jcb|unionpay|cc|pan)\b", re.IGNORECASE)


def cards(text: str, runs: list[Span]) -> Iterator[Span]:
    """Find payment card numbers: a known prefix and length, and the Luhn digit; unusual lengths need a word such as `card` nearby."""
    for run in runs:
        for match in _CARD.finditer(text, run.start, run.end + 1):
            digits = re.sub(r"\D", "", match[0])
            if is_card(digits) and (len(digits) in (15, 16) or _CARD_WORD.search(_before(text, match.start(), 48))):
                yield Span(*match.span())


def is_card(digits: str) -> bool:
    """Tell whether `digits` is a card number of a known issuer with a right check digit (ISO/IEC 7812)."""
    known = any(len(digits) in lengths and low <= int(digits[: len(str(low))]) <= high for low, high, lengths in CARD_PREFIXES)
    return known and len(set(digits)) > 1 and is_luhn(digits)


def is_luhn(digits: str) -> bool:
    """Check the last digit: twice every second one from the right, sum of all digits, a multiple of ten."""
    return (sum(int(digit) for digit in digits[-1::-2]) + sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])) % 10 == 0


_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?= ?[A-Z0-9])")
_IBAN_CHARS = 16  # from an IBAN's beginning to its first seven digits in a row: RO49 AAAA 1B31 0075


def ibans(text: str, runs: list[Span]) -> Iterator[Span]:
    """Find IBANs: the country's length, and the remainder of 97 (ISO 13616)."""
    places = [Span(0, len(text))] if "IBAN" in text else [Span(max(0, run.start - _IBAN_CHARS), run.start + 5) for run in runs]
    done = 0
    for place in places:
        for match in _IBAN.finditer(text, max(done, place.start), place.end):
            if end := _iban_end(text, match.start()):
                done = end
                yield Span(match.start(), end)


def _iban_end(text: str, start: int) -> int:
    """Return where the IBAN that begins at `start` ends, 0 if there is none."""
    code, position = "", start
    length = IBAN_LENGTHS.get(text[start : start + 2], 0)
    while len(code) < length and position < len(text):
        char = text[position]
        if char != " " or text[position - 1] == " ":
            if not (char.isascii() and (char.isdigit() or char.isupper())):
                return 0
            code += char
        position += 1
    ended = position == len(text) or not text[position].isalnum()
    return position if length and len(code) == length and ended and is_iban(code) else 0


def is_iban(code: str) -> bool:
    """Check an IBAN without spaces: letters as 10..35, the first four characters last, remainder 1 of 97."""
    return int("".join(str(int(char, 36)) for char in code[4:] + code[:4])) % 97 == 1


_SSN = re.compile(r"(?<![\w.\-])(?!000|666|9)[0-9]{3}([ -]?)(?!00)[0-9]{2}\1(?!0000)[0-9]{4}(?![\w]|[.\-][0-9])")
_SSN_WORD = re.compile(r"\bssns?\b|social[ -]security|\bsoc\. ?sec", re.IGNORECASE)


def social_security_numbers(text: str, runs: list[Span]) -> Iterator[Span]:
    """Find US social security numbers of valid ranges whose name stands before them."""
    for run in runs:
        for match in _SSN.finditer(text, run.start, run.end + 1):
            if _SSN_WORD.search(_before(text, match.start(), 120 if match[1] else 40)):
                yield Span(*match.span())


# --- keys and tokens ----------------------------------------------------------------------------------------------------------------

# Literal beginning -> pattern; the forms are the issuers' own. A word character before the beginning rules it out, so no run of characters
# is scanned twice.
_KEYS = {
    "AKIA": re.compile(r"(?<![A-Za-z0-9_])AKIA[A-Z2-7]{16}(?![A-Za-z0-9_])"),  # AWS access keys
    "ASIA": re.compile(r"(?<![A-Za-z0-9_])ASIA[A-Z2-7]{16}(?![A-Za-z0-9_])"),
    "gh": re.compile(r"(?<![A-Za-z0-9_])gh[pousr]_[A-Za-z0-9]{36,255}(?![A-Za-z0-9_])"),  # GitHub
    "github_pat_": re.compile(r"(?<![A-Za-z0-9_])github_pat_[A-Za-z0-9_]{40,255}(?![A-Za-z0-9_])"),
    "glpat-": re.compile(r"(?<![\w\-])glpat-[\w\-]{20,64}(?![\w\-])"),  # GitLab
    "xox": re.compile(r"(?<![\w\-])xox[abeoprs]-(?=[A-Za-z\-]{0,64}[0-9])[A-Za-z0-9\-]{10,255}(?![\w\-])"),  # Slack
    "AIza": re.compile(r"(?<![\w\-])AIza[\w\-]{35}(?![\w\-])"),  # Google
    "sk-": re.compile(r"(?<![\w\-])sk-(?=[A-Za-z_\-]{0,64}[0-9])[A-Za-z0-9_\-]{32,255}(?![\w\-])"),  # OpenAI, Anthropic
    "k_live_": re.compile(r"(?<![A-Za-z0-9_])[sr]k_live_[A-Za-z0-9]{16,255}(?![A-Za-z0-9_])"),  # Stripe
    "hf_": re.compile(r"(?<![A-Za-z0-9_])hf_[A-Za-z]{34}(?![A-Za-z0-9_])"),  # Hugging Face
    "npm_": re.compile(r"(?<![A-Za-z0-9_])npm_[A-Za-z0-9]{36}(?![A-Za-z0-9_])"),
    "pypi-": re.compile(r"(?<![\w\-])pypi-AgEI[\w\-]{50,255}(?![\w\-])"),
    "SG.": re.compile(r"(?<![\w\-])SG\.[\w\-]{22}\.[\w\-]{43}(?![\w\-])"),  # SendGrid
    "eyJ": re.compile(r"(?<![\w\-])eyJ[\w\-]{8,4096}\.eyJ[\w\-]{8,4096}\.[\w\-]{8,1024}(?![\w\-])"),  # JSON web tokens, RFC 7519
}
_KEY_CHARS = 20  # of the shortest of them
_PEM = re.compile(r"-----BEGIN ([A-Z0-9]{1,20} ){0,3}PRIVATE KEY( BLOCK)?-----")
_PEM_CHARS = 16_384


def keys(text: str, runs: list[Span]) -> Iterator[Span]:
    """Find cloud keys, access tokens, JSON web tokens and private key blocks."""
    long_words = " ".join([word for word in text.split() if len(word) >= _KEY_CHARS])
    for beginning, pattern in _KEYS.items():
        if beginning in long_words:
            yield from (Span(*match.span()) for match in pattern.finditer(text))
    if "-----BEGIN" in text:
        yield from _private_keys(text)


def _private_keys(text: str) -> Iterator[Span]:
    done = 0
    for match in _PEM.finditer(text):
        last = text.find("-----END ", match.end(), match.end() + _PEM_CHARS)
        close = text.find("-----", last + 9, last + 64) if last >= 0 else -1
        if match.start() >= done and close >= 0:
            done = close + 5
            yield Span(match.start(), done)


# In the order of precedence.
FINDERS: dict[str, Finder] = {
    "key": keys,
    "email": emails,
    "iban": ibans,
    "card": cards,
    "ssn": social_security_numbers,
    "ip": addresses,
    "phone": phones,
}

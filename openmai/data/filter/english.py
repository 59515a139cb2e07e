"""English words as spaCy's rule tokenizer cuts them: the published limits of the quality rules were set on such words.

The rules are those of https://spacy.io/usage/linguistic-features#how-tokenizer-works: what stands between white space is a chunk;
punctuation comes off its ends until a contraction, an abbreviation or nothing more is left, a URL stays whole, and what is left is cut
at hyphens, slashes and the like between letters. Units and currencies are the common ones only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache

Pieces = tuple[str, ...]

# Letters with case, and letters without, by script as spaCy knows them; hexadecimal ranges.
_CASED = (
    "41-5a 61-7a c0-d6 d8-f6 f8-1bf 1c4-2af 386 388-38a 38c 38e-38f 391-3a9 3ac-3af 3b1-3c9 3cc-3ce 400-401 403-40a 40c-40d 410-451 "
    "453-45a 45c-45d 490-491 496-497 4a2-4a3 4ae-4af 4ba-4bb 4d8-4d9 4e8-4e9 1d00-1d25 1d6b-1d77 1d79-1d9a 1e00-1eff 2c60-2c7b 2c7e-2c7f "
    "a722-a76f a771-a787 a78b-a78e a790-a7b9 a7fa ab30-ab5a ab60-ab64 ff21-ff3a ff41-ff5a"
)
_UNCASED = (
    "591-5f4 620-64a 66e-6d5 6e5-6ff 750-77f 8a0-8bd 900-9ff b80-cff d80-dff 1100-137f 2e80-2fdf 2ff0-30ff 31c0-31ef 3200-4dbf 4e00-9fff "
    "ac00-d7af f900-faff fb1d-fbb1 fbd3-fd3d fd50-fdc7 fdf0-fdfb fe30-fe4f fe70-fefc 1ee00-1eebb 1f200-1f2ff 20000-2a6df 2a700-2ebef "
    "2f800-2fa1f"
)
# Pictograms are Unicode's category So up to version 11, in these planes; what came later does not come off a word.
_PICTOGRAM_PLANES = "a6-32fe 4dc0-4dff a490-a4c6 a828-fffd 10137-101fc 1d000-1d356 1f000-1fa6d"
_LATER_PICTOGRAMS = (
    "166d 2b97 2bc9 2bff 2e50-2e51 fd40-fd4f fdcf fdfe-fdff 1019c 1d1e9-1d1ea 1f10d-1f10f 1f16c-1f16f 1f1ad 1f6d5-1f6d7 1f6dd-1f6df "
    "1f6fa-1f6fc 1f7e0-1f7eb 1f7f0 1f8b0-1f8b1 1f90c-1f90f 1f93f 1f971-1f972 1f977-1f979 1f97b 1f9a3-1f9af 1f9ba-1f9bf 1f9c3-1f9cf "
    "1fa00-1fa53"
)
_PUNCTUATION = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"
_CURRENCY = "$£€¥฿﷼₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₴₵₶₷₸₹₺₻₼₽₾₿"
_UNITS = "[kdcm]?m[²³]?|ha|[µn]m|yd|in|ft|[kmµ]?g|t|lb|oz|m/s|km/h|kmh|mph|h?Pa|mbar|mb|kb|gb|tb|[KMGT]B?|%"  # metric, imperial, bytes
_SIMPLE = re.compile('([("[“]*)([^\\W\\d_]+)(\\.?)([,!?)\\]"”]*|[;:])')  # of marks that make no emoticon with each other
_LONGEST_URL = 2048  # a longer chunk is no URL: the pattern needs quadratic time in the worst case
_LONGEST_SPECIAL = 16  # characters, and so pieces
_SUFFIX_WINDOW = 64  # a suffix is looked for in the last characters only, so a chunk costs time linear in its length

# Contractions: word, then what comes off it; each also without apostrophes and with a capital.
_PERSONS = "i you he she it we they"
_QUESTIONS = "who what when where why how there"
_CONTRACTIONS = {
    "i": "'m 'm+a",
    f"{_PERSONS} {_QUESTIONS} that this these those": "'ll 'll+'ve 'd 'd+'ve",
    f"i you we they {_QUESTIONS} these those could might must should would not": "'ve",
    f"you we they {_QUESTIONS} these those": "'re",
    f"he she it {_QUESTIONS} that this": "'s",
    "ca could do does did had may might must need ought sha should wo would": "n't n't+'ve",
    "ai are is was were have has dare": "n't",
}
_NO_CONTRACTIONS = {"ill", "its", "hell", "shell", "shed", "were", "well", "whore"}
_OTHER_SPLITS = (
    "y'|all y|all how|'d|'y How|'d|'y can|not Can|not gon|na Gon|na got|ta Got|ta let|'s Let|'s c'm|on C'm|on °|c|. °|f|. °|k|. °|C|. "
    "°|F|. °|K|."
)
_WHOLE = (
    "' '' \\\") <space> C++ \\t \\n — 'S 's ‘S ‘s 'd 'em 'll 'nuff 're 'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout and/or w/o "
    "ma'am Ma'am o'clock O'clock doin' Doin' goin' Goin' nothin' Nothin' nuthin' Nuthin' ol' Ol' somethin' Somethin' lovin' Lovin' "
    "havin' Havin' a. b. c. d. e. f. g. h. i. j. k. l. m. n. o. p. q. r. s. t. u. v. w. x. y. z. ä. ö. ü. Mt. Ak. Ala. Apr. Ariz. Ark. "
    "Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. Jul. Jun. Kan. Kans. Ky. La. Mar. Mass. Mich. Minn. Miss. "
    "N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct. Okla. Ore. Pa. S.C. Sep. Sept. Tenn. Va. Wash. Wis. a.m. Adm. Bros. co. Co. "
    "Corp. D.C. Dr. e.g. E.g. E.G. Gen. Gov. i.e. I.e. I.E. Inc. Jr. Ltd. Md. Messrs. Mo. Mont. Mr. Mrs. Ms. p.m. Ph.D. Prof. Rep. Rev. "
    "Sen. St. vs. v.s. :) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-; :( :-( :(( "
    ":-(( :((( :-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p :-p :O :-O :o :-o :0 :-0 :() >:o :* :-* :3 "
    ":-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD XD xDD XDD 8D 8-D ^_^ ^__^ ^___^ >.< >.> <.< ._. ;_; -_- -__- v.v V.V v_v V_V o_o "
    "o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333 </3 (^_^) (-_-) (._.) (>_<) (*_*) (¬_¬) ಠ_ಠ ಠ︵ಠ (ಠ_ಠ) ¯\\(ツ)/¯ "
    "(╯°□°）╯︵┻━┻ ><(((*>"
)


def segment(chunk: str) -> Pieces:
    """Return the words of a chunk of English text, which holds no white space."""
    if chunk.isalpha():
        return _specials().get(chunk, (chunk,))
    return _cut_simple(chunk) or _join_specials(_cut(chunk, _specials()))


def _cut_simple(chunk: str) -> Pieces:
    """Return what the general way gives for half of the chunks, a word among usual marks, in a fifth of the time; () for others."""
    match = _SIMPLE.fullmatch(chunk)
    if not match:
        return ()
    front, word, stop, back = match.groups()
    specials = _specials()
    if not word.isalpha() or word in specials or (front and back in (":", ";")):
        return ()
    if not stop:
        return (*front, word, *back)
    if word + stop in specials:
        return (*front, *specials[word + stop], *back)
    return (*front, word, stop, *back) if "a" <= word[-1] <= "z" else ()


def _cut(chunk: str, specials: dict[str, Pieces]) -> Pieces:
    """Take prefixes and suffixes off a chunk until a special case or nothing more is left, then cut the middle at infixes."""
    prefix, suffix, *_ = _patterns(chunk.isascii())
    front: list[str] = []
    back: list[str] = []
    start, end, left = 0, len(chunk), 0
    while start < end and end - start != left:
        left = end - start
        if left <= _LONGEST_SPECIAL and (chunk[start:end] in specials or chunk[start:end].isalpha()):
            break
        match = prefix.match(chunk, start, end)
        inner = match.end() if match else start
        if start < inner < end <= inner + _LONGEST_SPECIAL and chunk[inner:end] in specials:
            front.append(chunk[start:inner])
            start = inner
            break
        window = chunk[max(inner, end - _SUFFIX_WINDOW) : end]  # a copy: what was taken off must not be seen by what looks behind
        match = suffix.search(window)
        outer = end - len(match[0]) if match else end
        if start < outer < end and outer <= start + _LONGEST_SPECIAL and chunk[start:outer] in specials:
            back.append(chunk[outer:end])
            end = outer
            break
        if inner > start:
            front.append(chunk[start:inner])
        if outer < end:
            back.append(chunk[outer:end])
        start, end = inner, outer
    middle = chunk[start:end]
    pieces = specials.get(middle) or ((middle,) if middle.isalpha() else _cut_middle(middle))
    return (*front, *pieces, *reversed(back))


def _cut_middle(middle: str) -> Iterator[str]:
    *_, url, infix = _patterns(middle.isascii())
    if "." in middle and len(middle) <= _LONGEST_URL and url.fullmatch(middle):
        yield middle
        return
    start = 0
    for match in infix.finditer(middle):
        if match.start() == 0:  # what cannot come off the front does not come off as an infix either
            continue
        if match.start() > start:
            yield middle[start : match.start()]
        yield match[0]
        start = match.end()
    if start < len(middle):
        yield middle[start:]


def _join_specials(pieces: Pieces) -> Pieces:
    """Put together neighbouring pieces that a special case was torn into, the longest first; of two that overlap, the later is left."""
    joins = _torn_specials()
    if len(pieces) < 2:
        return pieces
    spans = [
        (start - stop, start)
        for start in range(len(pieces))
        for stop in range(start + 2, min(len(pieces), start + _LONGEST_SPECIAL) + 1)
        if pieces[start:stop] in joins
    ]
    if not spans:
        return pieces
    taken: set[int] = set()
    replaced: dict[int, int] = {}
    for length, start in sorted(spans):
        stop = start - length
        if start not in taken and stop - 1 not in taken:
            replaced[start] = stop
        taken.update(range(start, stop))
    joined: list[str] = []
    position = 0
    while position < len(pieces):
        stop = replaced.get(position, position + 1)
        joined += joins.get(pieces[position:stop], pieces[position:stop]) if position in replaced else pieces[position:stop]
        position = stop
    return tuple(joined)


@cache
def _specials() -> dict[str, Pieces]:
    """Return the chunks that are not cut by rule, with their pieces."""
    table: dict[str, Pieces] = {whole: (whole,) for whole in _WHOLE.split()}
    table |= {split.replace("|", ""): tuple(split.split("|")) for split in _OTHER_SPLITS.split()}
    table |= {f"{hour}{half}": (str(hour), half) for hour in range(1, 13) for half in ("a.m.", "am", "p.m.", "pm")}
    for stems, endings in _CONTRACTIONS.items():
        for stem in stems.split():
            for ending in endings.split():
                pieces = (stem, *ending.split("+"))
                for form in (pieces, (stem.title(), *pieces[1:])):
                    plain = tuple(piece.replace("'", "") for piece in form)
                    table |= {"".join(form): form} | ({} if "".join(plain).lower() in _NO_CONTRACTIONS else {"".join(plain): plain})
    curled = {chunk: tuple(piece.replace("'", "’") for piece in pieces) for chunk, pieces in table.items()}
    return table | {chunk.replace("'", "’"): pieces for chunk, pieces in curled.items()}


@cache
def _torn_specials() -> dict[Pieces, Pieces]:
    """Return the special cases that the other rules would cut, by the pieces that they would give."""
    return {torn: pieces for chunk, pieces in _specials().items() if (torn := tuple(_cut(chunk, {}))) != (chunk,)}


@cache
def _patterns(is_ascii: bool) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Return the patterns of prefixes, suffixes, URLs and infixes; those for ASCII chunks have small classes and are faster."""

    def some(characters: Iterable[str]) -> str:
        return re.escape("".join(char for char in characters if char.isascii() or not is_ascii))

    cased, letters = characters(_CASED), "" if is_ascii else _class(_UNCASED)
    lower, upper, quotes = some(filter(str.islower, cased)) + letters, some(filter(str.isupper, cased)) + letters, some(_QUOTES)
    letter, marks, currency = some(cased) + letters, some(_PUNCTUATION) + quotes, some(_CURRENCY)
    pictograms = [char for char in characters(_PICTOGRAM_PLANES) if unicodedata.category(char) == "So" and char not in _later()]
    icons = some(char for char in pictograms if char < "\U00010000")
    rare = some(char for char in pictograms if char >= "\U00010000")
    rare = rf"(?=[\U00010000-\U0010ffff])[{rare}]" if rare else "(?!)"  # looked at only where it can match: a class of these is slow
    prefix = rf"\.\.+|US\$|[CA]\$|\+(?![0-9])|[§%=—–{marks}{currency}{icons}]|{rare}"
    suffix = (
        rf"(?:[—–{marks}{icons}]|{rare}|……|\.\.+|['’][sS]|(?<=[0-9])(?:\+|(?:US|C|A)?\$|[{currency}]|{_UNITS})"
        rf"|(?<=[0-9{lower}%²+|{marks}-])\.|(?<=[{upper}][{upper}])\.|(?<=°[FfCcKk])\.)$"
    )
    infix = (
        rf"\.\.+|[…{icons}]|{rare}|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[{lower}{quotes}])\.(?=[{upper}{quotes}])|(?<=[{letter}]),(?=[{letter}])"
        rf"|(?<=[{letter}0-9])(?:--?-?|–|——?|~)(?=[{letter}])|(?<=[{letter}0-9])[:<>=/](?=[{letter}])"
    )
    octet = r"(?:1?\d{1,2}|2[0-4]\d|25[0-5])"
    label = r"[A-Za-z0-9\u00a1-\uffff]"
    private = r"(?!(?:10|127|169\.254|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.)"
    address = rf"{private}(?:[1-9]\d?|1\d\d|2[01]\d|22[0-3])\.{octet}\.{octet}\.(?!0\b){octet}"
    host = rf"(?:(?:{label}(?:{label}|[_-]){{0,62}})?{label}\.)+[{lower}]{{2,63}}"
    url = rf"(?:[\w+.-]{{2,}}://)?(?:\S+@)?(?:{address}|{host})(?::\d{{2,5}})?(?:[/?#]\S*)?"
    return re.compile(prefix), re.compile(suffix), re.compile(url), re.compile(infix)


@cache
def _later() -> frozenset[str]:
    return frozenset(characters(_LATER_PICTOGRAMS))


def characters(ranges: str) -> list[str]:
    """Return the characters of ranges of hexadecimal codes."""
    return [chr(code) for item in ranges.split() for code in range(int(item.split("-")[0], 16), int(item.split("-")[-1], 16) + 1)]


def _class(ranges: str) -> str:
    """Return ranges of hexadecimal codes as the inside of a character class."""
    return "".join("-".join(f"\\U{int(code, 16):08x}" for code in item.split("-")) for item in ranges.split())

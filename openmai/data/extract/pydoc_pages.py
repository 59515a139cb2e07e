"""What the pages of Python's documentation server look like: hints for the extractor, and what to leave out of the text."""

from __future__ import annotations

import html
import re

from openmai.data.extract.clean import drop_repeated_paragraphs

TITLE = "Pydoc: "
_HEADINGS = {"title": 1, "section-title": 2, "extra": 0}
_CLASS = re.compile(r'class="([^"]*)"')
# Says where a member comes from; the member itself says what it is.
_MARKERS = re.compile(
    r"^\s*(?:(?:Methods|Class methods|Static methods|Data descriptors|Readonly properties|Data and other attributes)"
    r" (?:defined here|inherited from .*)|Method resolution order|Related help topics):?\s*$"
)
_SECTIONS_OUT = re.compile(r"^#+ (?:TOPIC$|KEYWORD$|Modules|Package Contents|Data|Author|Credits|Built-in subclasses)\b")
_PLUMBING = re.compile(
    r"^\s*(?:__(?:dict|weakref|annotations|abstractmethods|hash|module|slots|dataclass_\w+|match_args|orig_bases|parameters|pydantic_\w+"
    r"|class_vars|private_attributes|signature|fields_set|test)__\b|model_config = |model_fields = )"
)
_PLUMBING_DOC = re.compile(r"^\s*(?:dictionary for instance variables|list of weak references to the object)")
_MAX_VALUE = 300
_MIN_REPEATED = 40
# A member's name with neither arguments nor a word about it, or a special method without documentation.
_BARE = re.compile(r"(?<=\n\n)[ ]*(?:\w+|__\w+__\([^\n]*)\n(?=\n)")


def hint(tag: str, attributes: str) -> int | None:
    """Return the heading level of pydoc's title cells, 0 for its navigation, None for everything else."""
    if tag == "td":
        found = _CLASS.search(attributes)
        return _HEADINGS.get(found[1]) if found else None
    return 0 if tag == "div" and 'style="float' in attributes else None


def clean(text: str) -> str:
    """Return the text of a page without link tables, origin markers, lists of data the plumbing that every class has, and inherited
    members that the page has already described."""
    kept, leave_out = [], False
    for line in text.split("\n"):
        if line.startswith("#"):
            leave_out = bool(_SECTIONS_OUT.match(line))
        if leave_out or _MARKERS.match(line) or _PLUMBING.match(line) or _PLUMBING_DOC.match(line):
            continue
        if len(line) > _MAX_VALUE and " = " in line:
            continue
        kept.append(line)
    text = html.unescape("\n".join(kept))  # pydoc escapes some signatures twice
    return drop_repeated_paragraphs(_BARE.sub("", text), _MIN_REPEATED)

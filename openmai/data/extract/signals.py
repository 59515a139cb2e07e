"""What a page says about being used to train models.

Taken as a reservation, from the page's meta elements and from HTTP headers:

- `noai` and `noml` in robots metas and X-Robots-Tag, for whichever crawler they are meant. Informal, but they say what they mean:
  https://noml.info/, https://www.deviantart.com/team/journal/934500371 (where `noai` began);
- TDM Reservation Protocol, `tdm-reservation: 1`: https://www.w3.org/2022/tdmrep/;
- AI Preferences, `Content-Usage: train-ai=n`: https://datatracker.ietf.org/doc/draft-ietf-aipref-attach/ (a draft);
- `noindex`, `none` or `nofollow` said to a crawler whose purpose is text for models (`_AI_AGENTS`), as in `<meta name="CCBot" ...>`:
  https://commoncrawl.org/ccbot. The syntax, `agent: rules` in X-Robots-Tag and the agent as the meta's name, is that of
  https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag.

Not taken as one: `noindex`, `nosnippet`, `noarchive` and the like said to search engines or to all, because they speak of search
results, and pages carry them for reasons such as being a second copy; `noimageai`, because it speaks of images. robots.txt is the
fetcher's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_AGENTS = (
    "ccbot gptbot oai-searchbot chatgpt-user google-extended claudebot anthropic-ai bytespider meta-externalagent facebookbot"
    " applebot-extended amazonbot cohere-ai diffbot omgili omgilibot ai2bot pangubot timpibot img2dataset"
)
_AI_AGENTS = frozenset(_AGENTS.split())
_RESERVED = frozenset(["noai", "noml"])
_RESERVED_FROM_AI = _RESERVED | {"noindex", "none", "nofollow"}
_WITH_VALUE = frozenset(["unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"])
_TRAIN_NO = re.compile(r"(?:^|[,;\s])train-ai\s*=\s*n(?:$|[,;\s])", re.I)


def opt_out(metas: Iterable[tuple[str, str]], headers: Mapping[str, str]) -> str:
    """Return why the page is not to be trained on, "" if nothing forbids it.

    `metas` are (name, content) of the page's meta elements; `headers` the HTTP response's, several of one name joined by commas.
    Names are compared without regard to case.
    """
    for name, content in metas:
        name = name.strip().lower()
        if name == "tdm-reservation" and content.strip() == "1":
            return "meta tdm-reservation: 1"
        if name == "robots" or name.endswith("bot") or name in _AI_AGENTS:
            rule = _reserved(name, _rules(content))
            if rule:
                return f"meta {name}: {rule}"
    lower = {name.lower(): value for name, value in headers.items()}
    if lower.get("tdm-reservation", "").strip() == "1":
        return "header tdm-reservation: 1"
    if _TRAIN_NO.search(lower.get("content-usage", "")):
        return "header Content-Usage: train-ai=n"
    return _robots_header(lower.get("x-robots-tag", ""))


def _robots_header(value: str) -> str:
    agent = "robots"
    for part in value.split(","):
        before, colon, after = part.partition(":")
        if colon and before.strip().lower() not in _WITH_VALUE:
            agent, part = before.strip().lower(), after
        rule = _reserved(agent, _rules(part))
        if rule:
            return "header X-Robots-Tag: " + (rule if agent == "robots" else f"{agent}: {rule}")
    return ""


def _rules(content: str) -> set[str]:
    return set(re.split(r"[\s,;]+", content.lower()))


def _reserved(agent: str, rules: set[str]) -> str:
    return min(rules & (_RESERVED_FROM_AI if agent in _AI_AGENTS else _RESERVED), default="")

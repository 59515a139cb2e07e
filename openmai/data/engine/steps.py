"""The steps that look at one document at a time: STEPS, a list of functions that each fill in something about a batch of documents.

`annotate` turns a batch of RAW_SCHEMA into one of `part_schema`: documents and the keys by which duplicates are found. Nothing is
removed here: a page that cannot be used gets its `rule` and `reason`, and the later steps pass it over; so a threshold can change without
extracting anything anew. Steps know no engine and no files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from openmai.data.config import Annotation
from openmai.data.dedup import fingerprint
from openmai.data.document import REJECTED_SCHEMA, document_id
from openmai.data.extract import clean, pydoc_pages
from openmai.data.extract.html import ExtractError, Page, decode, extract
from openmai.data.extract.signals import opt_out
from openmai.data.filter.language import identify
from openmai.data.filter.lexicon import toxic_words
from openmai.data.filter.metrics import measure_page
from openmai.data.filter.pii import mask
from openmai.data.filter.quality import QualityModel
from openmai.data.filter.signals_config import UrlRules
from openmai.data.filter.urls import UrlFilter

Row = dict[str, Any]
_HTML = {"text/html", "application/xhtml+xml"}
_NO_PAGE = Page("", "")
_WORD = re.compile(r"\w+")
_TEXT = {"text/plain", "text/markdown", "text/x-rst"}
_UNREADABLE, _MAX_UNREADABLE = re.compile("[\ufffd\0-\x08\x0e-\x1a\x1c-\x1f]"), 0.05


def annotate(batch: pa.RecordBatch, config: Annotation) -> pa.RecordBatch:
    """Return the documents of a batch of raw records: extracted, cleaned, with language, scores and keys."""
    rows = [_extract(row, config) for row in batch.to_pylist()]
    usable = [row for row in rows if not row["rule"]]
    for step in STEPS:
        step(usable, config)
    return _batch(rows, config)


def part_schema(config: Annotation) -> pa.Schema:
    """Return the columns of annotated documents."""
    return pa.unify_schemas([REJECTED_SCHEMA, fingerprint.schema(config.dedup)])


def language(rows: list[Row], config: Annotation) -> None:
    """Fill in `language` (ISO 639-1) and the score `language`, its probability."""
    for row in rows:
        row["language"], row["scores"]["language"] = identify(row["text"])


def private(rows: list[Row], config: Annotation) -> None:
    """Mask private data; `meta` counts what was masked."""
    kinds = frozenset(config.pii.kinds)
    for row in rows:
        row["text"], counts = mask(row["text"], kinds)
        if counts:
            row["meta"]["pii"], row["scores"]["pii"] = counts, float(sum(counts.values()))


def metrics(rows: list[Row], config: Annotation) -> None:
    """Add the metrics of the quality rules to the scores; take C4's lines out of the text if that is asked for."""
    for row in rows:
        row["text"], found = measure_page(row["text"], row["language"], config.lines)
        row["scores"] |= found | {"toxic_words": toxic_words(_WORD.findall(row["text"]), row["language"])}


def quality(rows: list[Row], config: Annotation) -> None:
    """Add the learned score `quality`."""
    if config.quality:
        for row, score in zip(rows, _quality_model(config.quality).score([row["text"] for row in rows]), strict=True):
            row["scores"]["quality"] = score


STEPS: list[Callable[[list[Row], Annotation], None]] = [language, private, metrics, quality]


@cache
def _quality_model(folder: Path) -> QualityModel:
    return QualityModel.load(folder)


@cache
def _url_filter(rules: str) -> UrlFilter:
    return UrlFilter(UrlRules.model_validate_json(rules))


def rejected_batch(batch: pa.RecordBatch, rule: str, reason: str, config: Annotation) -> pa.RecordBatch:
    """Return a batch of raw records, all rejected for the same reason."""
    return _batch([_document(row, rule, reason) for row in batch.to_pylist()], config)


def _extract(row: Row, config: Annotation) -> Row:
    """Return the document of a raw record; one without usable text is rejected."""
    try:
        page = _page(row, config)
    except ExtractError as error:
        return _document(row, error.rule, str(error))
    if not page.text.strip():
        return _document(row, "extract.empty", "no text")
    return _document(row, page=page)


def _page(row: Row, config: Annotation) -> Page:
    """Return what a raw record holds; raises ExtractError."""
    content, mime, limits = row["content"], row["mime"], config.limits
    if reason := _url_filter(config.urls.model_dump_json()).reason(row["url"]):
        raise ExtractError("url.blocked", reason)
    if row["problem"]:
        raise ExtractError(*row["problem"].split(": ", 1))
    if row["status"] != 200:
        raise ExtractError("extract.status", f"HTTP status {row['status']}")
    if mime not in _HTML | _TEXT:
        raise ExtractError("extract.mime", f"neither HTML nor text: {mime or 'unknown'}")
    if len(content) > limits.html_megabytes * 1e6 and mime in _HTML:
        raise ExtractError("extract.size", f"{len(content) / 1e6:.1f} MB of HTML, at most {limits.html_megabytes:g}")
    text = decode(content, row["charset"])
    if (unreadable := len(_UNREADABLE.findall(text))) > _MAX_UNREADABLE * len(text):
        raise ExtractError("extract.encoding", f"{unreadable / len(text):.0%} of its characters fit no character set")
    page = Page("", clean.clean(text)) if mime in _TEXT else _html_page(text, config)
    return replace(page, opt_out=page.opt_out or opt_out((), json.loads(row["headers"])))


def _html_page(html: str, config: Annotation) -> Page:
    if f"<title>{pydoc_pages.TITLE}" not in html[:1000]:
        page = extract(html, config.limits.depth, format=config.format)
        return replace(page, text=clean.drop_empty_headings(clean.clean(page.text)))
    page = extract(html, config.limits.depth, pydoc_pages.hint, config.format)
    text = clean.drop_empty_headings(clean.clean(pydoc_pages.clean(page.text)))
    return replace(page, title=page.title.removeprefix(pydoc_pages.TITLE), text=text)


def _document(row: Row, rule: str = "", reason: str = "", page: Page = _NO_PAGE) -> Row:
    marks = {"title": page.title, "declared_language": page.language, "opt_out": page.opt_out}
    if page.date and row["date"]:
        marks["captured"] = row["date"]
    meta = json.loads(row["meta"]) | {"file": row["file"], "record": row["record"]} | {name: mark for name, mark in marks.items() if mark}
    identity = page.text or f"{rule} {row['file']} {row['record']}"
    return {
        "id": document_id(row["source"], row["url"], identity),
        "text": page.text,
        "language": "",
        "scores": {"raw_bytes": float(len(row["content"]))} | ({"opt_out": 1.0} if page.opt_out else {}),
        "meta": meta,
        "rule": rule,
        "reason": reason,
        "license": page.license or row["license"],
        "date": page.date or row["date"],
        **{name: row[name] for name in ("url", "source")},
    }


def _batch(rows: list[Row], config: Annotation) -> pa.RecordBatch:
    for row in rows:
        row["scores"] = list(row["scores"].items())
        row["meta"] = json.dumps(row["meta"], ensure_ascii=False, sort_keys=True)
    documents = pa.RecordBatch.from_pylist(rows, schema=REJECTED_SCHEMA)
    keys = fingerprint.fingerprint([row["text"] for row in rows], config.dedup)
    return pa.RecordBatch.from_arrays([*documents.columns, *keys.columns().values()], schema=part_schema(config))

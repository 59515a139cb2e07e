"""The steps that look at one document at a time, as functions from record batch to record batch.

`annotate` turns RAW_SCHEMA into REJECTED_SCHEMA: text, language and scores are filled in, and a page that cannot be used gets its `rule`
and `reason`. Nothing is removed here, so a threshold can change without extracting anything anew. Steps know no engine and no files.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pyarrow as pa
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from openmai.data.config import Limits
from openmai.data.document import REJECTED_SCHEMA, document_id
from openmai.data.extract import clean, pydoc_pages
from openmai.data.extract.html import ExtractError, decode, extract, no_hint
from openmai.data.filter.metrics import measure

VERSION = 1  # raised when the output of a step changes: finished parts are then made again
_HTML = {"text/html", "application/xhtml+xml"}
_TEXT = {"text/plain", "text/markdown", "text/x-rst"}
_LANGUAGE_CHARS = 2000  # 99.7 % of the answers on whole pages, at three times the speed


def annotate(batch: pa.RecordBatch, limits: Limits) -> pa.RecordBatch:
    """Return the documents of a batch of raw records: extracted, cleaned, with language and scores."""
    return measure_step(language_step(extract_step(batch, limits)))


def extract_step(batch: pa.RecordBatch, limits: Limits) -> pa.RecordBatch:
    """Turn raw records into documents with text; what has none gets the rule `extract.*`."""
    return _batch([_document(row, limits) for row in batch.to_pylist()])


def language_step(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Fill in `language` (ISO 639-1) and the score `language`, its probability."""
    rows = batch.to_pylist()
    for row in rows:
        if row["text"]:
            row["language"], probability = _identifier().classify(row["text"][:_LANGUAGE_CHARS])
            row["scores"] = [*row["scores"], ("language", float(probability))]
    return _batch(rows)


def measure_step(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Add the metrics of the quality rules to the scores."""
    rows = batch.to_pylist()
    for row in rows:
        if row["text"]:
            row["scores"] = [*row["scores"], *measure(row["text"]).items()]
    return _batch(rows)


def rejected(row: dict[str, Any], rule: str, reason: str) -> dict[str, Any]:
    """Return a raw record as a rejected document without text."""
    facts = {name: row[name] for name in ("url", "source", "license", "date", "meta")}
    scores = [("raw_bytes", float(len(row["content"])))]
    identity = document_id(row["source"], row["url"], f"{rule} {len(row['content'])}")
    return facts | {"id": identity, "text": "", "language": "", "scores": scores, "rule": rule, "reason": reason}


def rejected_batch(batch: pa.RecordBatch, rule: str, reason: str) -> pa.RecordBatch:
    """Return a batch of raw records, all rejected for the same reason."""
    return _batch([rejected(row, rule, reason) for row in batch.to_pylist()])


def _document(row: dict[str, Any], limits: Limits) -> dict[str, Any]:
    try:
        title, text = _text(row, limits)
    except ExtractError as error:
        return rejected(row, error.rule, str(error))
    if not text.strip():
        return rejected(row, "extract.empty", "no text")
    meta = json.loads(row["meta"]) | ({"title": title} if title else {})
    return rejected(row, "", "") | {
        "id": document_id(row["source"], row["url"], text),
        "text": text,
        "meta": json.dumps(meta, ensure_ascii=False, sort_keys=True),
    }


def _text(row: dict[str, Any], limits: Limits) -> tuple[str, str]:
    """Return (title, text) of a raw record; raises ExtractError."""
    content, mime = row["content"], row["mime"]
    if row["status"] != 200:
        raise ExtractError("extract.status", f"HTTP status {row['status']}")
    if mime not in _HTML | _TEXT:
        raise ExtractError("extract.mime", f"neither HTML nor text: {mime or 'unknown'}")
    if len(content) > limits.html_megabytes * 1e6 and mime in _HTML:
        raise ExtractError("extract.size", f"{len(content) / 1e6:.1f} MB of HTML, at most {limits.html_megabytes:g}")
    text = decode(content, row["charset"])
    if mime in _TEXT:
        return "", clean.clean(text)
    is_pydoc = f"<title>{pydoc_pages.TITLE}" in text[:1000]
    title, text = extract(text, limits.depth, pydoc_pages.hint if is_pydoc else no_hint)
    if is_pydoc:
        title, text = title.removeprefix(pydoc_pages.TITLE), pydoc_pages.clean(text)
    return title, clean.drop_empty_headings(clean.clean(text))


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=REJECTED_SCHEMA)

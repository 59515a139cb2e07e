"""The HTTP application behind the page: lists and documents as JSON, originals as pages that can do nothing, judgements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware

from openmai.base.errors import OpenmaiError
from openmai.base.files import atomic_file
from openmai.data.browse.explain import differences
from openmai.data.browse.index import KEPT, Row, Rows, sample
from openmai.data.browse.judgements import VERDICTS
from openmai.data.browse.originals import POLICY, facts, is_html, rendered, source_text
from openmai.data.browse.room import Room

# The page itself may talk to this server only, and so may the frames in it: a link in an original leads nowhere.
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; frame-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_LOCAL = ["127.0.0.1", "localhost", "[::1]"]
_MOST_TEXT = 500_000
_LIST_COLUMNS = ["id", "url", "source", "language", "scores", "meta", "text", "rule", "reason"]
_ALL_COLUMNS = [*_LIST_COLUMNS, "license", "date"]


class Verdict(BaseModel):
    """A judgement as the page sends it; "none" takes an earlier one back."""

    id: str
    verdict: Literal["good", "bad", "unsure", "none"]


def create_app(room: Room, hosts: list[str] | None = None) -> FastAPI:
    """Return the application; it answers only when it is called by one of `hosts` (default: this machine's own names)."""
    app = FastAPI(title="openmai data browse", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts or _LOCAL)  # else another site's name may be bound to this address
    app.add_exception_handler(OpenmaiError, _explain)
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

    @app.get("/")
    def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY, **_CAREFUL})

    @app.get("/api/about")
    def about(source: str = "") -> dict[str, Any]:
        return room.about(source)

    @app.get("/api/documents")
    def documents(
        which: str = "all",
        source: str = "",
        query: str = "",
        judged: str = "",
        seed: int | None = Query(None, ge=0),
        offset: int = Query(0, ge=0),
        limit: int = Query(40, ge=1, le=200),
    ) -> dict[str, Any]:
        rows, searched = _select(room, which, source, query, judged)
        rows = rows if seed is None else sample(rows, seed)
        shown = [int(row) for row in rows[offset : offset + limit]]
        found = [_summary(room, number, row) for number, row in zip(shown, room.index.read(shown, _LIST_COLUMNS), strict=True)]
        return {"total": len(rows), "searched": searched, "rows": found}

    @app.get("/api/documents/{row}")
    def document(row: int) -> dict[str, Any]:
        return _document(room, _check(room, row))

    @app.get("/api/compare/{row}/{other}")
    def compare(row: int, other: int) -> dict[str, Any]:
        here, there = room.index.read([_check(room, row), _check(room, other)], ["id", "text", "url"])
        return {"other": {"row": other, "id": there["id"], "url": there["url"]}, "pieces": differences(here["text"], there["text"])}

    @app.get("/api/source/{row}")
    def source(row: int) -> dict[str, Any]:
        found = room.original(_check(room, row))
        return {"facts": facts(found), "is_html": is_html(found), "text": source_text(found)[: 4 * _MOST_TEXT]}

    @app.get("/original/{row}")
    def original(row: int) -> Response:
        headers = {"Content-Security-Policy": POLICY, **_CAREFUL}
        return Response(rendered(room.original(_check(room, row))), media_type="text/html; charset=utf-8", headers=headers)

    @app.post("/api/judge")
    def judge(verdict: Verdict, request: Request) -> dict[str, Any]:
        _check_origin(request)
        room.judge(verdict.id, verdict.verdict)
        return room.agreement()

    @app.get("/api/agreement")
    def agreement() -> dict[str, Any]:
        return room.agreement()

    @app.post("/api/export")
    def export(request: Request) -> dict[str, Any]:
        _check_origin(request)
        return {"files": [{"path": str(path), "documents": count} for path, count in export_texts(room)]}

    return app


_CAREFUL = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-DNS-Prefetch-Control": "off",
    "Cache-Control": "no-store",
}


def export_texts(room: Room) -> list[tuple[Path, int]]:
    """Write the documents judged good and those judged bad as JSON lines beside the judgements; return the files and their counts.

    They are sources of `openmai data quality`.
    """
    written = []
    for verdict in ("good", "bad"):
        path = room.judgements.path.with_suffix(f".{verdict}.jsonl")
        rows = [row for row, given in room.judged.items() if given == verdict]
        with atomic_file(path, "w") as file:
            for number in rows:
                row = room.index.read([number], ["id", "text", "url", "source", "rule"])[0]
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        written.append((path, len(rows)))
    return written


def _explain(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=409)


def _check(room: Room, row: int) -> int:
    if not 0 <= row < len(room.index):
        raise HTTPException(404, f"no document {row}; there are {len(room.index)}")
    return row


def _check_origin(request: Request) -> None:
    """Refuse what another site's page sends: a browser names its origin."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise HTTPException(403, f"{origin} may not judge here")


def _select(room: Room, which: str, source: str, query: str, judged: str) -> tuple[Rows, float]:
    """Return the rows that all filters let through, and the share of documents that the search looked at."""
    share = 1.0
    if query.strip():
        found = room.index.search(query.strip(), which, source)
        rows, share = found.rows, found.share
    else:
        rows = room.index.select(which, source)
    if judged:
        mask = np.zeros(len(room.index), np.bool_)
        mask[[row for row, verdict in room.judged.items() if _is_judged(judged, verdict, room.index.rule_of(row))]] = True
        rows = rows[~mask[rows] if judged == "not" else mask[rows]]
    return rows, share


def _is_judged(wanted: str, verdict: str, rule: str) -> bool:
    """True if a judgement is of the wanted kind: one of VERDICTS, "against" the engine, or any ("not" takes the others)."""
    if wanted == "against":
        return verdict == ("bad" if rule == KEPT else "good")
    return verdict == wanted if wanted in VERDICTS else True


def _summary(room: Room, number: int, row: Row) -> dict[str, Any]:
    scores, meta = dict(row["scores"]), json.loads(row["meta"] or "{}")
    name = "quality" if "quality" in scores else "language"
    first = next((line.strip() for line in row["text"].splitlines() if line.strip()), "")
    return {
        **{key: row[key] for key in ("id", "url", "source", "language", "rule", "reason")},
        "row": number,
        "title": str(meta.get("title", ""))[:200],
        "line": first[:200],
        "bytes": len(row["text"].encode("utf-8", errors="replace")),
        "score": [name, scores[name]] if name in scores else None,
        "verdict": room.judged.get(number, ""),
    }


def _document(room: Room, number: int) -> dict[str, Any]:
    row = room.index.read([number], _ALL_COLUMNS)[0]
    partner = room.index.partner(number)
    return {
        **_summary(room, number, row),
        "text": row["text"][:_MOST_TEXT],
        "chars": len(row["text"]),
        "license": row["license"],
        "date": row["date"],
        "meta": json.loads(row["meta"] or "{}"),
        "profile": room.limits.of(row["source"])[0],
        "scores": room.limits.table(row["source"], dict(row["scores"])),
        "partner": {"row": partner, "id": room.index.identity(partner)} if partner is not None else None,
        "copies": [{"row": other, "id": room.index.identity(other)} for other in room.index.copies_of(number)],
    }

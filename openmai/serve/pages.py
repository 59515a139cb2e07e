"""The pages: the chat, and the runs. Files without external requests, under a policy that forbids any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse

from openmai.base.errors import OpenmaiError
from openmai.serve.errors import APIError
from openmai.serve.gate import Gate
from openmai.serve.keys import Key
from openmai.serve.runs import Runs

FOLDER = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def pages(gate: Gate, runs: Runs | None) -> APIRouter:
    """Return the routes of the pages; those of runs only where there are runs to show."""
    router = APIRouter(include_in_schema=False)
    known = Depends(gate.identify)

    def page(file: str) -> HTMLResponse:
        text, style = ((FOLDER / name).read_text(encoding="utf-8") for name in (file, "style.css"))
        return HTMLResponse(text.replace("/* style.css */", style, 1), headers=HEADERS)

    @router.get("/")
    async def chat() -> HTMLResponse:
        return page("page.html")

    @router.get("/runs")
    async def runs_page() -> HTMLResponse:
        return page("runs.html")

    @router.get("/runs/data")
    async def list_runs(key: Key = known) -> dict[str, Any]:
        return {"runs": await run_in_threadpool(runs.list) if runs else []}

    @router.get("/runs/data/{name}")
    async def read_run(name: str, key: Key = known) -> dict[str, Any]:
        if runs is None:
            raise APIError(404, "this server shows no runs; start it with --runs FOLDER")
        try:
            return await run_in_threadpool(runs.read, name)
        except OpenmaiError as error:
            raise APIError(404, str(error)) from None

    return router

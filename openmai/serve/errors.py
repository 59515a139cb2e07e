"""OpenAI's error object, for every failure."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from openmai.base.errors import OpenmaiError
from openmai.infer.grammar import GrammarError
from openmai.infer.request import ContextLengthError

INVALID = "invalid_request_error"


class APIError(Exception):
    """A failure that the caller is told of."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        kind: str = INVALID,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def explain(error: Exception) -> APIError:
    """Turn any exception into what the caller may know of it."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, ContextLengthError):
        return APIError(400, str(error), "messages", "context_length_exceeded")
    if isinstance(error, GrammarError):
        return APIError(400, str(error), "response_format", "invalid_value")
    if isinstance(error, OpenmaiError):
        return APIError(400, str(error))
    if isinstance(error, RequestValidationError):
        return _explain_validation(error)
    if isinstance(error, TimeoutError):
        return APIError(504, "the answer took longer than this server allows", code="timeout", kind="server_error")
    if isinstance(error, HTTPException):
        return APIError(error.status_code, str(error.detail))
    return APIError(500, "the server failed on this request; its log says why", kind="server_error")


def install(app: FastAPI) -> None:
    """Let every failure of `app` end in an error object."""
    for kind in (APIError, OpenmaiError, RequestValidationError, HTTPException, TimeoutError, Exception):
        app.add_exception_handler(kind, answer)


async def answer(request: Request, error: Exception) -> JSONResponse:
    known = explain(error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else known.headers
    return JSONResponse(known.body, status_code=known.status, headers=headers)


def _explain_validation(error: RequestValidationError) -> APIError:
    """Name the first field that is wrong."""
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        return APIError(400, f"the body is not valid JSON: {problem['ctx']['error']}")
    param = _path(problem["loc"][1:])
    if problem["type"] == "missing":
        return APIError(400, f"{param or 'body'}: required, but not given", param, "missing_required_parameter")
    return APIError(400, f"{param or 'body'}: {problem['msg'].removeprefix('Value error, ')}", param, "invalid_value")


def _path(location: tuple[Any, ...]) -> str | None:
    """Write a place in the body as `messages[0].content`; names of union members, which pydantic adds, are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int"):
            path += f".{part}" if path else part
    return path or None

"""A teacher behind any OpenAI-compatible endpoint, and a ledger of its answers so that none is asked for twice."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmai.base.errors import OpenmaiError
from openmai.base.files import hash_value

Messages = list[dict[str, str]]
_AGAIN = frozenset({408, 409, 425, 429})  # and every 5xx
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds; the waits between tries double


@dataclass(frozen=True)
class Teacher:
    """Sends chats to `endpoint` (…/v1); a busy or failing server is asked again `retries` times."""

    endpoint: str
    model: str
    key: str = ""
    retries: int = 5
    timeout: float = 120.0

    def chat(self, messages: Messages, params: dict[str, Any]) -> str:
        """Return the answer to `messages`. Raises OpenmaiError if the server refuses the request or stays unreachable."""
        body = json.dumps({"model": self.model, "messages": messages, **params}).encode()
        for attempt in range(self.retries + 1):
            problem, wait = self._try(body)
            if isinstance(problem, dict):
                return _content(problem, self.endpoint)
            if attempt < self.retries:
                time.sleep(min(_LONGEST_WAIT, max(wait, _FIRST_WAIT * 2**attempt)))
        raise OpenmaiError(f"{self.endpoint}: {problem} after {self.retries + 1} tries; run the same command again when it answers")

    def _try(self, body: bytes) -> tuple[dict[str, Any] | str, float]:
        """Return (the response, 0), or (what is wrong, the seconds that the server asks to wait)."""
        headers = {"Content-Type": "application/json", "User-Agent": "openmai"} | (
            {"Authorization": f"Bearer {self.key}"} if self.key else {}
        )
        request = urllib.request.Request(f"{self.endpoint.rstrip('/')}/chat/completions", data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                value = json.loads(response.read())
                return (value if isinstance(value, dict) else "its answer is no JSON object"), 0.0
        except urllib.error.HTTPError as error:
            if error.code not in _AGAIN and error.code < 500:
                detail = " ".join(error.read(500).decode("utf-8", errors="replace").split())
                raise OpenmaiError(f"{self.endpoint}: refuses the request with {error.code} {error.reason}: {detail}; mend it") from None
            wait = error.headers.get("Retry-After", "")
            return f"answers {error.code} {error.reason}", float(wait) if wait.isdigit() else 0.0
        except (OSError, http.client.HTTPException) as error:
            return f"cannot be reached ({getattr(error, 'reason', None) or error})", 0.0
        except ValueError:
            return "its answer is not valid JSON", 0.0


def _content(response: dict[str, Any], endpoint: str) -> str:
    try:
        return response["choices"][0]["message"]["content"] or ""
    except (KeyError, IndexError, TypeError):
        raise OpenmaiError(f"{endpoint}: its answer is no chat completion; is this the base URL of an OpenAI-style API (…/v1)?") from None


class AnswerLedger:
    """Answers by key in a JSONL file that only grows; a half-written last line (a killed run) is an answer that was not had."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock, self.new = path, threading.Lock(), 0
        self.answers: dict[str, str] = {}
        data = path.read_bytes() if path.exists() else b""
        for line in data.splitlines():
            try:
                record = json.loads(line)
                self.answers[record["key"]] = record["answer"]
            except (ValueError, KeyError, TypeError):
                continue
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a", encoding="utf-8")
        if data and not data.endswith(b"\n"):
            self.file.write("\n")

    def ask(self, teacher: Teacher, document: str, messages: Messages, params: dict[str, Any]) -> str:
        """Return the teacher's answer about `document`, from the ledger if it is there."""
        prompt = hash_value(messages)
        key = hash_value([document, prompt, teacher.model, params])
        if key not in self.answers:
            answer = teacher.chat(messages, params)
            record = {"key": key, "document": document, "prompt": prompt, "model": teacher.model, "params": params, "answer": answer}
            with self.lock:
                self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
                self.file.flush()
                os.fsync(self.file.fileno())
                self.answers[key] = answer
                self.new += 1
        return self.answers[key]

    def close(self) -> None:
        self.file.close()

"""API keys: hashed at rest, limited, and accounted for, in one SQLite file that the server and `openmai keys` share."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import sqlite3
import threading
import time
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from openmai.base.errors import OpenmaiError
from openmai.base.progress import say
from openmai.serve.config import CreateKeyConfig, KeyConfig, RevokeKeyConfig

PREFIX = "om-"
FLUSH_SECONDS = 1.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, hash BLOB NOT NULL UNIQUE, models TEXT NOT NULL,
  requests_per_minute INTEGER NOT NULL, tokens_per_minute INTEGER NOT NULL, created TEXT NOT NULL, revoked TEXT);
CREATE TABLE IF NOT EXISTS usage (
  key TEXT NOT NULL, day TEXT NOT NULL, model TEXT NOT NULL, requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL, PRIMARY KEY (key, day, model));
"""
ADD = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key, day, model) DO UPDATE SET requests = requests + excluded.requests,
  prompt_tokens = prompt_tokens + excluded.prompt_tokens, completion_tokens = completion_tokens + excluded.completion_tokens
"""


@dataclass(frozen=True)
class Key:
    """What is known of a caller; nothing of it is secret."""

    id: str
    name: str = ""
    models: tuple[str, ...] = ()
    requests_per_minute: int = 0
    tokens_per_minute: int = 0

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models


ANYBODY = Key("")


def digest(secret: str) -> bytes:
    """Hash a key. Keys are 32 random bytes, so a plain fast hash cannot be searched."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def open_store(path: Path, make: bool = False) -> sqlite3.Connection:
    """Open the file. Raises OpenmaiError when it is missing and not to be made, or is something else."""
    if not make and not path.exists():
        raise OpenmaiError(f"keys={path}: no such file; make a key with `openmai keys create NAME --keys {path}`")
    try:
        store = sqlite3.connect(path, check_same_thread=False, timeout=10, isolation_level=None)
        store.execute("PRAGMA journal_mode=WAL")
        store.executescript(SCHEMA)
    except sqlite3.DatabaseError as error:
        raise OpenmaiError(f"keys={path}: not a file of keys ({error})") from None
    path.chmod(0o600)
    return store


class KeyStore:
    """Keys and usage for a running server; thread-safe. Usage is written every second and on closing."""

    def __init__(self, path: Path) -> None:
        self._store = open_store(path)
        self._lock = threading.Lock()
        self._usage: defaultdict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._write_now_and_then, name="openmai-usage", daemon=True)
        self._thread.start()

    def find(self, secret: str) -> Key | None:
        """Return the key that `secret` is, None for one that is unknown or revoked."""
        query = "SELECT id, name, models, requests_per_minute, tokens_per_minute FROM keys WHERE hash = ? AND revoked IS NULL"
        with self._lock:
            row = self._store.execute(query, (digest(secret),)).fetchone()
        return None if row is None else Key(row[0], row[1], tuple(json.loads(row[2])), row[3], row[4])

    def add(self, key: str, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Note one request."""
        with self._lock:
            counts = self._usage[key, time.strftime("%Y-%m-%d", time.gmtime()), model]
            for place, count in enumerate((1, prompt_tokens, completion_tokens)):
                counts[place] += count

    def _write_now_and_then(self) -> None:
        while not self._closed.wait(FLUSH_SECONDS):
            self.flush()

    def flush(self) -> None:
        with self._lock:
            rows, self._usage = self._usage, defaultdict(lambda: [0, 0, 0])
            if rows:
                self._store.executemany(ADD, [(*place, *counts) for place, counts in rows.items()])

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self.flush()
        with self._lock:
            self._store.close()


class RateLimiter:
    """Buckets that fill up again over a minute: one of requests, one of tokens, per key.

    Tokens are taken when they are known, after the answer; a key that has taken too many waits until its bucket is no longer empty.
    """

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}
        self._lock = threading.Lock()

    def admit(self, key: Key) -> tuple[int, str] | None:
        """Take a request; or return the seconds after which it may be tried again, and which limit it was."""
        with self._lock:
            if key.tokens_per_minute and (left := self._left(key.id, "tokens", key.tokens_per_minute)) <= 0:
                return math.ceil((1 - left) * 60 / key.tokens_per_minute), f"{key.tokens_per_minute} tokens per minute"
            if key.requests_per_minute:
                left = self._left(key.id, "requests", key.requests_per_minute)
                if left < 1:
                    return math.ceil((1 - left) * 60 / key.requests_per_minute), f"{key.requests_per_minute} requests per minute"
                self._buckets[key.id, "requests"] = (left - 1, time.monotonic())
        return None

    def spend(self, key: Key, tokens: int) -> None:
        if key.tokens_per_minute:
            with self._lock:
                self._buckets[key.id, "tokens"] = (self._left(key.id, "tokens", key.tokens_per_minute) - tokens, time.monotonic())

    def _left(self, key: str, kind: str, limit: int) -> float:
        left, since = self._buckets.get((key, kind), (float(limit), 0.0))
        return min(limit, left + (time.monotonic() - since) * limit / 60)


def create(config: CreateKeyConfig) -> None:
    """Make a key and print it, the only time that it is seen."""
    secret, number = PREFIX + secrets.token_urlsafe(32), secrets.token_hex(4)
    with closing(open_store(config.keys, make=True)) as store:
        store.execute(
            "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, datetime('now'), NULL)",
            (number, config.name, digest(secret), json.dumps(config.models), config.requests_per_minute, config.tokens_per_minute),
        )
    say(f"key {number} for {config.name}; it is shown this once:")
    print(secret)


def show(config: KeyConfig) -> None:
    """Print all keys and what each has used."""
    query = """
    SELECT id, name, models, requests_per_minute, tokens_per_minute, created, revoked, coalesce(sum(requests), 0),
      coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0)
    FROM keys LEFT JOIN usage ON key = id GROUP BY id ORDER BY created
    """
    with closing(open_store(config.keys)) as store:
        rows = store.execute(query).fetchall()
    print(f"{'id':<10}{'name':<20}{'state':<10}{'requests':>10}{'prompt':>14}{'answers':>14}  limits")
    for number, name, models, requests, tokens, _, revoked, used, prompt, answers in rows:
        limits = [f"{requests} requests/min"] * (requests > 0) + [f"{tokens} tokens/min"] * (tokens > 0) + json.loads(models)
        state = "revoked" if revoked else "active"
        print(f"{number:<10}{name[:19]:<20}{state:<10}{used:>10,}{prompt:>14,}{answers:>14,}  {', '.join(limits) or 'none'}")


def revoke(config: RevokeKeyConfig) -> None:
    """End a key; a running server refuses it from its next request on."""
    with closing(open_store(config.keys)) as store:
        changed = store.execute("UPDATE keys SET revoked = datetime('now') WHERE id = ? AND revoked IS NULL", (config.id,)).rowcount
    if not changed:
        raise OpenmaiError(f"id={config.id}: no active key of that id in {config.keys}; `openmai keys list` shows them")
    say(f"key {config.id} is revoked")

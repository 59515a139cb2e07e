"""What a person says of documents: JSON lines that only grow, one line for each judgement; of several on a document the last counts."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from openmai.base.errors import OpenmaiError

VERDICTS = ("good", "bad", "unsure")
NONE = "none"  # takes an earlier judgement back


class Judgements:
    """The judgements in a file, by id of the document."""

    def __init__(self, path: Path) -> None:
        """Take up the judgements in `path`; a half-written last line, of a process that was killed, is passed over."""
        self.path = path
        self.verdicts: dict[str, str] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                self._take(line)

    def _take(self, line: str) -> None:
        try:
            record = json.loads(line)
            self._set(record["id"], record["verdict"])
        except (json.JSONDecodeError, KeyError, TypeError):
            return

    def _set(self, identity: str, verdict: str) -> None:
        self.verdicts.pop(identity, None)
        if verdict in VERDICTS:
            self.verdicts[identity] = verdict

    def add(self, identity: str, verdict: str, **facts: Any) -> None:
        """Append one judgement in one write, so that two programs may share the file. Raises OpenmaiError if it cannot be written."""
        record = {"id": identity, "verdict": verdict, **facts, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", errors="replace") + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, b"\n" * _is_cut(descriptor) + line)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OpenmaiError(f"{self.path}: cannot be written ({error.strerror}); choose another file with --judgements") from None
        self._set(identity, verdict)


def _is_cut(descriptor: int) -> bool:
    """True if the file's last line has no end."""
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def agreement(judged: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return what (rule, verdict) pairs say of the engine; the rule of a document that was kept is "".

    The engine is right where it kept what is good and rejected what is bad; documents of which the person is unsure do not count.
    """
    counts: dict[str, Counter[str]] = {}
    for rule, verdict in judged:
        counts.setdefault(rule, Counter())[verdict] += 1
    rejected = sum((count for rule, count in counts.items() if rule), Counter[str]())
    kept = counts.get("", Counter())
    right, wrong = kept["good"] + rejected["bad"], kept["bad"] + rejected["good"]
    return {
        "judged": sum(count.total() for count in counts.values()),
        "verdicts": {verdict: sum(count[verdict] for count in counts.values()) for verdict in VERDICTS},
        "agreement": share(right, wrong),
        "kept_good": share(kept["good"], kept["bad"]),
        "rejected_good": share(rejected["good"], rejected["bad"]),
        "rules": {rule: {**count, "share_good": share(count["good"], count["bad"])} for rule, count in sorted(counts.items())},
    }


def share(hits: int, others: int) -> dict[str, Any] | None:
    """Return hits, number, share and its 95 % interval (Wilson 1927), None for no number."""
    number, z = hits + others, 1.96
    if not number:
        return None
    p = hits / number
    middle, half = p + z * z / (2 * number), z * math.sqrt(p * (1 - p) / number + z * z / (4 * number * number))
    low, high = ((middle + sign * half) / (1 + z * z / number) for sign in (-1, 1))
    return {"hits": hits, "number": number, "share": p, "low": max(0.0, low), "high": min(1.0, high)}

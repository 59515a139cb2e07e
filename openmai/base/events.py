"""The metrics stream of a run: one JSON object per line, readable while it grows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Events:
    """Append-only `events.jsonl`; each record carries a `kind` ("train", "eval", …) and, in training, a `step`."""

    def __init__(self, path: Path, keep_until_step: int | None = None) -> None:
        """Open `path` for appending; `keep_until_step` first drops records of later steps, as a resumed run writes them again."""
        if keep_until_step is not None and path.exists():
            kept = [record for record in read_events(path) if record.get("step", 0) <= keep_until_step]
            path.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, kind: str, **values: Any) -> None:
        """Append one record."""
        self.file.write(json.dumps({"kind": kind, **values}) + "\n")

    def close(self) -> None:
        self.file.close()


def read_events(path: Path, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the records of `path`, optionally of one kind; a half-written last line (a killed process) is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if kind is None or record["kind"] == kind:
            yield record

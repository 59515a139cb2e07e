"""The metrics stream of a run: one JSON object per line, readable while it grows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from openmai.base.files import atomic_file


class Events:
    """Append-only `events.jsonl`; each record carries a `kind` ("train", "eval", …) and, in training, a `step`."""

    def __init__(self, path: Path, keep_until_step: int | None = None) -> None:
        """Open `path` for appending; `keep_until_step` first drops records of later steps, as a resumed run writes them again."""
        self.path = path
        self.mirror: Callable[[str, dict[str, Any]], None] = lambda kind, values: None
        "sees every record as well"
        if keep_until_step is not None and path.is_file():
            _drop_after(path, keep_until_step)
        self.file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, kind: str, **values: Any) -> None:
        """Append one record."""
        self.file.write(json.dumps({"kind": kind, **values}) + "\n")
        self.mirror(kind, values)

    def go_back(self, step: int) -> None:
        """Drop the records of steps after `step`, which will be written again."""
        self.file.close()
        if self.path.is_file():
            _drop_after(self.path, step)
        self.file = self.path.open("a", encoding="utf-8", buffering=1)

    def sync(self) -> None:
        """Make what was written durable."""
        if self.path.is_file():
            os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


def _drop_after(path: Path, step: int) -> None:
    kept = [record for record in read_events(path) if record.get("step", 0) <= step]
    with atomic_file(path, "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in kept)


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

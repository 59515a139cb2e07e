"""From token ids to text while they arrive: nothing half-finished is ever shown."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Joins tokens to text, holding back incomplete characters and the possible beginning of a stop text."""

    def __init__(self, table: list[bytes], stop: Sequence[str] = ()) -> None:
        self.table, self.stop = table, [text for text in stop if text]
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take a token; return the text that is now certain. Sets `stopped` when a stop text is complete."""
        return self._release(self.decoder.decode(self.table[token]))

    def finish(self) -> str:
        """Return what was held back, unless a stop text ended the answer."""
        if self.stopped:
            return ""
        text = self._release(self.decoder.decode(b"", final=True)) + self.held
        self.held = ""
        return text

    def _release(self, text: str) -> str:
        self.held += text
        found = [place for stop in self.stop if (place := self.held.find(stop)) >= 0]
        if found:
            self.stopped = True
            certain, self.held = self.held[: min(found)], ""
            return certain
        cut = len(self.held) - self._possible_stop()
        certain, self.held = self.held[:cut], self.held[cut:]
        return certain

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text that begins a stop text."""
        longest = max((len(stop) - 1 for stop in self.stop), default=0)
        lengths = range(min(longest, len(self.held)), 0, -1)
        return next((size for size in lengths if any(stop.startswith(self.held[-size:]) for stop in self.stop)), 0)

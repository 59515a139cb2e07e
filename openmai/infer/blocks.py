"""The blocks of the cache: who uses them, what they hold, and which may be given away."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence


def chain(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Return the name of a full block: a hash over its tokens and all tokens before it."""
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()


class BlockPool:
    """Counts references to blocks. A full block may be published under its name; when nobody uses it any more it stays to be found again
    until its space is needed, the one that was longest unused first."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._users = [0] * count
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._named: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}

    @property
    def available(self) -> int:
        """How many blocks can be taken."""
        return len(self._free) + len(self._idle)

    def take(self) -> int:
        """Give away a block; check `available` first."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            del self._named[self._names.pop(block)]
        self._users[block] = 1
        return block

    def release(self, blocks: Sequence[int]) -> None:
        """Give back the blocks of a sequence; its last ones will be the first to be overwritten."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                if block in self._names:
                    self._idle[block] = None
                else:
                    self._free.append(block)

    def publish(self, block: int, name: bytes) -> None:
        """Let others find a full block, unless one of that name is there."""
        if name not in self._named and block not in self._names:
            self._named[name], self._names[block] = block, name

    def find(self, names: Sequence[bytes]) -> list[int]:
        """Return the blocks of the longest known beginning of `names`, each with one more user."""
        found = []
        for name in names:
            block = self._named.get(name)
            if block is None:
                break
            self._users[block] += 1
            self._idle.pop(block, None)
            found.append(block)
        return found

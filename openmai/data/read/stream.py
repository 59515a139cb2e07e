"""A file as one stream of decompressed bytes that says where the data break, and goes on at the next whole piece behind the break.

gzip, zstd and lz4 files are a row of members (frames) that decompress independently; a web archive has one for each record. So damage
costs a member, not the rest. Whatever the data say, memory and time stay linear in the size of the file.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import lz4.frame
import zstandard

_BLANK = b"\r\n\0 \t"
_BLANKS = re.compile(rb"[\r\n\0 \t]*")
_READ = 1 << 16
_BOMB_BYTES, _BOMB_RATIO = 1 << 28, 250  # a member beyond both is made to fill disks and memory; text never shrinks that far
_REREAD = 1 << 30  # bytes that may be read a second time in the search for whole members
_PROBE, _LOOK = 1 << 12, 1 << 10
_ERRORS = (zlib.error, zstandard.ZstdError, RuntimeError, OSError, EOFError, zipfile.BadZipFile)  # lz4 raises RuntimeError


@dataclass(frozen=True)
class _Codec:
    name: str
    magic: re.Pattern[bytes]
    member: Callable[[], Any]
    slice: int  # bytes fed at once; bounds what can come out at once to some 30 MB


GZIP = _Codec("gzip", re.compile(rb"\x1f\x8b\x08[\x00-\x1f]"), lambda: zlib.decompressobj(wbits=31), 1 << 14)
_LZ4 = _Codec("lz4", re.compile(rb"\x04\x22\x4d\x18"), lz4.frame.LZ4FrameDecompressor, 1 << 14)
_ZSTD_MAGIC = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")
_ZSTD_DICTIONARY = b"\x5d\x2a\x4d\x18"


def codec_of(file: IO[bytes]) -> _Codec | None:
    """Return how `file` is compressed, by its first bytes, and leave it at its beginning."""
    head = file.read(8)
    codec = next((codec for codec in (GZIP, _LZ4) if codec.magic.match(head)), None)
    if codec is None and _ZSTD_MAGIC.match(head):
        codec = _zstd(file, head)
    file.seek(0)
    return codec


def _zstd(file: IO[bytes], head: bytes) -> _Codec:
    """Return the zstd codec, with the dictionary that the file may begin with (https://iipc.github.io/warc-specifications, warc-zstd)."""
    dictionary = None
    if head.startswith(_ZSTD_DICTIONARY):
        data = file.read(min(int.from_bytes(head[4:8], "little"), _READ << 8))
        try:
            packed = _ZSTD_MAGIC.match(data)
            dictionary = zstandard.ZstdCompressionDict(
                zstandard.ZstdDecompressor().decompress(data, max_output_size=_READ << 8) if packed else data
            )
        except (zstandard.ZstdError, ValueError):
            pass  # the frames that need it will be reported
    return _Codec("zstd", _ZSTD_MAGIC, lambda: zstandard.ZstdDecompressor(dict_data=dictionary).decompressobj(), 1 << 10)


def codec_named(name: str) -> _Codec | None:
    """Return how a file of this name should be compressed."""
    return {".gz": GZIP, ".lz4": _LZ4, ".zst": _zstd(io.BytesIO(), b"")}.get(name.lower()[name.rfind(".") :])


class Stream:
    """Decompressed bytes of a file: look at `buffer`, which begins at `position` of the data, after `ensure`; `drop` what is done.

    Where the data break, nothing comes after the buffer and `problem` says why, until `resume` finds a member behind the break that
    begins as `start` says.
    """

    def __init__(self, file: IO[bytes], start: re.Pattern[bytes] | None = None, codec: _Codec | None = None) -> None:
        self.file, self.start = file, start
        self.codec = codec or codec_of(file)
        self.buffer = bytearray()
        self.position = 0
        self.problem = ""
        self.is_cut = False  # the problem is that the data end too early; what there is, is right
        self.member: Any = None
        self.member_offset = self.member_position = 0  # where it begins in the file, and in the data
        self.member_starts: deque[int] = deque()  # where those begin in the data that are not yet dropped
        self._rest = b""
        self._offset = 0  # in the file, of what is to be decompressed next
        self._fed = self._made = 0
        self._budget = _REREAD
        self._seeks_cheaply = isinstance(file, io.BufferedReader)

    def ensure(self, size: int) -> bool:
        """Fill the buffer to at least `size` bytes; false if the data end or break before."""
        while len(self.buffer) < size:
            if not self.more():
                return False
        return True

    def more(self) -> bool:
        """Add a piece to the buffer; false if the data end or break here."""
        piece = self._pull()
        self.buffer += piece
        return bool(piece)

    def drop(self, size: int) -> None:
        """Take `size` bytes from the front of the buffer."""
        del self.buffer[:size]
        self.position += size
        while self.member_starts and self.member_starts[0] < self.position:
            self.member_starts.popleft()

    def cut(self) -> None:
        """Note that more was promised than there is."""
        if not self.problem:
            self.problem, self.is_cut = "the file breaks off", True

    def take(self, size: int) -> bytes:
        """Take `size` bytes, which are there, from the front of the buffer and return them."""
        with memoryview(self.buffer) as view:
            taken = bytes(view[:size])
        self.drop(size)
        return taken

    def skip(self, size: int) -> bool:
        """Pass over `size` bytes without keeping them; false, and nowhere far, if they cannot be what they are said to be.

        A plain file may be too short for them; in a compressed one, a member that begins as a record does is the next record.
        """
        if self.codec is None and self._seeks_cheaply:
            if self._offset - len(self.buffer) + size > self._size():
                return False
            ahead = max(0, size - len(self.buffer))
            self._offset = self.file.seek(ahead, io.SEEK_CUR)
            self.position += ahead
            self.drop(size - ahead)
            return True
        begin, end = self.position, self.position + size
        while self.position < end:
            if not self.buffer and not self.more():
                return False
            known = min(len(self.buffer), end - self.position)
            if (place := self.next_record(begin, end)) is not None:
                self.drop(place)
                return False
            self.drop(known)
        return True

    def next_record(self, begin: int, end: int) -> int | None:
        """Return where in the buffer a member between two places of the data begins as a record does: it is one, whatever a length says."""
        known = min(end, self.position + len(self.buffer))
        places = [start - self.position for start in self.member_starts if begin < start < known]
        return next((place for place in places if self._starts_at(place)), None)

    def _starts_at(self, place: int) -> bool:
        self.ensure(place + _LOOK)
        return self.start is not None and self.start.match(self.buffer, place) is not None

    def skip_to(self, pattern: re.Pattern[bytes], overlap: int) -> int:
        """Drop what is before the next match of `pattern`, or all there is; return how many bytes that was, blank ends not counted.

        A match is found if it is not longer than `overlap`.
        """
        lost = 0
        while self._drop_blanks():
            pass
        while (match := pattern.search(self.buffer)) is None:
            searched = len(self.buffer) - overlap
            if not self.more():
                break
            if searched > 0:  # a match may begin in the last bytes; what stays begins with a line, if there are any
                done = self.buffer.rfind(b"\n", 0, searched) + 1 or searched
                lost += len(self.buffer[:done].strip(_BLANK))
                self.drop(done)
        end = match.start() if match is not None else len(self.buffer)
        lost += len(self.buffer[:end].strip(_BLANK))
        self.drop(end)
        return lost

    def _drop_blanks(self) -> bool:
        """Drop blank bytes; true if there may be more of them."""
        blanks = _BLANKS.match(self.buffer)
        assert blanks is not None
        self.drop(blanks.end())
        return not self.buffer and self.more()

    def lines(self, limit: int) -> Iterator[bytes | None]:
        """Yield the lines without their ends, None for one longer than `limit`; a line that a break cuts off is left in the buffer."""
        too_long, seen = False, 0
        while self.more():
            end = self.buffer.rfind(b"\n", seen) + 1
            if end:
                first, *others = self.take(end)[:-1].split(b"\n")
                yield None if too_long or len(first) > limit else first
                yield from others
                too_long = False
            elif len(self.buffer) > limit:
                too_long = True
                self.drop(len(self.buffer))
            seen = len(self.buffer)
        if not self.problem and (self.buffer or too_long):
            yield None if too_long else self.take(len(self.buffer))

    def resume(self) -> bool:
        """Go on at the next whole member behind the one that broke; false if there is none. What is in the buffer is lost."""
        self.drop(len(self.buffer))
        if self.codec is None or self.start is None:
            return False
        reached, begin = self._offset, self.member_offset + 1
        cost = reached - begin if self._seeks_cheaply else reached
        if cost > self._budget and not self._seeks_cheaply:
            return False
        begin = begin if cost <= self._budget else reached
        self._budget -= min(cost, self._budget)
        try:
            found = self._find_member(begin)
            if found is None:
                return False
            self.file.seek(found)
        except _ERRORS:
            return False
        self._offset = self.member_offset = found
        self._rest, self.member = b"", None
        self.problem, self.is_cut = "", False
        return True

    def _find_member(self, begin: int) -> int | None:
        assert self.codec is not None
        self.file.seek(begin)
        window = b""
        while data := self.file.read(_READ):
            window += data
            for match in self.codec.magic.finditer(window):
                if match.start() + _PROBE > len(window) and len(data) == _READ:
                    break  # too near the end to be tried: with the next piece
                if self._opens(window[match.start() : match.start() + _PROBE]):
                    return begin + match.start()
            done = max(0, len(window) - _PROBE)
            begin, window = begin + done, window[done:]
        return None

    def _opens(self, data: bytes) -> bool:
        """True if `data` begin with a member whose content begins as a record does."""
        assert self.codec is not None
        assert self.start is not None
        try:
            return bool(self.start.match(self.codec.member().decompress(data)))
        except _ERRORS:
            return False

    def _size(self) -> int:
        here = self.file.tell()
        size = self.file.seek(0, io.SEEK_END)
        self.file.seek(here)
        return size

    def _pull(self) -> bytes:
        """Return the next bytes; b"" at the end or where the data break."""
        while not self.problem:
            data = self._read()
            if self.codec is None:
                return data
            if not self.member:
                padding = len(data) - len(data.lstrip(b"\0"))  # some writers put zeros between members
                if padding:
                    self._rest, self._offset = data[padding:] + self._rest, self._offset - len(data) + padding
                    continue
                if not data:
                    return b""
                self._begin_member(self._offset - len(data))
            elif not data:
                self.problem, self.is_cut = f"its {self.codec.name} data break off", True
                return b""
            if piece := self._decompress(data):
                return piece
        return b""

    def _begin_member(self, offset: int) -> None:
        assert self.codec is not None
        self.member, self.member_offset = self.codec.member(), offset
        self.member_position = self.position + len(self.buffer)
        self.member_starts.append(self.member_position)
        self._fed = self._made = 0

    def _decompress(self, data: bytes) -> bytes:
        assert self.codec is not None
        try:
            piece = self.member.decompress(data)
        except _ERRORS as error:
            self.problem = f"its {self.codec.name} data are damaged ({_short(error)})"
            return b""
        self._fed += len(data)
        self._made += len(piece)
        if self._made > max(_BOMB_BYTES, _BOMB_RATIO * self._fed):
            self.problem = f"its {self.codec.name} data expand more than {_BOMB_RATIO}-fold, to over {self._made >> 20} MB"
            return b""
        if self.member.eof:
            unused = self.member.unused_data or b""
            self._rest, self._offset, self.member = unused + self._rest, self._offset - len(unused), None
        return piece

    def _read(self) -> bytes:
        size = self.codec.slice if self.codec else _READ
        try:
            data = self._rest[:size] or self.file.read(_READ)
        except _ERRORS as error:  # a member of a zip file
            self.problem = f"it cannot be read on ({_short(error)})"
            return b""
        self._rest = self._rest[size:] if self._rest else data[size:]
        self._offset += len(data[:size])
        return data[:size]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__

"""Event files that TensorBoard reads, written without it: TFRecord frames around `tensorflow.Event` messages of scalars.

Formats: tensorflow.org/tutorials/load_data/tfrecord (frame, masked CRC-32C) and tensorboard/compat/proto/{event,summary}.proto.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _crc_table()


class TensorBoard:
    """One file of events; those of earlier files from `start` on are taken as void, as a resumed run makes them again."""

    def __init__(self, folder: Path, start: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.0"
        self.file = (folder / name).open("ab", buffering=0)
        self._event(_string(3, b"brain.Event:2"))
        self.begin(start)

    def begin(self, step: int) -> None:
        """Void what was written for later steps than `step`: a SessionLog of status START."""
        self._event(_integer(2, step + 1) + _string(7, _integer(1, 1)))

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Write the numbers of a record of `events.jsonl`, under its kind; lists of lists (router load) by their places."""
        if not isinstance(values.get("step"), int):
            return
        scalars = [part for name, value in values.items() if name != "step" for part in _flat(f"{kind}/{name}", value)]
        summary = b"".join(_string(1, _string(1, tag.encode()) + _float(2, value)) for tag, value in scalars)
        if summary:
            self._event(_integer(2, values["step"]) + _string(5, summary))

    def close(self) -> None:
        self.file.close()

    def _event(self, fields: bytes) -> None:
        data = b"\x09" + struct.pack("<d", time.time()) + fields  # field 1, wall_time
        length = struct.pack("<Q", len(data))
        self.file.write(length + _checksum(length) + data + _checksum(data))


def _flat(tag: str, value: Any) -> list[tuple[str, float]]:
    if isinstance(value, bool | int | float):
        return [(tag, float(value))]
    if isinstance(value, list):
        return [part for number, item in enumerate(value) for part in _flat(f"{tag}/{number}", item)]
    if isinstance(value, dict):
        return [part for name, item in value.items() for part in _flat(f"{tag}/{name}", item)]
    return []


def _checksum(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _string(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)

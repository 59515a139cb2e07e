"""Evaluation items from the files of any benchmark: question, answer, choices, passage."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from openmai.base.errors import OpenmaiError
from openmai.data.decontaminate.config import Fields

_KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt", ".parquet")
_PACKED = (".gz", ".bz2", ".zst")
_ABOUT = re.compile(r"(readme|license|licence|copying|changes|changelog|citation|notice|requirements)\b", re.IGNORECASE)
# The names that parts of an item have in common benchmarks, the likeliest first.
_NAMES = {
    "question": ("question", "ctx", "prompt", "query", "problem", "goal", "premise", "sentence", "instruction", "turns", "input", "stem"),
    "answer": (
        "answer",
        "answerkey",
        "correct_answer",
        "label",
        "gold",
        "target",
        "solution",
        "canonical_solution",
        "reference",
        "ground_truth",
        "output",
    ),
    "choices": ("choices", "options", "endings", "candidates"),
    "context": ("context", "passage", "article", "support", "story", "paragraph"),
}
_CHOICE = re.compile(r"(?:option|choice|sol|ending|answer|distractor)[_ ]?(?:[0-9]|[a-e])|[a-e]", re.IGNORECASE)
_PASSAGE_WORDS = 40  # a question of several lines with more words than this before its last line is a passage and a question


@dataclass(frozen=True)
class Item:
    """One question of one task; `id` says where it stands."""

    task: str
    id: str
    question: str
    answer: str = ""
    choices: tuple[str, ...] = ()
    context: str = ""


def read_items(against: Iterable[str], tasks: str = "folder", fields: Fields | None = None) -> Iterator[Item]:
    """Yield the items of every evaluation file in `against` (`PATH` or `NAME=PATH`), in order of their names.

    Raises OpenmaiError for a path that does not exist, holds no evaluation file, or cannot be read.
    """
    for name, root in map(split_name, against):
        files = [root] if root.is_file() else [path for path in sorted(root.rglob("*")) if path.is_file() and _is_known(path.name)]
        if not root.exists():
            raise OpenmaiError(f"{root}: no such file or folder; give evaluation files or folders, as PATH or NAME=PATH")
        if not files:
            raise OpenmaiError(f"{root}: no evaluation file below it; known: {' '.join(_KINDS)}, also {' '.join(_PACKED)} .zip")
        for file in files:
            inside = PurePosixPath(file.name if root.is_file() else file.relative_to(root).as_posix())
            for member, data in _unpack(file, inside):
                yield from _parse(data, _task(name, member, root.is_file(), tasks), str(member), file, fields or Fields())


def split_name(given: str) -> tuple[str, Path]:
    """Return the name and the path of `NAME=PATH`, or of a path whose own name names it."""
    name, equals, path = given.partition("=")
    if equals and "/" not in name:
        return name, Path(path)
    return _stem(Path(given).resolve().name), Path(given)


def _is_known(name: str) -> bool:
    return not _ABOUT.match(name) and _unpacked(name).endswith((*_KINDS, ".zip"))


def _unpacked(name: str) -> str:
    name = name.lower()
    return next((name.removesuffix(end) for end in _PACKED if name.endswith(end)), name)


def _stem(name: str) -> str:
    """Return a file's name without what says how it is written."""
    return re.sub(r"(\.(gz|bz2|zst|zip|csv|tsv|jsonl|ndjson|json|txt|parquet))+$", "", name, flags=re.IGNORECASE)


def _task(name: str, inside: PurePosixPath, is_file: bool, tasks: str) -> str:
    if is_file and len(inside.parts) == 1:
        return name
    if tasks == "file":
        return "/".join((name, *inside.parts[:-1], _stem(inside.name)))
    return f"{name}/{inside.parts[0]}" if len(inside.parts) > 1 else name


def _unpack(file: Path, inside: PurePosixPath) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield (name, content) of a file, decompressed, or of every known file in a .zip."""
    try:
        data = file.read_bytes()
        name = file.name.lower()
        if name.endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for member in sorted(archive.namelist()):
                    if _is_known(PurePosixPath(member).name):
                        yield from _unpack_bytes(archive.read(member), PurePosixPath(member))
        else:
            yield from _unpack_bytes(data, inside)
    except (zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError, OSError) as error:
        raise OpenmaiError(f"{file}: cannot be read ({' '.join(str(error).split())}); replace it") from None


def _unpack_bytes(data: bytes, name: PurePosixPath) -> Iterator[tuple[PurePosixPath, bytes]]:
    if name.suffix == ".gz":
        data = gzip.decompress(data)
    elif name.suffix == ".bz2":
        data = bz2.decompress(data)
    elif name.suffix == ".zst":
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    yield name, data


def _parse(data: bytes, task: str, place: str, file: Path, fields: Fields) -> Iterator[Item]:
    name = _unpacked(place)
    try:
        if name.endswith(".parquet"):
            rows: Iterable[Any] = pq.read_table(io.BytesIO(data)).to_pylist()
        elif name.endswith((".csv", ".tsv")):
            rows = _csv_rows(_decode(data), "\t" if name.endswith(".tsv") else ",")
        elif name.endswith(".json"):
            value = json.loads(_decode(data))
            lists = [item for item in value.values() if isinstance(item, list)] if isinstance(value, dict) else []
            rows = value if isinstance(value, list) else lists[0] if len(lists) == 1 else [value]
        elif name.endswith((".jsonl", ".ndjson")):
            rows = (json.loads(line) for line in _decode(data).splitlines() if line.strip())
        else:
            rows = _text_rows(_decode(data))
        for number, row in enumerate(rows):
            item = _item(row, task, f"{place}#{number}", fields)
            if item:
                yield item
    except (ValueError, csv.Error, pa.ArrowInvalid) as error:
        raise OpenmaiError(
            f"{file}: {place} is not what its name says ({' '.join(str(error).split())[:200]}); mend or leave it out"
        ) from None


def _decode(data: bytes) -> str:
    return data.decode("utf-8-sig", errors="replace")


def _csv_rows(text: str, delimiter: str) -> Iterator[dict[str, Any]]:
    """Yield rows as dictionaries: by the header if there is one, else question, choices and answer letter as in MMLU."""
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(row)]
    known = {name for names in _NAMES.values() for name in names}
    if rows and known & {cell.strip().lower() for cell in rows[0]}:
        yield from (dict(zip(rows[0], row, strict=False)) for row in rows[1:])
        return
    for row in rows:
        if len(row) >= 4 and re.fullmatch(r"[A-J]", row[-1].strip()):
            context, question = _passage(row[0])
            yield {"context": context, "question": question, "choices": row[1:-1], "answer": row[-1].strip()}
        else:
            yield {"question": row[0], "answer": " ".join(row[1:])}


def _passage(text: str) -> tuple[str, str]:
    """Split a question that begins with a passage, as in MMLU's history papers, into the two."""
    head, _, tail = text.rstrip().rpartition("\n")
    return (head, tail) if len(head.split()) >= _PASSAGE_WORDS else ("", text)


def _text_rows(text: str) -> Iterator[dict[str, Any]]:
    """Yield items of a text file: llama.cpp's HellaSwag layout, blocks between blank lines, or lines."""
    lines = text.splitlines()
    if len(lines) >= 6 and all(re.fullmatch(r"\d", lines[i].strip()) for i in range(1, len(lines) - 4, 6)):
        for i in range(0, len(lines) - 5, 6):
            yield {"ctx": lines[i], "label": lines[i + 1].strip(), "endings": lines[i + 2 : i + 6]}
        return
    blocks = re.split(r"\n[ \t]*\n", text) if "\n\n" in text.strip() else lines
    yield from ({"question": block} for block in blocks if block.strip())


def _item(row: Any, task: str, place: str, fields: Fields) -> Item | None:
    if not isinstance(row, dict):
        row = {"question": row}
    if isinstance(row.get("question"), dict):  # ARC: question = {stem, choices}
        row = row | row["question"] | {"question": row["question"].get("stem", "")}
    lower = {str(key).lower(): value for key, value in row.items()}
    parts = {part: _first(lower, getattr(fields, part) or names) for part, names in _NAMES.items()}
    question = _text(parts["question"]) or " ".join(_strings(row))
    choices = tuple(_choices(parts["choices"]) or (_text(lower[key]) for key in lower if _CHOICE.fullmatch(key)))
    answer = _answer(parts["answer"], choices)
    return Item(task, place, question, answer, choices, _text(parts["context"])) if question.strip() else None


def _first(row: dict[str, Any], names: Iterable[str]) -> Any:
    return next((row[name.lower()] for name in names if row.get(name.lower()) not in (None, "", [])), None)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float) else "\n".join(_strings(value))


def _choices(value: Any) -> list[str]:
    """Return the choices, written as a list of texts, of {"text": …}, or as {"text": [...]} or {"A": …}."""
    if isinstance(value, dict):
        value = value["text"] if isinstance(value.get("text"), list) else list(value.values())
    if not isinstance(value, list):
        return []
    return [_text(choice.get("text", "")) if isinstance(choice, dict) else _text(choice) for choice in value]


def _answer(value: Any, choices: tuple[str, ...]) -> str:
    """Return the text of the answer: of the choice that a letter or number names; after gsm8k's ####; or as it stands."""
    text = _text(value[0] if isinstance(value, list) and value else value).strip()
    if choices and re.fullmatch(r"[A-Ja-j]", text):
        number = ord(text.upper()) - ord("A")
    elif choices and re.fullmatch(r"\d", text):
        number = int(text)
    else:
        return text.rpartition("####")[2].strip()
    return choices[number] if number < len(choices) else text

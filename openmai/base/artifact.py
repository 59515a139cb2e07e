"""Artifacts: a folder with a manifest that is written last, so a folder without one is unfinished work.

The life of an artifact:

    with create(out, kind="shards", version=1, config=config, inputs=[documents, tokenizer]) as work:
        if work.finished:                    # same kind, version, config and inputs: nothing to do
            return work.finished
        ...                                  # write files under work.path; partial files of an earlier attempt are still there
        return work.finish(metrics={"tokens": 123})
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from openmai import __version__
from openmai.base.config import Config
from openmai.base.errors import OpenmaiError
from openmai.base.files import hash_file, hash_inputs, hash_value, read_json, write_json

MANIFEST, WORK, LOCK = "manifest.json", ".work.json", ".lock"
ASIDE = ("events.jsonl", "logs", "checkpoints")  # files and folders that say how it was made (with times of day), not what was made


@dataclass(frozen=True)
class Artifact:
    """A finished artifact on disk.

    `key` identifies what was asked for (kind, version, config, inputs); `digest` what came out (names and
    hashes of the files but those of ASIDE, which differ between runs that made the same).
    """

    path: Path
    kind: str
    key: str
    digest: str
    config: dict[str, Any]
    inputs: list[dict[str, str]]
    files: dict[str, dict[str, Any]]
    metrics: dict[str, Any]
    seconds: float
    created: str
    code: str

    @classmethod
    def load(cls, path: Path, kind: str | Sequence[str] | None = None, verify: bool = True) -> Artifact:
        """Open the artifact at `path`; `verify` compares every file with its recorded hash.

        Raises OpenmaiError if it is missing, unfinished, of another kind, or damaged.
        """
        kinds = [kind] if isinstance(kind, str) else kind
        wanted = f"a {' or '.join(kinds)} artifact" if kinds else "an artifact"
        if not path.is_dir():
            raise OpenmaiError(f"{path}: no such folder; expected {wanted}")
        if not (path / MANIFEST).exists():
            state = "unfinished: run its command again to complete it" if (path / WORK).exists() else f"not {wanted}"
            raise OpenmaiError(f"{path}: {state} (no {MANIFEST})")
        manifest = read_json(path / MANIFEST)
        try:
            artifact = cls(path=path, **{name: manifest[name] for name in cls.__dataclass_fields__ if name != "path"})
        except (KeyError, TypeError) as error:
            raise OpenmaiError(f"{path / MANIFEST}: not an openmai manifest ({error})") from None
        if kinds and artifact.kind not in kinds:
            raise OpenmaiError(f"{path}: holds a {artifact.kind} artifact, expected {wanted}")
        if verify:
            artifact.verify()
        return artifact

    def verify(self) -> None:
        """Raise OpenmaiError naming the first file that is missing or differs from the manifest."""
        for name, facts in self.files.items():
            file = self.path / name
            remedy = f"delete {self.path} and make it again"
            if not file.is_file():
                raise OpenmaiError(f"{file}: missing, though the manifest lists it; {remedy}")
            if file.stat().st_size != facts["bytes"]:
                raise OpenmaiError(f"{file}: {file.stat().st_size} bytes, expected {facts['bytes']}: damaged; {remedy}")
            if hash_file(file) != facts["hash"]:
                raise OpenmaiError(f"{file}: content differs from the hash in the manifest: damaged; {remedy}")


@dataclass(frozen=True)
class Remote:
    """An input that lies elsewhere: its address, and a digest over what its store says of its content."""

    path: str
    digest: str


@dataclass
class Work:
    """An artifact in the making. Files go under `path`; `finish` seals it."""

    path: Path
    kind: str
    key: str
    config: dict[str, Any]
    inputs: list[dict[str, str]]
    finished: Artifact | None = None
    resumed: bool = False
    earlier_seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Working time so far, over all attempts up to the last `tick`."""
        return self.earlier_seconds + time.monotonic() - self.started

    def tick(self) -> None:
        """Record the working time, so that an attempt that is killed still counts up to here."""
        write_json(self.path / WORK, {"kind": self.kind, "key": self.key, "seconds": self.seconds()})

    def finish(self, metrics: dict[str, Any], scratch: Sequence[str] = ()) -> Artifact:
        """Write the manifest over all files under `path` except `scratch` (removed) and return the sealed artifact."""
        for name in scratch:
            shutil.rmtree(self.path / name) if (self.path / name).is_dir() else (self.path / name).unlink(missing_ok=True)
        files = {
            str(file.relative_to(self.path)): {"bytes": file.stat().st_size, "hash": hash_file(file)}
            for file in sorted(self.path.rglob("*"))
            if file.is_file() and file.name not in (MANIFEST, WORK, LOCK)
        }
        self.finished = Artifact(
            path=self.path,
            kind=self.kind,
            key=self.key,
            digest=hash_value([(name, facts["hash"]) for name, facts in files.items() if not set(ASIDE) & set(Path(name).parts)]),
            config=self.config,
            inputs=self.inputs,
            files=files,
            metrics=metrics,
            seconds=round(self.seconds(), 3),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            code=f"openmai {__version__}, Python {platform.python_version()}",
        )
        write_json(self.path / MANIFEST, {name: value for name, value in vars(self.finished).items() if name != "path"})
        (self.path / WORK).unlink(missing_ok=True)
        return self.finished


@contextmanager
def create(out: Path, *, kind: str, version: int | str, config: Config, inputs: Sequence[Artifact | Path | Remote] = ()) -> Iterator[Work]:
    """Begin, resume or recognise the artifact of `kind` at `out`.

    Its key is the hash of kind, `version` (raised by the stage's author when its output changes), the configuration without `out`,
    and the content of the inputs. A finished folder with the same key is returned as `work.finished`; unfinished work with the same
    key is resumed; anything of another key is started anew. Raises OpenmaiError if `out` holds foreign files, cannot be written, or
    is being written by another process.
    """
    plain = config.model_dump(mode="json")
    plain.pop("out", None)
    sources = [{"path": str(item if isinstance(item, Path) else item.path), "digest": _digest(item)} for item in inputs]
    key = hash_value(
        [kind, version, _without_paths(_identity(config), {source["path"] for source in sources}), [s["digest"] for s in sources]]
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise OpenmaiError(f"{out}: cannot be written ({error.strerror}); choose another folder with --out") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OpenmaiError(f"{out}: another process is working on it; wait for it or choose another --out") from None
        work = Work(path=out, kind=kind, key=key, config=plain, inputs=sources)
        _adopt(work)
        if work.finished is None:
            work.tick()
        yield work
        if work.finished is None:
            raise AssertionError(f"{kind}: left without finish()")
    finally:
        os.close(lock)


def _identity(config: Config) -> dict[str, Any]:
    """Return the plain values of what decides about the output, in nested configurations too."""
    plain = config.model_dump(mode="json", exclude={"out", *config.not_in_key})
    nested = {name: _identity(value) for name in plain if isinstance(value := getattr(config, name), Config)}
    return plain | nested


def _digest(item: Artifact | Path | Remote) -> str:
    return hash_inputs([item]) if isinstance(item, Path) else item.digest


def _without_paths(value: Any, paths: set[str]) -> Any:
    """Blank out the input paths: what they hold is in the key, where they lie is not."""
    if isinstance(value, dict):
        return {name: _without_paths(item, paths) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item, paths) for item in value]
    return "<input>" if isinstance(value, str) and value in paths else value


def _adopt(work: Work) -> None:
    """Look at what lies at `work.path`: the finished artifact, its unfinished work, older work to clear, or foreign files."""
    if (work.path / MANIFEST).exists():
        old = Artifact.load(work.path, verify=False)
        if (old.kind, old.key) == (work.kind, work.key):
            old.verify()
            work.finished = old
            return
        _clear(work.path)
    elif (work.path / WORK).exists():
        state = read_json(work.path / WORK)
        if (state["kind"], state["key"]) == (work.kind, work.key):
            work.resumed, work.earlier_seconds = True, state["seconds"]
            for unfinished in work.path.rglob(".*"):  # half-written files that a killed process left under temporary names
                if unfinished.suffix in (".tmp", ".part") and unfinished.is_file():
                    unfinished.unlink()
        else:
            _clear(work.path)
    elif any(entry.name != LOCK for entry in work.path.iterdir()):
        raise OpenmaiError(f"{work.path}: not empty and not an openmai artifact; choose another --out or empty it yourself")


def _clear(folder: Path) -> None:
    """Remove an outdated artifact's files, its manifest first so that an interruption leaves it recognisably unfinished."""
    write_json(folder / WORK, {"kind": "", "key": "", "seconds": 0.0})
    (folder / MANIFEST).unlink(missing_ok=True)
    for entry in folder.iterdir():
        if entry.name not in (LOCK, WORK):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

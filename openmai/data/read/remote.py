"""Sources at an address: any file system that fsspec knows (s3, gs, az, hf, …) and plain HTTP, with patterns where folders can be listed.

A remote file is brought to a folder named by the hash of its address and of what the store says of its content (ETag, size, time), so
another content is another file, and a download that broke off goes on only with what it began with.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations

from openmai.base.errors import OpenmaiError
from openmai.base.files import hash_value, sync_folder
from openmai.base.progress import Progress
from openmai.data.read.download import Facts, describe, download_file

_CHUNK = 64 << 20
_PATTERN = re.compile(r"[*?\[]")
# Names under which stores give the identity of a file's content.
_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "checksum", "xet_hash", "blob_id", "sha", "generation")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")
# Exceptions of packages that are not imported here, by the start of their module's name.
_FOREIGN = ("botocore", "aiobotocore", "google", "gcsfs", "s3fs", "aiohttp", "azure", "huggingface_hub", "httpx", "httpcore")
_REMEDIES = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket FSSPEC_S3_ANON=true",
    "gs": "run `gcloud auth application-default login` or set GOOGLE_APPLICATION_CREDENTIALS; for a public bucket FSSPEC_GS_TOKEN=anon",
    "hf": "accept its terms on its page and set HF_TOKEN to a token of your account",
    "": "give the credentials as the store's package wants them",
}
_CREDENTIALS = re.compile(r"credential|forbidden|denied|unauthorized|401|403|anonymous|signature|access key|token", re.IGNORECASE)


@dataclass(frozen=True)
class File:
    """One remote file: its address, what its store says of it, and the fsspec file system and path there; HTTP has neither."""

    url: str
    facts: Facts
    store: Any = field(default=None, compare=False)
    path: str = ""

    @property
    def identity(self) -> str:
        return hash_value([self.url, self.facts.size, self.facts.mark])

    @property
    def name(self) -> str:
        return unquote(PurePosixPath(urlsplit(self.url).path).name) or "index"


def find(url: str) -> list[File]:
    """List the files at an address, in order of their names: one file, a pattern, or a folder with all below it.

    Raises OpenmaiError for a missing package, refused access, an unreachable store, or if there is nothing.
    """
    if urlsplit(url).scheme.lower() in ("http", "https"):
        if "*" in url:
            raise OpenmaiError(f"{url}: a web server cannot list its files; name each file, or use its store's own address (s3://, gs://)")
        return [File(url, describe(url))]
    with explained(url):
        store, path = url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
        if _PATTERN.search(path):
            found = {name: facts for name, facts in store.glob(path, detail=True).items() if facts["type"] == "file"}
        elif store.isdir(path):
            found = store.find(path, detail=True)
        else:
            found = {path: store.info(path)}
        files = files_in(store, found)
    if not files:
        raise OpenmaiError(f"{url}: nothing there; correct the source's path")
    return files


def files_in(store: Any, found: dict[str, dict[str, Any]]) -> list[File]:
    """Return what a store found, path -> facts, in order of the paths."""
    return [File(store.unstrip_protocol(name), _facts(facts), store, name) for name, facts in sorted(found.items())]


def digest(files: list[File]) -> str:
    """Return what remote files add to an artifact's key: another content or another list of files is another digest."""
    return hash_value([file.identity for file in files])


def fetch(url: str, downloads: Path, wanted: Callable[[Path], object] = lambda path: True) -> list[Path]:
    """Bring the files at `url` to `downloads` and return them in order of their names; those that are there already are kept.

    Of a folder or a pattern, only files whose names are `wanted` are brought. Raises OpenmaiError as `find` does.
    """
    files = find(url)
    return bring([file for file in files if len(files) == 1 or wanted(Path(file.name))], downloads)


def bring(files: list[File], downloads: Path) -> list[Path]:
    """Return `files` as files of this machine, downloading what is not there yet."""
    targets = [_target(file, downloads) for file in files]
    missing = [(file, target) for file, target in zip(files, targets, strict=True) if not target.exists()]
    total = sum(file.facts.size or 0 for file, _ in missing)
    with Progress("download", total / 1e6 or None, "MB") as progress:
        for file, target in missing:
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.store is None:
                download_file(file.url, target, file.facts, lambda count: progress.advance(count / 1e6))
            else:
                _copy(file, target, lambda count: progress.advance(count / 1e6))
    return targets


def _target(file: File, downloads: Path) -> Path:
    return Path(file.path) if isinstance(file.store, LocalFileSystem) else downloads / f"remote-{file.identity[:16]}" / file.name


def _copy(file: File, target: Path, on_bytes: Callable[[int], None]) -> None:
    """Copy a file of an fsspec store in pieces, going on with what an interrupted attempt brought; compare size and mark at the end."""
    part, size = target.with_name(f".{target.name}.part"), file.facts.size
    have = part.stat().st_size if part.exists() else 0
    with explained(file.url), open(part, "ab") as out:
        before = _facts(file.store.info(file.path))
        while size is None or have < size:
            end = have + _CHUNK if size is None else min(size, have + _CHUNK)
            piece = file.store.cat_file(file.path, start=have, end=end)
            out.write(piece)
            have += len(piece)
            on_bytes(len(piece))
            if len(piece) < end - (have - len(piece)):
                break
        out.flush()
        os.fsync(out.fileno())
        after = _facts(file.store.info(file.path))
    if after != before or not _fits(file.facts, after) or (size is not None and have != size):
        part.unlink()
        raise OpenmaiError(f"{file.url}: changed while it was downloaded ({have} bytes came, {size} were announced); run the command again")
    os.replace(part, target)
    sync_folder(target.parent)


def _fits(listed: Facts, found: Facts) -> bool:
    """True if a store's listing and its word on the file agree, as far as both tell the same."""
    name = listed.mark.partition("=")[0]  # times are written differently here and there
    comparable = name in _MARKS and name == found.mark.partition("=")[0]
    return listed.size in (None, found.size) and (not comparable or listed.mark == found.mark)


def _facts(info: dict[str, Any]) -> Facts:
    marks = [f"{name}={info[name]}" for name in _MARKS if info.get(name)]
    times = [f"{name}={info[name]}" for name in _TIMES if info.get(name)]
    return Facts(info.get("size"), ";".join(marks or times))


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what a store raises into one line with a remedy."""
    try:
        yield
    except OpenmaiError:
        raise
    except Exception as error:  # of packages that need not be installed: known by their modules, and any other goes on
        message = _explain(url, error)
        if message is None:
            raise
        raise OpenmaiError(f"{url}: {message}") from None


def _explain(url: str, error: Exception) -> str | None:
    scheme, text = urlsplit(url).scheme.lower(), " ".join(str(error).split())[:300] or type(error).__name__
    module = type(error).__module__
    if isinstance(error, ImportError):
        return _missing(scheme, text)
    if isinstance(error, PermissionError) or (module.startswith(_FOREIGN) and _CREDENTIALS.search(f"{type(error).__name__} {text}")):
        return f"access refused ({text}); {_REMEDIES.get(scheme, _REMEDIES[''])}"
    if isinstance(error, FileNotFoundError):
        hint = f", or it is private: {_REMEDIES['hf']}" if scheme == "hf" else ""
        return f"no such file, folder or bucket ({text}); correct the source's path{hint}"
    if isinstance(error, ValueError) and "Protocol not known" in text:
        return f"{scheme}:// is not known; known: file, http, https, s3, gs, az, hf and others of fsspec"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return None
    if isinstance(error, OSError) or module.startswith(_FOREIGN):
        return f"{text}; check the address and the connection, or name local files"
    return None


def _missing(scheme: str, text: str) -> str:
    """Say which package reads a scheme: that of its implementation's module, or what fsspec says of it."""
    entry = known_implementations.get(scheme, {})
    module = str(entry.get("class", "")).partition(".")[0]
    if module in ("", "fsspec"):
        return f"reading {scheme}:// needs another package ({entry.get('err', text)}); install it with pip"
    return f"reading {scheme}:// needs the package {module}; pip install {module}"

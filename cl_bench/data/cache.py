"""A prepared source on disk: one safetensors file, checked by its hash each time it is read.

The header holds `version`, `fingerprint` (of the origin), `facts` (json) and `seal`, the SHA-256
of these three and of the file's own key: an altered header is found like an altered pixel.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cl_bench.data.arrays import TENSORS, Source, digest
from cl_bench.types import UserError

VERSION = "1"
SMALL = 4 * 2**20  # bytes


@dataclass(frozen=True)
class Origin:
    """Files that a source can be read from."""

    place: Path
    layout: str
    watched: tuple[Path, ...]  # files and folders whose change makes the cache stale
    read: Callable[[], Source]


@dataclass(frozen=True)
class Wanted:
    """A source that is sought; `fetch` tries to bring it and says in words what came of it."""

    key: str  # name of the cache file
    sought: str  # "cifar100: CIFAR-100 not found in /x (looked for ...)"
    find: Callable[[], Origin | None]
    fetch: Callable[[], str]


class _Stored(NamedTuple):
    source: Source
    fingerprint: str


class _UnusableError(Exception):
    """The cache file cannot be used; the message goes on from its name."""


def home_of(data_dir: str) -> Path:
    """`data_dir` as an absolute folder, `~` expanded."""
    return Path(os.path.abspath(os.path.expanduser(data_dir)))


def cache_file(home: Path, key: str) -> Path:
    return home / "cache" / f"{key}.safetensors"


def cached(home: Path, wanted: Wanted) -> Source:
    """The source from `home/cache`; from its origin if that has changed or the cache is unfit."""
    file = cache_file(home, wanted.key)
    try:
        stored, _ = _stored(file)
        if stored and _up_to_date(stored, wanted.find()):
            return stored.source
        with _alone(file):
            return _current(file, wanted)
    except OSError as error:
        raise UserError(f"{wanted.key}: {error}") from error


def require_writable(home: Path) -> None:
    """Create `home/cache`, and fail if no file can be made there."""
    try:
        (home / "cache").mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=home / "cache").close()
    except OSError as error:
        raise UserError(f"data_dir={home} is not writable: {error.strerror}") from error


def _current(file: Path, wanted: Wanted) -> Source:
    stored, complaint = _stored(file)
    origin = wanted.find()
    if stored and _up_to_date(stored, origin):
        return stored.source
    if origin is None:
        origin = _fetched(wanted, f"; the cache {file} {complaint}" if complaint else "")
    if complaint or stored:
        complaint = complaint or "was made from another state of its origin"
        print(f"{file} {complaint}: rebuilding it from {origin.place}", file=sys.stderr)
    return _built(file, origin)


def _up_to_date(stored: _Stored, origin: Origin | None) -> bool:
    """Also where the origin has gone: the cache is whole."""
    return origin is None or stored.fingerprint == _fingerprint(origin)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One process at a time fetches and builds; the others find the cache when it is their turn."""
    require_writable(file.parents[1])
    with (file.parents[1] / f".{file.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stored(file: Path) -> tuple[_Stored | None, str]:
    """The cached source, or None and what is wrong with the file (nothing if there is none)."""
    if not os.path.lexists(file):
        return None, ""
    try:
        return _load(file), ""
    except _UnusableError as error:
        return None, str(error)
    except (OSError, SafetensorError) as error:
        return None, f"is unreadable ({' '.join(str(error).split())})"


def _fetched(wanted: Wanted, also: str) -> Origin:
    outcome = wanted.fetch()
    origin = wanted.find()
    if origin is None:
        raise UserError(f"{wanted.sought}; {outcome}{also}")
    return origin


def _built(file: Path, origin: Origin) -> Source:
    """Read the origin and cache it; the fingerprint is taken first, so a change meanwhile shows."""
    require_writable(file.parents[1])
    fingerprint, source = _fingerprint(origin), origin.read()
    where = {"origin": str(origin.place), "layout": origin.layout}
    source = replace(source, provenance=where | source.provenance)
    _save(file, _Stored(source, fingerprint))
    return source


def _fingerprint(origin: Origin) -> str:
    """Layout, and name, size (or number of entries) and mtime of what is watched.

    Of a small file the content in place of its mtime: two environments have the same.
    """
    sha = hashlib.sha256(origin.layout.encode())
    for path in origin.watched:
        stat, folder = path.stat(), path.is_dir()
        size = len(os.listdir(path)) if folder else stat.st_size
        small = not folder and size <= SMALL
        mark = hashlib.sha256(path.read_bytes()).hexdigest() if small else stat.st_mtime_ns
        sha.update(f"\n{path.parent.name}/{path.name} {size} {mark}".encode())
    return sha.hexdigest()


def _seal(file: Path, fingerprint: str, facts: str) -> str:
    return hashlib.sha256("\n".join((VERSION, file.stem, fingerprint, facts)).encode()).hexdigest()


def _load(file: Path) -> _Stored:
    """Tensors are copied out of the file, so nothing that happens to it later reaches them."""
    with safe_open(file, framework="pt") as stored:
        meta = stored.metadata() or {}
        if meta.get("version") != VERSION:
            raise _UnusableError(f"has format {meta.get('version')} instead of {VERSION}")
        fingerprint, facts = meta.get("fingerprint", ""), meta.get("facts", "")
        if meta.get("seal") != _seal(file, fingerprint, facts):
            raise _UnusableError("is altered (its header does not match its seal)")
        tensors = {name: stored.get_tensor(name).clone() for name in TENSORS}
    known = json.loads(facts)
    if digest(*tensors.values()) != known["sha256"]:
        raise _UnusableError("is altered (its tensors do not match their sha256)")
    known["classes"] = tuple(known["classes"])
    known["groups"] = known["groups"] and tuple(known["groups"])
    return _Stored(Source(**tensors, **known), fingerprint)


def _save(file: Path, stored: _Stored) -> None:
    """Atomic: a file of our own beside it, synced, takes its place."""
    fingerprint, fields = stored.fingerprint, vars(stored.source)
    tensors = {name: fields[name] for name in TENSORS}
    facts = json.dumps({name: fields[name] for name in fields if name not in tensors})
    seal = _seal(file, fingerprint, facts)
    meta = {"version": VERSION, "fingerprint": fingerprint, "facts": facts, "seal": seal}
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        save_file(tensors, partial, metadata=meta)
        partial.chmod(0o644)
        _sync(partial)
        os.replace(partial, file)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"data_dir={file.parents[1]}: cannot write {file}: {reason}") from error
    finally:
        partial.unlink(missing_ok=True)
    _sync(file.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

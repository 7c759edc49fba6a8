"""A prepared source on disk: one safetensors file, checked by its hash each time it is read.

The header holds `version`, `fingerprint` (of the origin), `facts` (json) and `seal`, the SHA-256
of these three and of the file's own key: an altered header is found like an altered pixel.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cl_bench import files
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
    return files.absolute(data_dir)


def cache_folders(home: Path, cache_dir: str | None) -> list[Path]:
    """Where prepared sources may lie: in `cache_dir`; by default below `home`, or the user's."""
    if cache_dir is not None:
        return [files.absolute(cache_dir)]
    own = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return [home / "cache", files.absolute(own) / "cl_bench" / "cache"]


def cache_file(folder: Path, key: str) -> Path:
    return folder / f"{key}.safetensors"


def is_cached(folders: list[Path], key: str) -> bool:
    """Whether one of the folders holds a file of this key."""
    return any(cache_file(folder, key).is_file() for folder in folders)


def cached(home: Path, wanted: Wanted, cache_dir: str | None = None) -> Source:
    """The source from its cache; from its origin if that has changed or the cache is unfit.

    The first of the `cache_folders` serves that holds the source or can be written.
    """
    problems: list[str] = []
    try:
        for folder in cache_folders(home, cache_dir):
            file = cache_file(folder, wanted.key)
            stored, _ = _stored(file)
            if stored and _up_to_date(stored, wanted.find()):
                return stored.source
            problem = _unwritable(folder)
            if problem is None:
                _announce(folder, problems)
                with files.locked(folder / f".{wanted.key}.lock", wait=True):
                    return _current(file, wanted)
            problems.append(problem)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{wanted.key}: {where}{error.strerror or error}") from error
    raise UserError(f"{wanted.key}: {', nor '.join(problems)}; set cache_dir=<folder>")


def _unwritable(folder: Path) -> str | None:
    """Why no file can be made in a folder; None: one can."""
    try:
        files.require_writable(folder)
    except OSError as error:
        return f"{folder} is not writable ({error.strerror})"
    return None


_announced: set[Path] = set()  # caches that it was said of that they stand in for another


def _announce(folder: Path, problems: list[str]) -> None:
    """Say once where prepared data is kept, if not where it was meant to be."""
    if problems and folder not in _announced:
        _announced.add(folder)
        print(f"{problems[0]}: prepared data is kept in {folder}", file=sys.stderr)


def require_writable(home: Path) -> None:
    """UserError where nothing can be downloaded to `home`."""
    try:
        files.require_writable(home)
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


def _stored(file: Path) -> tuple[_Stored | None, str]:
    """The cached source, or None and what is wrong with the file (nothing if there is none)."""
    if not os.path.lexists(file):
        return None, ""
    try:
        files.require_regular(file)
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
    fingerprint, source = _fingerprint(origin), origin.read()
    where = {"origin": str(origin.place), "layout": origin.layout}
    source = replace(source, provenance=where | source.provenance)
    _save(file, _Stored(source, fingerprint))
    return source


def _fingerprint(origin: Origin) -> str:
    """The layout, and name, size and modification time of every file that is watched.

    Of a folder: of all files in it and below, hidden ones left out. Of a small file that is watched
    by itself the content in place of its time: two environments have the same.
    """
    sha = hashlib.sha256(origin.layout.encode())
    for path in origin.watched:
        name = f"{path.parent.name}/{path.name}"
        if path.is_dir():
            for line in _entries(str(path), name):
                sha.update(line)
        else:
            files.require_regular(path)
            stat = path.stat()
            small = stat.st_size <= SMALL
            mark = hashlib.sha256(path.read_bytes()).hexdigest() if small else stat.st_mtime_ns
            sha.update(os.fsencode(f"\n{name} {stat.st_size} {mark}"))
    return sha.hexdigest()


def _entries(folder: str, name: str) -> Iterator[bytes]:
    """A line for each file below a folder, in the order of their names."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        own = f"{name}/{entry.name}"
        if entry.is_dir():
            yield from _entries(entry.path, own)
        else:
            stat = entry.stat()
            yield os.fsencode(f"\n{own} {stat.st_size} {stat.st_mtime_ns}")


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
    """Replace the cache file."""
    fingerprint, fields = stored.fingerprint, vars(stored.source)
    tensors = {name: fields[name] for name in TENSORS}
    facts = json.dumps({name: fields[name] for name in fields if name not in tensors})
    seal = _seal(file, fingerprint, facts)
    meta = {"version": VERSION, "fingerprint": fingerprint, "facts": facts, "seal": seal}
    try:
        with files.fresh_path(file) as fresh:
            save_file(tensors, fresh, metadata=meta)
            fresh.chmod(0o644)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot write the cache {file}: {reason}") from error

"""Prepared data sets are kept on disk: read from there, or made from their origin and written.

They are kept in `cache_dir`; where that is null, in `<data_dir>/cache`, or, where that cannot be
written and does not hold what is needed, in the user's own cache folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.data import prepared
from cl_bench.data.arrays import Source
from cl_bench.data.origin import Origin, fingerprint, found_instead, in_the_way
from cl_bench.data.prepared import Prepared, UnusableError

_announced: set[Path] = set()  # folders that were announced in place of another


@dataclass(frozen=True)
class Wanted:
    """A source that is looked for; `fetch` tries to bring it and says in words what came of it."""

    key: str  # name of its file in `<data_dir>/cache`
    sought: str  # "cifar100: CIFAR-100 not found in /x (looked for ...)"
    origins: tuple[Origin, ...]  # the first that is complete is read
    fetch: Callable[[], str]
    shared_key: str | None = None  # name of its file in a folder for several data_dirs; None: `key`

    def find(self) -> Origin | None:
        """The origin that the source is read from."""
        return next((origin for origin in self.origins if origin.complete), None)


def cached(home: Path, wanted: Wanted, cache_dir: str | None = None) -> Source:
    """The source from its file; from its origin if that has changed or the file is unfit.

    The first of the `cache_files` serves that holds the source or can be written.
    """
    problems: list[str] = []
    try:
        for file in cache_files(home, wanted, cache_dir):
            source, _ = _usable(file, wanted)
            if source is not None:
                return source
            problem = _unwritable(file.parent)
            if problem is None:
                _announce(file.parent, problems)
                return _prepared(file, wanted)
            problems.append(problem)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{wanted.key}: {where}{error.strerror or error}") from error
    raise UserError(f"{wanted.key}: {', nor '.join(problems)}; set cache_dir=<folder>")


def cache_files(home: Path, wanted: Wanted, cache_dir: str | None) -> list[Path]:
    """Where the prepared source may be kept, the best place first."""
    own = home / "cache"
    user = os.environ.get("XDG_CACHE_HOME", "")
    user = user if os.path.isabs(user) else "~/.cache"  # as the XDG specification has it
    folders = [own, files.absolute(user) / "cl_bench" / "cache"]
    folders = folders if cache_dir is None else [files.absolute(cache_dir)]
    keys = [wanted.key if folder == own else wanted.shared_key or wanted.key for folder in folders]
    return [folder / f"{key}.safetensors" for folder, key in zip(folders, keys, strict=True)]


def _unwritable(folder: Path) -> str | None:
    """Why no file can be made in a folder; None: one can."""
    try:
        files.require_writable(folder)
    except OSError as error:
        return f"{folder} is not writable ({error.strerror})"
    return None


def _announce(folder: Path, problems: list[str]) -> None:
    """Say once where prepared data is kept, if not where it was meant to be."""
    if problems and folder not in _announced:
        _announced.add(folder)
        print(f"{problems[0]}: prepared data is kept in {folder}", file=sys.stderr)


def _usable(file: Path, wanted: Wanted) -> tuple[Source | None, str]:
    """The source from the file; or None and why not (nothing where there is no file).

    A file whose origin has gone is used: it is whole.
    """
    try:
        held = prepared.load(file)
    except UnusableError as error:
        return None, str(error)
    if held is None:
        return None, ""
    origin = wanted.find()
    if origin is None or held.fingerprint == fingerprint(origin):
        return held.source, ""
    return None, "was made from another state of its origin"


def _prepared(file: Path, wanted: Wanted) -> Source:
    """Made from its origin; by one process at a time, after which the others find the file."""
    with files.locked(file.with_name(f".{file.stem}.lock"), wait=True):
        source, complaint = _usable(file, wanted)
        if source is not None:
            return source
        origin = wanted.find() or _fetched(wanted, complaint and f"the cache {file} {complaint}")
        if complaint:
            print(f"{file} {complaint}: rebuilding it from {origin.place}", file=sys.stderr)
        return _built(file, origin)


def _fetched(wanted: Wanted, complaint: str) -> Origin:
    """The origin once it is downloaded; UserError that says what is there and what was tried."""
    instead = found_instead(wanted.origins)
    outcome = "" if in_the_way(wanted.origins) else wanted.fetch()
    origin = wanted.find()
    if origin is None:
        raise UserError("; ".join(filter(None, [wanted.sought, instead, outcome, complaint])))
    return origin


def _built(file: Path, origin: Origin) -> Source:
    """Read the origin and keep it; the fingerprint is taken first, so a change meanwhile shows."""
    state, source = fingerprint(origin), origin.read()
    where = {"origin": str(origin.place), "layout": origin.layout}
    source = replace(source, provenance=where | source.provenance)
    prepared.save(file, Prepared(source, state))
    return source

"""Prepared data sets on disk: read where they are there, else made from the published files.

They are kept in `cache_dir`. Where that is null, they are kept in `<data_dir>/cache`; and where
that cannot be written and does not have the data set, in the user's cache folder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.data import prepared
from cl_bench.data.arrays import Source
from cl_bench.data.origin import Origin, describe_found, describe_obstacle, fingerprint
from cl_bench.data.prepared import Prepared, UnusableError

_announced: set[Path] = set()  # folders that a message has named already


@dataclass(frozen=True)
class SourceSpec:
    """Where to look for a data set, how to fetch it, and under which name to keep it."""

    key: str  # name of its file in `<data_dir>/cache`
    not_found: str  # the message: "cifar100: CIFAR-100 not found in /x (looked for ...)"
    origins: tuple[Origin, ...]  # the first one that is complete is read
    fetch: Callable[[], str]  # tries a download; returns its outcome, or advice, as a sentence
    shared_key: str | None = None  # name of its file in a folder for several data_dirs; None: `key`

    def find(self) -> Origin | None:
        """The first origin that is complete; None where none is."""
        return next((origin for origin in self.origins if origin.complete), None)


def load_cached(home: Path, spec: SourceSpec, cache_dir: str | None = None) -> Source:
    """The source from its prepared file, which is made again if its origin has changed.

    Of `cache_files`, the first one is used that has the source or can be written. Raises UserError
    where there is none, or where the data set is not found.
    """
    problems: list[str] = []
    try:
        for file in cache_files(home, spec, cache_dir):
            source, _ = _load_current(file, spec)
            if source is not None:
                return source
            problem = _write_problem(file.parent)
            if problem is None:
                _announce(file.parent, problems)
                return _prepare(file, spec)
            problems.append(problem)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{spec.key}: {where}{error.strerror or error}") from error
    raise UserError(f"{spec.key}: {', nor '.join(problems)}; set cache_dir=<folder>")


def cache_files(home: Path, spec: SourceSpec, cache_dir: str | None) -> list[Path]:
    """The places where the prepared source may be kept, in order of preference."""
    own = home / "cache"
    folders = [own, files.user_cache_folder() / "cache"]
    folders = folders if cache_dir is None else [files.absolute(cache_dir)]
    keys = [spec.key if folder == own else spec.shared_key or spec.key for folder in folders]
    return [folder / f"{key}.safetensors" for folder, key in zip(folders, keys, strict=True)]


def _write_problem(folder: Path) -> str | None:
    """Why no file can be created in a folder, as a sentence; None where one can."""
    try:
        files.require_writable(folder)
    except OSError as error:
        return f"{folder} is not writable ({error.strerror})"
    return None


def _announce(folder: Path, problems: list[str]) -> None:
    """Print once that prepared data is kept in `folder`, if a preferred one had a problem."""
    if problems and folder not in _announced:
        _announced.add(folder)
        print(f"{problems[0]}: prepared data is kept in {folder}", file=sys.stderr)


def _load_current(file: Path, spec: SourceSpec) -> tuple[Source | None, str]:
    """The source in a prepared file, and ""; or None and why it cannot be used.

    The reason is "" where there is no file. A file whose origin was removed is used.
    """
    try:
        held = prepared.load(file)
    except UnusableError as error:
        return None, str(error)
    if held is None:
        return None, ""
    origin = spec.find()
    if origin is None:
        return held.source, ""
    if held.fingerprint == fingerprint(origin):
        # the same content, perhaps at another place: the present one is recorded
        return _from_origin(held.source, origin), ""
    return None, "was made from another state of its origin"


def _prepare(file: Path, spec: SourceSpec) -> Source:
    """Make the prepared file; one process does so, and others wait and then read the file."""
    with files.locked(file.with_name(f".{file.stem}.lock"), wait=True):
        source, complaint = _load_current(file, spec)
        if source is not None:
            return source
        origin = spec.find() or _fetch(spec, complaint and f"the cache {file} {complaint}")
        if complaint:
            print(f"{file} {complaint}: rebuilding it from {origin.place}", file=sys.stderr)
        return _build(file, origin)


def _fetch(spec: SourceSpec, complaint: str) -> Origin:
    """Fetch the data set and return its origin.

    Raises UserError where that fails, which says what was found and what was tried.
    """
    instead = describe_found(spec.origins)
    outcome = "" if describe_obstacle(spec.origins) else spec.fetch()
    origin = spec.find()
    if origin is None:
        raise UserError("; ".join(filter(None, [spec.not_found, instead, outcome, complaint])))
    return origin


def _build(file: Path, origin: Origin) -> Source:
    """Read the origin and write the prepared file.

    The fingerprint is taken before reading, so that a change while reading is noticed next time.
    """
    state, source = fingerprint(origin), origin.read()
    source = _from_origin(source, origin)
    prepared.save(file, Prepared(source, state))
    return source


def _from_origin(source: Source, origin: Origin) -> Source:
    """The source with the place and the layout of its origin as the first of its provenance."""
    where = {"origin": str(origin.place), "layout": origin.layout}
    others = {key: value for key, value in source.provenance.items() if key not in where}
    return replace(source, provenance=where | others)

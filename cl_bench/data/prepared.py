"""The file of a prepared source: safetensors, checked by its hash each time it is read.

The header holds `version`, `fingerprint` (of the origin), `facts` (json) and `seal`, the SHA-256
of these three and of the file's own name: an altered header is found like an altered pixel.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cl_bench.base import files
from cl_bench.base.exceptions import UserError, one_line
from cl_bench.data.arrays import TENSORS, Source, digest

VERSION = "1"


class Prepared(NamedTuple):
    """A source as it was prepared, and the fingerprint of what it was prepared from."""

    source: Source
    fingerprint: str


class UnusableError(Exception):
    """The file cannot be used; the message goes on from its name."""


def load(file: Path) -> Prepared | None:
    """What the file holds, None where there is none; UnusableError where it cannot be used."""
    if not os.path.lexists(file):
        return None
    try:
        files.require_regular(file)
        return _read(file)
    except (OSError, SafetensorError) as error:
        raise UnusableError(f"is unreadable ({_said(error)})") from error


def _read(file: Path) -> Prepared:
    """Tensors are copied out of the file, so nothing that happens to it later reaches them."""
    with safe_open(file, framework="pt") as stored:
        meta = stored.metadata() or {}
        if meta.get("version") != VERSION:
            raise UnusableError(f"has format {meta.get('version')} instead of {VERSION}")
        fingerprint, facts = meta.get("fingerprint", ""), meta.get("facts", "")
        if meta.get("seal") != _seal(file, fingerprint, facts):
            raise UnusableError("is altered (its header does not match its seal)")
        tensors = {name: stored.get_tensor(name).clone() for name in TENSORS}
    known = json.loads(facts)
    if digest(*tensors.values()) != known["sha256"]:
        raise UnusableError("is altered (its tensors do not match their sha256)")
    known["classes"] = tuple(known["classes"])
    known["groups"] = known["groups"] and tuple(known["groups"])
    return Prepared(Source(**tensors, **known), fingerprint)


def save(file: Path, prepared: Prepared) -> None:
    """Replace the file; UserError where it cannot be written."""
    fingerprint, fields = prepared.fingerprint, vars(prepared.source)
    tensors = {name: fields[name] for name in TENSORS}
    facts = json.dumps({name: fields[name] for name in fields if name not in tensors})
    seal = _seal(file, fingerprint, facts)
    meta = {"version": VERSION, "fingerprint": fingerprint, "facts": facts, "seal": seal}
    try:
        with files.fresh_path(file) as fresh:
            save_file(tensors, fresh, metadata=meta)
            fresh.chmod(0o644)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file}: cannot write the prepared data set: {_said(error)}; make room there, or set "
            "cache_dir=<folder>"
        ) from error


def _said(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    return reason or one_line(error)


def _seal(file: Path, fingerprint: str, facts: str) -> str:
    text = "\n".join((VERSION, file.stem, fingerprint, facts))
    return hashlib.sha256(os.fsencode(text)).hexdigest()

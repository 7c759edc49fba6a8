"""The file of a prepared data set: safetensors, whose hashes are verified at each read.

The header has `version`, `fingerprint` (of the origin), `facts` (the other fields of the source, as
JSON) and `seal`, the SHA-256 of these three and of the file's name. So an altered header is noticed
as well as an altered pixel.
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
    """A source, and the fingerprint of the origin that it was made from."""

    source: Source
    fingerprint: str


class UnusableError(Exception):
    """A prepared file cannot be used; the message continues a sentence on the file."""


def load(file: Path) -> Prepared | None:
    """Read a prepared file; None where there is none, UnusableError where it cannot be used."""
    if not os.path.lexists(file):
        return None
    try:
        files.require_regular(file)
        return _read(file)
    except (OSError, SafetensorError) as error:
        raise UnusableError(f"is unreadable ({_reason(error)})") from error


def _read(file: Path) -> Prepared:
    """Read and verify a file; tensors are copied, so that later changes of it cannot reach them."""
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
    """Write the file in place of an earlier one; UserError where that fails."""
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
            f"{file}: cannot write the prepared data set: {_reason(error)}; make room there, or "
            "set cache_dir=<folder>"
        ) from error


def _reason(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    return reason or one_line(error)


def _seal(file: Path, fingerprint: str, facts: str) -> str:
    text = "\n".join((VERSION, file.stem, fingerprint, facts))
    return hashlib.sha256(os.fsencode(text)).hexdigest()

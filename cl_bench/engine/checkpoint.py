"""The file of a run's state: written whole or not at all, checked before anything is loaded.

The file is one line, MARK and the SHA-256 of what follows it, then what `torch.save` writes of
plain values and tensors; it is read with weights_only. Its parts:

identity    which run it is of: hash of the config, seed, device, and of the data
codes       the codes that made the run so far, the oldest first (`source_code.Code`)
devices     the names of the devices that it ran on
progress    tasks and steps that are over, the accuracies and seconds so far
generators  the states of the run's generators
journal     how many bytes of metrics.jsonl belong to it, and their SHA-256
learner     weights, batch norm's statistics, the optimizer (`Learner.state_dict`)
method      the method's state (`core.state`)
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.base.files import DamagedError
from cl_bench.methods.base import Method
from cl_bench.results.folder import previous

FORMAT = 4  # of the file; another one is refused by its number
NAME = b"cl_bench checkpoint "
MARK = NAME + str(FORMAT).encode() + b" sha256 "
DIGITS = 64  # of a SHA-256


def state_of(method: Method) -> dict[str, Any]:
    """The learner's and the method's state, as plain values."""
    return {"learner": method.learner.state_dict(), "method": method.state_dict()}


def restore(method: Method, state: dict[str, Any]) -> None:
    """Put `state_of` back, in place."""
    method.learner.load_state_dict(state["learner"])
    method.load_state_dict(state["method"])


def nbytes(method: Method) -> int:
    """Bytes of tensors that the method keeps between steps, beside the network itself."""
    held = {t.data_ptr(): t for t in _tensors(method.state_dict())}  # shared ones once
    return sum(t.numel() * t.element_size() for t in held.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def save(state: dict[str, Any], path: Path) -> None:
    """Replace the checkpoint; the one before it is kept beside it (`Folder.previous`)."""
    with files.replacing(path) as file:
        file.write(MARK + b"0" * DIGITS + b"\n")
        hashed = _Hashed(file)
        torch.save(state, cast(BinaryIO, hashed))
        file.seek(len(MARK))
        file.write(hashed.sha.hexdigest().encode())
        files.flush(file)
        if path.exists():
            path.replace(previous(path))


class _Hashed:
    """A file to write to that hashes what it is given."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def load(path: Path, device: torch.device, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The newest checkpoint that is whole and of this run; None where there is none at all.

    `wanted` is what its `identity` must say (config, seed, device). A file that fails is named on
    stderr and the previous one is used. UserError where all that are there fail; no file is
    changed then.
    """
    complaints = []
    for candidate in (path, previous(path)):
        try:
            state = _read(candidate, device)
            _require_identity(candidate, state, wanted)
        except FileNotFoundError:
            continue
        except DamagedError as error:
            complaints.append(str(error))
            continue
        if complaints:
            print(f"{complaints[0]}; continues from {candidate.name}", file=sys.stderr)
        return state
    if complaints:
        raise UserError(f"{'; '.join(complaints)}; nothing was changed: force=true starts over")
    return None


def _read(file: Path, device: torch.device) -> dict[str, Any]:
    """The state in a file whose checksum holds."""
    files.require_regular(file)
    content = file.read_bytes()
    start = len(MARK) + DIGITS + 1
    if not content.startswith(MARK):
        other = content[len(NAME) :].split(b" ")[0] if content.startswith(NAME) else b""
        if other.isdigit():
            raise DamagedError(
                f"{file}: has checkpoint format {other.decode()}, this version of cl_bench reads "
                f"{FORMAT}"
            )
        raise DamagedError(f"{file}: is not a checkpoint of cl_bench")
    sha = hashlib.sha256(memoryview(content)[start:]).hexdigest()
    if content[len(MARK) : start] != sha.encode() + b"\n":
        raise DamagedError(f"{file}: is damaged (its content does not match its checksum)")
    body = io.BytesIO(memoryview(content)[start:])
    del content  # a large network's checkpoint is in memory once
    try:
        return torch.load(body, map_location=device, weights_only=True)
    except Exception as error:  # a file that was made to look whole: any of many errors
        raise DamagedError(f"{file}: cannot be read ({type(error).__name__})") from None


def _require_identity(file: Path, state: Any, wanted: dict[str, Any]) -> None:
    """DamagedError where a checkpoint is another run's."""
    identity = state.get("identity") if isinstance(state, dict) else None
    if not isinstance(identity, dict):
        raise DamagedError(f"{file}: does not say which run it is of")
    for name, value in wanted.items():
        if identity.get(name) != value:
            there = identity.get(name)
            raise DamagedError(f"{file}: is of {name} {there}, this run has {name} {value}")

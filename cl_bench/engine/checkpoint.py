"""Writes and reads checkpoints: the whole state of a run in one file with a checksum.

The file begins with a line that has the format number and the SHA-256 of the rest. The rest is a
dictionary of plain values and tensors, written by `torch.save` and read with weights_only:

identity    of which run it is: config hash, seed, kind of device, hashes of data and backbone
codes       the codes that made the run so far, the oldest first (`source_code.Code`)
devices     the names of the devices that the run was on
progress    finished tasks and steps, accuracies and seconds so far (`Progress.state_dict`)
generators  the states of the run's random number generators
journal     how many bytes of metrics.jsonl belong to the checkpoint, and their SHA-256
learner     weights, statistics of batch norm, the optimizer's state (`Learner.state_dict`)
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

FORMAT = 6  # files of another format are refused
MAGIC = b"cl_bench checkpoint "
HEADER = MAGIC + str(FORMAT).encode() + b" sha256 "
SHA_DIGITS = 64


def state_of(method: Method) -> dict[str, Any]:
    """The states of the learner and the method, as plain values and tensors."""
    return {"learner": method.learner.state_dict(), "method": method.state_dict()}


def restore(method: Method, state: dict[str, Any]) -> None:
    """Load the states from a checkpoint into the learner and the method, in place."""
    method.learner.load_state_dict(state["learner"])
    if "method" in state:  # else the run goes on from one of another method
        method.load_state_dict(state["method"])


def state_bytes(method: Method) -> int:
    """The bytes of all tensors that the method keeps between steps, without the network."""
    return bytes_of(method.state_dict())


def bytes_of(value: Any) -> int:
    """The bytes of all tensors in nested dictionaries, lists and tuples, each counted once."""
    distinct = {t.data_ptr(): t for t in tensors(value)}
    return sum(t.numel() * t.element_size() for t in distinct.values())


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all; the one before it is kept as `Folder.previous`."""
    with files.replacing(path) as file:
        file.write(HEADER + b"0" * SHA_DIGITS + b"\n")
        hashed = _Hashed(file)
        torch.save(state, cast(BinaryIO, hashed))
        file.seek(len(HEADER))
        file.write(hashed.sha.hexdigest().encode())
        files.flush(file)
        if path.exists():
            path.replace(previous(path))


class _Hashed:
    """A file object for writing that also hashes what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def load(path: Path, device: torch.device, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The newest checkpoint that is whole and of this run; None where there is none.

    `wanted` has the entries that its `identity` must have (config, seed, device). A newest file
    that is damaged or of another run is reported on stderr, and the previous one is used. Raises
    UserError, and changes no file, where no file that is there can be used.
    """
    faults = []
    for candidate in (path, previous(path)):
        try:
            state = _read(candidate, device)
            _require_identity(candidate, state, wanted)
        except FileNotFoundError:
            continue
        except DamagedError as error:
            faults.append(str(error))
            continue
        if faults:
            print(f"{faults[0]}; continues from {candidate.name}", file=sys.stderr)
        return state
    if faults:
        raise UserError(f"{'; '.join(faults)}; nothing was changed: force=true starts over")
    return None


def _read(file: Path, device: torch.device) -> dict[str, Any]:
    """The content of a checkpoint; DamagedError where its format or its checksum is wrong."""
    files.require_regular(file)
    content = file.read_bytes()
    start = len(HEADER) + SHA_DIGITS + 1
    if not content.startswith(HEADER):
        other = content[len(MAGIC) :].split(b" ")[0] if content.startswith(MAGIC) else b""
        if other.isdigit():
            raise DamagedError(
                f"{file}: has checkpoint format {other.decode()}, this version of cl_bench reads "
                f"{FORMAT}"
            )
        raise DamagedError(f"{file}: is not a checkpoint of cl_bench")
    sha = hashlib.sha256(memoryview(content)[start:]).hexdigest()
    if content[len(HEADER) : start] != sha.encode() + b"\n":
        raise DamagedError(f"{file}: is damaged (its content does not match its checksum)")
    body = io.BytesIO(memoryview(content)[start:])
    del content  # a large checkpoint is not kept in memory twice
    try:
        if device.type == "mps":  # which has no float64
            return _moved(torch.load(body, map_location="cpu", weights_only=True), device)
        return torch.load(body, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises many kinds, on a file with a forged checksum
        raise DamagedError(f"{file}: cannot be read ({type(error).__name__})") from None


def _moved(value: Any, device: torch.device) -> Any:
    """A state with its tensors on a device, but for those in float64, which stay where they are."""
    if isinstance(value, Tensor):
        return value if value.dtype == torch.float64 else value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device) for item in value)
    return value


def _require_identity(file: Path, state: Any, wanted: dict[str, Any]) -> None:
    """Raise DamagedError where a checkpoint is of another run."""
    identity = state.get("identity") if isinstance(state, dict) else None
    if not isinstance(identity, dict):
        raise DamagedError(f"{file}: does not say of which run it is")
    for name, value in wanted.items():
        if identity.get(name) != value:
            found = identity.get(name)
            raise DamagedError(f"{file}: is of {name} {found}, this run has {name} {value}")

"""A run's whole state to disk and back: atomic, plain types, read with weights_only.

An object of ours becomes {"__class__": its path, fields...}; classes are looked up in cl_bench
alone. What a run rebuilds from its config is not stored but found again: the learner, the
generators, functions.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Generator, Tensor, nn

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.base.files import DamagedError
from cl_bench.core.learner import Learner
from cl_bench.methods.base import Method
from cl_bench.results.folder import previous

MARK = b"cl_bench checkpoint 2 sha256 "
DIGITS = 64  # of a SHA-256
PLAIN = (Tensor, int, float, str, bool, bytes, type(None))


def encode(value: Any) -> Any:
    """Plain types all the way down; `...` stands for what is not state."""
    if isinstance(value, PLAIN):
        return value
    if type(value) in (list, tuple):
        return type(value)(encode(v) for v in value)
    function = callable(value) and not isinstance(value, nn.Module)
    if function or isinstance(value, Learner | Generator):
        return {"__kept__": True}
    if isinstance(value, dict):
        return {"__dict__": [(encode(k), encode(v)) for k, v in value.items()]}
    if isinstance(value, set | frozenset):
        return {"__set__": [encode(v) for v in value]}
    cls = type(value)
    if not cls.__module__.startswith("cl_bench."):
        raise TypeError(f"{cls.__module__}.{cls.__qualname__} cannot go into a checkpoint")
    path = f"{cls.__module__}:{cls.__qualname__}"
    return {"__class__": path, "fields": {k: encode(v) for k, v in _fields(value).items()}}


def _fields(value: Any) -> dict[str, Any]:
    return value._asdict() if hasattr(value, "_asdict") else vars(value)


def decode(stored: Any, present: Any) -> Any:
    """`stored` as it was; `present`, its counterpart in the fresh run, gives what was kept back."""
    if type(stored) in (list, tuple):
        olds = present if isinstance(present, list | tuple) else ()
        padded = [*olds, *[None] * len(stored)]
        return type(stored)(decode(v, p) for v, p in zip(stored, padded, strict=False))
    if not isinstance(stored, dict):
        return stored
    if "__kept__" in stored:
        assert present is not None, "state refers to a function or generator that is not rebuilt"
        return present
    if "__set__" in stored:
        return {decode(v, None) for v in stored["__set__"]}
    if "__dict__" in stored:
        olds = present if isinstance(present, dict) else {}
        pairs = ((decode(k, None), v) for k, v in stored["__dict__"])
        return {k: decode(v, olds.get(k)) for k, v in pairs}
    return _object(stored, present)


def _object(stored: dict, present: Any) -> Any:
    module, _, name = stored["__class__"].partition(":")
    if not module.startswith("cl_bench."):
        raise ValueError(f"a checkpoint names {module}, which is not of this package")
    cls = getattr(importlib.import_module(module), name)
    fields = {k: decode(v, getattr(present, k, None)) for k, v in stored["fields"].items()}
    if issubclass(cls, tuple):
        return cls(**fields)
    made = cls.__new__(cls)
    made.__dict__.update(fields)
    return made


def state_of(method: Method) -> dict[str, Any]:
    """The learner's and the method's state, as plain types."""
    learner = method.learner
    own = {k: encode(v) for k, v in vars(method).items()}
    return {
        "masked": learner.masked,
        "evaluated": learner.evaluated,
        "theta": learner.flat.theta.detach(),
        "channels_last": learner.flat.channels_last,
        "buffers": dict(learner.net.named_buffers()),
        "moved": None if learner.moved is learner.flat.theta else learner.moved.detach(),
        "optimizer": learner.optimizer.state_dict(),
        "method": own,
    }


def restore(method: Method, state: dict[str, Any]) -> None:
    """Put `state_of` back, in place: the views of theta stay whole."""
    learner = method.learner
    fresh = state_of(method)
    if not (state.keys() >= fresh.keys() and state["method"].keys() >= fresh["method"].keys()):
        raise UserError("it was written by another version of cl_bench; go back to that one")
    before = state["channels_last"]
    if before != learner.flat.channels_last:
        raise UserError(
            f"it was written with runtime.channels_last={str(before).lower()}, on "
            "another device; go on there"
        )
    with torch.no_grad():
        learner.flat.theta.copy_(state["theta"])
        for name, buffer in learner.net.named_buffers():
            buffer.copy_(state["buffers"][name])
    learner.masked, learner.evaluated = state["masked"], state["evaluated"]
    if state["moved"] is not None:
        learner.drive(nn.Parameter(state["moved"]))
    learner.optimizer.load_state_dict(state["optimizer"])
    for name, value in state["method"].items():
        setattr(method, name, decode(value, getattr(method, name, None)))


def nbytes(method: Method) -> int:
    """Bytes of tensors that the method keeps between steps, beside the network itself."""
    held = {t.data_ptr(): t for t in _tensors(state_of(method)["method"])}  # shared ones once
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
    """Replace the checkpoint, whose own place `.previous` takes.

    The file is one line, MARK and the SHA-256 of what follows, and then what `torch.save` writes.
    """
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
        raise DamagedError(f"{file}: is not a checkpoint of this version of cl_bench")
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

"""The record of a run: one JSON file that says what was run and what came out of it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cl_bench import files
from cl_bench.files import DamagedError

FORMAT = 2  # of record.json; another one is refused by its number
LABELS = ("dataset", "scenario", "method")


@dataclass(frozen=True)
class RunRecord:
    """Everything one run proves. All but `measured` is the same whenever the run is repeated."""

    format: int  # FORMAT
    labels: dict[str, str]  # dataset, scenario and method, as they were chosen
    config: dict[str, Any]  # resolved
    hash: str  # of the config without seed and places
    seed: int
    code: dict[str, Any]  # `source_code.Code`: the SHA-256 of all sources, and of each
    stream: dict[str, Any]  # classes of each task, image counts, SHA-256 and origin of the data
    accuracy: list[list[float | None]]  # (T, T), row = after task, column = tested
    initial: list[float | None]  # (T,), before training
    metrics: dict[str, float | None]  # ACC, BWT, FWT, forgetting, LA, AIA
    parameters: int
    state_bytes: int  # what the method keeps between steps, beside the network
    theta_sha256: str  # of the parameters that predict at the end: a network, or each task's
    measured: dict[str, Any]  # seconds, memory, machine, versions, commit
    backbone: dict[str, Any] | None = None  # its provenance and SHA-256, where there is one
    gradients_per_sample: float | None = None  # backward passes, of the stream's training images
    method: dict[str, float] | None = None  # what the method says of itself: its capacity
    forgetting_of_task: list[float | None] | None = None  # (T - 1,), their mean is `forgetting`


def load(file: Path) -> RunRecord:
    """The record in a file; DamagedError, naming the file, where it is not a whole one.

    Nothing in it is executed, and no name in it is looked up.
    """
    from pydantic import TypeAdapter, ValidationError

    content = files.read_json(file)
    if content.get("format") != FORMAT:
        raise DamagedError(
            f"{file}: has record format {content.get('format', 1)!r}, this version of cl_bench "
            f"reads {FORMAT}; run it again, or use the version that wrote it"
        )
    try:
        found = TypeAdapter(RunRecord).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DamagedError(f"{file}: is damaged ({place}: {first['msg']})") from None
    wrong = next(_faults(found), None)
    if wrong is not None:
        raise DamagedError(f"{file}: is damaged ({wrong})")
    return found


def _faults(found: RunRecord) -> Iterator[str]:
    """What cannot be right in a record whose fields have the right types."""
    tasks = len(found.initial)
    shares = [value for row in found.accuracy for value in row if value is not None]
    identities = found.stream.get("task_identities")
    backbone = found.backbone
    wholes = {
        f"accuracy: is not {tasks} rows of {tasks} numbers": tasks > 0
        and [len(row) for row in found.accuracy] == [tasks] * tasks,
        "accuracy: is not between 0 and 1": all(0 <= share <= 1 for share in shares),
        "labels: dataset, scenario or method is missing": {*LABELS} <= found.labels.keys(),
        "metrics: ACC or BWT is missing": {"ACC", "BWT"} <= found.metrics.keys(),
        "stream.task_identities: is not a number for each task": isinstance(identities, list)
        and len(identities) >= tasks
        and all(type(number) is int for number in identities),
        "measured.train_seconds: is not a list of numbers": _numbers(
            found.measured.get("train_seconds")
        ),
        "measured.eval_seconds: is not a list of numbers": _numbers(
            found.measured.get("eval_seconds")
        ),
        "measured.peak_mib: is no number": _numbers([found.measured.get("peak_mib")]),
        "code.sha256: is missing": isinstance(found.code.get("sha256"), str)
        and isinstance(found.code.get("files", {}), dict),
        "backbone: has no name or data": backbone is None
        or (
            isinstance(backbone.get("name"), str)
            and isinstance((backbone.get("data") or {}).get("name"), str)
        ),
    }
    return (fault for fault, right in wholes.items() if not right)


def _numbers(values: Any) -> bool:
    """Whether it is a list of numbers, at least one."""
    return (
        isinstance(values, list) and bool(values) and all(type(v) in (int, float) for v in values)
    )


@dataclass
class Records:
    """What lies below a folder: finished runs, damaged files, and runs without a record."""

    runs: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)  # folder, RunRecord
    damaged: list[str] = field(default_factory=list)  # a line each, with the file's name
    unfinished: Counter[str] = field(default_factory=Counter)  # runs by their status


def read_all(root: Path) -> Records:
    """Every run below a folder; symbolic links to folders are followed, each folder read once."""
    found = Records()
    for folder, names in _folders(root):
        try:
            if "record.json" in names:
                found.runs.append((folder, vars(load(folder / "record.json"))))
            elif "status.json" in names:
                state = files.read_json(folder / "status.json").get("state", "unknown")
                found.unfinished[str(state)] += 1
        except DamagedError as error:
            found.damaged.append(str(error))
        except OSError as error:
            found.damaged.append(f"{error.filename}: {error.strerror}")
    return found


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders with the names of their files, sorted by path."""
    seen: set[tuple[int, int]] = set()
    for path, folders, names in os.walk(root, followlinks=True):
        stat = os.stat(path)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders.sort()
        yield Path(path), names


def sha256(vectors: Iterable[Tensor]) -> str:
    """Of the bytes of all of them."""
    sha = hashlib.sha256()
    for vector in vectors:
        sha.update(vector.detach().cpu().numpy().tobytes())
    return sha.hexdigest()


def plain(value: Any) -> Any:
    """`value` for JSON: a NaN is null."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value

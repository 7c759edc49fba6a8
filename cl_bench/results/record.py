"""The record of a run, record.json, and reading the records below a folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le, Len

from cl_bench.base import files
from cl_bench.base.bounds import Share
from cl_bench.base.files import DamagedError
from cl_bench.config.option_types import type_adapter

if TYPE_CHECKING:  # records are read without PyTorch
    from torch import Tensor

FORMAT = 2  # of record.json; records of another format are refused
LABELS = ("dataset", "scenario", "method")
MAX_NESTING = 40  # levels of objects and lists within a record
Amount = Annotated[float, Ge(0), Le(1e15)]  # seconds, MiB; more is a damaged record
Total = Annotated[int, Ge(0), Le(10**15)]
Number = Annotated[float, Ge(-1e15), Le(1e15)]
Metric = Annotated[float, Ge(-1), Le(1)]  # an accuracy, or a difference of two


@dataclass(frozen=True)
class RunRecord:
    """Everything that is known of a finished run; all but `measured` is reproducible."""

    format: int  # FORMAT
    labels: dict[str, str]  # the chosen options of dataset, scenario and method
    config: dict[str, Any]  # resolved
    hash: str  # of the config (`config_hash`)
    seed: int
    code: dict[str, Any]  # `source_code.Code`
    stream: dict[str, Any]  # classes of each task, image counts, SHA-256 and origin of the data
    accuracy: list[list[Share | None]]  # (T, T), row = after task, column = tested
    initial: list[Share | None]  # (T,), before training
    metrics: dict[str, Metric | None]  # ACC, BWT, FWT, forgetting, LA, AIA
    parameters: Total
    state_bytes: Total  # of tensors that the method keeps between steps, without the network
    theta_sha256: str  # of the final parameters, of one network or of one for each task
    measured: dict[str, Any]  # seconds, memory, machine, versions, commit
    backbone: dict[str, Any] | None = None  # provenance and SHA-256 of a pre-trained network
    gradients_per_sample: Amount | None = None  # backward passes per training image of the stream
    method: dict[str, Number] | None = None  # `Method.capacity`
    forgetting_of_task: list[float | None] | None = None  # (T - 1,), their mean is `forgetting`


def read_record(file: Path) -> RunRecord:
    """The record in a file; nothing in it is executed.

    Raises DamagedError, naming the file and the field, where it is no whole record of this format.
    """
    from pydantic import ValidationError

    content = files.read_json(file)
    if content.get("format") != FORMAT:
        raise DamagedError(
            f"{file}: has record format {content.get('format', 1)!r}, this version of cl_bench "
            f"reads {FORMAT}; run it again, or use the version that wrote it"
        )
    if _is_nested_deeper(content, MAX_NESTING):
        raise DamagedError(f"{file}: is damaged (nested more than {MAX_NESTING} deep)")
    place = ""
    try:
        found = type_adapter(RunRecord).validate_json(json.dumps(content), strict=True)
        for place, hint in _inner_types(found).items():
            type_adapter(hint).validate_python(value_or_none(content, place), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([place, *map(str, first["loc"])]).strip(".")
        raise DamagedError(f"{file}: is damaged ({where}: {first['msg']})") from None
    contradiction = next(_contradictions(found), None)
    if contradiction is not None:
        raise DamagedError(f"{file}: is damaged ({contradiction})")
    return found


def _inner_types(found: RunRecord) -> dict[str, Any]:
    """The types of values within the fields of a record, by their dotted places."""
    parts: dict[str, Any] = {f"labels.{name}": str for name in LABELS}
    parts |= {"stream.task_identities": list[int], "measured.peak_mib": Amount}
    parts |= {f"measured.{k}_seconds": Annotated[list[Amount], Len(1)] for k in ("train", "eval")}
    parts |= {"code.sha256": str, "code.files": dict[str, str]}
    if found.backbone is not None:
        parts |= {"backbone.name": str, "backbone.data.name": str, "backbone.accuracy": Share}
        parts |= {"backbone.model": dict[str, Any], "config.model": dict[str, Any]}
    return parts


def _contradictions(found: RunRecord) -> Iterator[str]:
    """What is wrong with a record although its values have the right types."""
    tasks, identities = len(found.initial), found.stream["task_identities"]
    if not tasks or [len(row) for row in found.accuracy] != [tasks] * tasks:
        yield f"accuracy: is not {tasks} rows of {tasks} numbers"
    if len(identities) < tasks or len({*identities}) < len(identities):
        yield f"stream.task_identities: are not those of {tasks} tasks"
    for name in ("ACC", "BWT"):
        if name not in found.metrics:
            yield f"metrics.{name}: is missing"


def value_or_none(node: Any, place: str) -> Any:
    """The value at a dotted place in nested dictionaries; None where it is missing."""
    for name in place.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _is_nested_deeper(content: Any, levels: int) -> bool:
    """Whether dictionaries and lists are nested more than `levels` deep."""
    nodes = [content]
    for _ in range(levels):
        inner = [list(n.values()) if isinstance(n, dict) else n for n in nodes]
        nodes = [child for node in inner if isinstance(node, list) for child in node]
    return any(isinstance(node, dict | list) for node in nodes)


@dataclass
class Records:
    """All runs below a folder: finished ones, damaged files, and runs without a record."""

    runs: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)  # folder, record
    damaged: list[str] = field(default_factory=list)  # a line each, with the file's name
    unfinished: Counter[str] = field(default_factory=Counter)  # number of runs by status
    failures: list[str] = field(default_factory=list)  # a line for each run that failed

    def add_unfinished(self, folder: Path, has_page: bool) -> None:
        """Count the run in a folder without a record by its status; skip a study that is done."""
        status = files.read_json(folder / "status.json")
        state = "killed" if _was_killed(status) else str(status.get("state", "unknown"))
        if not (state == "done" and has_page):
            self.unfinished[state] += 1
        if state == "failed":
            reason = str(status.get("error") or "the reason is not known").strip()
            self.failures.append(f"{folder}: {reason.splitlines()[-1]}")

    @property
    def contradicting(self) -> list[str]:
        """A line for each copy of a run whose results differ from those of its first copy."""
        first: dict[tuple[Any, ...], tuple[Path, dict[str, Any]]] = {}
        lines = []
        for folder, run in self.runs:
            name = (*sorted(run["labels"].items()), run["hash"], run["seed"])
            place, other = first.setdefault(name, (folder, run))
            if any(run[key] != other[key] for key in ("accuracy", "metrics")):
                lines.append(f"{folder}: its results are not those of {place}, the same run")
        return lines


def _was_killed(status: dict[str, Any]) -> bool:
    """Whether a run of this machine has the status running although its process is gone."""
    pid = status.get("pid")
    here = status.get("host") == socket.gethostname()
    if status.get("state") != "running" or not here or not isinstance(pid, int) or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def read_all(root: Path) -> Records:
    """Read every run below a folder; links to folders are followed, each folder is read once."""
    found = Records()

    def note_unreadable(error: OSError) -> None:
        if root.exists():
            found.damaged.append(f"{error.filename}: {error.strerror}")

    for folder, names in _folders(root, note_unreadable):
        try:
            if "record.json" in names:
                found.runs.append((folder, vars(read_record(folder / "record.json"))))
            elif "status.json" in names:
                found.add_unfinished(folder, "page.md" in names)
        except DamagedError as error:
            found.damaged.append(str(error))
        except OSError as error:
            note_unreadable(error)
    found.unfinished = +found.unfinished
    return found


def _folders(root: Path, unreadable: Callable[[OSError], None]) -> Iterator[tuple[Path, list[str]]]:
    """Each folder below `root` with the names of its files, sorted by path.

    `unreadable` is called with the error of a folder that cannot be read, or has just been removed.
    """
    seen: set[tuple[int, int]] = set()
    for path, folders, names in os.walk(root, followlinks=True, onerror=unreadable):
        try:
            stat = os.stat(path)
        except OSError as error:
            unreadable(error)
            continue
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders.sort()
        yield Path(path), names


def sha256_of(vectors: Iterable[Tensor]) -> str:
    """The SHA-256 of the bytes of all vectors, one after the other."""
    sha = hashlib.sha256()
    for vector in vectors:
        sha.update(vector.detach().cpu().numpy().tobytes())
    return sha.hexdigest()


def json_value(value: Any) -> Any:
    """A copy of `value` that JSON can hold: NaN becomes None, keys texts, and tuples lists."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {str(k): json_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(v) for v in value]
    return value

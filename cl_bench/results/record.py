"""The record of a run: one JSON file that says what was run and what came out of it."""

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
from cl_bench.config.option_types import adapter

if TYPE_CHECKING:  # a listing or a report loads no PyTorch
    from torch import Tensor

FORMAT = 2  # of record.json; another one is refused by its number
LABELS = ("dataset", "scenario", "method")
DEEPEST = 40  # levels of nesting
Amount = Annotated[float, Ge(0), Le(1e15)]  # no seconds, bytes or counts of a run are more
Total = Annotated[int, Ge(0), Le(10**15)]
Number = Annotated[float, Ge(-1e15), Le(1e15)]
Gain = Annotated[float, Ge(-1), Le(1)]  # a difference of two shares


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
    accuracy: list[list[Share | None]]  # (T, T), row = after task, column = tested
    initial: list[Share | None]  # (T,), before training
    metrics: dict[str, Gain | None]  # ACC, BWT, FWT, forgetting, LA, AIA
    parameters: Total
    state_bytes: Total  # what the method keeps between steps, beside the network
    theta_sha256: str  # of the parameters that predict at the end: a network, or each task's
    measured: dict[str, Any]  # seconds, memory, machine, versions, commit
    backbone: dict[str, Any] | None = None  # its provenance and SHA-256, where there is one
    gradients_per_sample: Amount | None = None  # backward passes, of the stream's training images
    method: dict[str, Number] | None = None  # what the method says of itself: its capacity
    forgetting_of_task: list[float | None] | None = None  # (T - 1,), their mean is `forgetting`


def load(file: Path) -> RunRecord:
    """The record in a file; DamagedError, naming the file, where it is not a whole one.

    Nothing in it is executed, and no name in it is looked up.
    """
    from pydantic import ValidationError

    content = files.read_json(file)
    if content.get("format") != FORMAT:
        raise DamagedError(
            f"{file}: has record format {content.get('format', 1)!r}, this version of cl_bench "
            f"reads {FORMAT}; run it again, or use the version that wrote it"
        )
    if _deeper(content, DEEPEST):
        raise DamagedError(f"{file}: is damaged (nested more than {DEEPEST} deep)")
    place = ""
    try:
        found = adapter(RunRecord).validate_json(json.dumps(content), strict=True)
        for place, hint in _parts(found).items():
            adapter(hint).validate_python(at(content, place), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([place, *map(str, first["loc"])]).strip(".")
        raise DamagedError(f"{file}: is damaged ({where}: {first['msg']})") from None
    wrong = next(_faults(found), None)
    if wrong is not None:
        raise DamagedError(f"{file}: is damaged ({wrong})")
    return found


def _parts(found: RunRecord) -> dict[str, Any]:
    """What values within a record must be, by their place, beyond the types of its fields."""
    parts: dict[str, Any] = {f"labels.{name}": str for name in LABELS}
    parts |= {"stream.task_identities": list[int], "measured.peak_mib": Amount}
    parts |= {f"measured.{k}_seconds": Annotated[list[Amount], Len(1)] for k in ("train", "eval")}
    parts |= {"code.sha256": str, "code.files": dict[str, str]}
    if found.backbone is not None:
        parts |= {"backbone.name": str, "backbone.data.name": str, "backbone.accuracy": Share}
        parts |= {"backbone.model": dict[str, Any], "config.model": dict[str, Any]}
    return parts


def _faults(found: RunRecord) -> Iterator[str]:
    """What cannot be right in a record whose values have the right types."""
    tasks, identities = len(found.initial), found.stream["task_identities"]
    if not tasks or [len(row) for row in found.accuracy] != [tasks] * tasks:
        yield f"accuracy: is not {tasks} rows of {tasks} numbers"
    if len(identities) < tasks or len({*identities}) < len(identities):
        yield f"stream.task_identities: are not those of {tasks} tasks"
    for name in ("ACC", "BWT"):
        if name not in found.metrics:
            yield f"metrics.{name}: is missing"


def at(node: Any, place: str) -> Any:
    """The value at a dotted place; None where it is missing."""
    for name in place.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _deeper(content: Any, levels: int) -> bool:
    """Whether objects and lists are nested more than so many levels deep."""
    nodes = [content]
    for _ in range(levels):
        inner = [list(n.values()) if isinstance(n, dict) else n for n in nodes]
        nodes = [child for node in inner if isinstance(node, list) for child in node]
    return any(isinstance(node, dict | list) for node in nodes)


@dataclass
class Records:
    """What lies below a folder: finished runs, damaged files, and runs without a record."""

    runs: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)  # folder, RunRecord
    damaged: list[str] = field(default_factory=list)  # a line each, with the file's name
    unfinished: Counter[str] = field(default_factory=Counter)  # runs by their status
    failures: list[str] = field(default_factory=list)  # a line for each run that failed

    def add_unfinished(self, folder: Path, has_page: bool) -> None:
        """Count a folder that has a status and no record; a study that is done is no such run."""
        status = files.read_json(folder / "status.json")
        state = "killed" if _killed(status) else str(status.get("state", "unknown"))
        if not (state == "done" and has_page):
            self.unfinished[state] += 1
        if state == "failed":
            reason = str(status.get("error") or "no reason is known").strip()
            self.failures.append(f"{folder}: {reason.splitlines()[-1]}")

    @property
    def contradicting(self) -> list[str]:
        """A line for each copy of a run that has other results than the first, which counts."""
        first: dict[tuple[Any, ...], tuple[Path, dict[str, Any]]] = {}
        lines = []
        for folder, run in self.runs:
            name = (*sorted(run["labels"].items()), run["hash"], run["seed"])
            place, counted = first.setdefault(name, (folder, run))
            if any(run[key] != counted[key] for key in ("accuracy", "metrics")):
                lines.append(f"{folder}: its results are not those of {place}, the same run")
        return lines


def _killed(status: dict[str, Any]) -> bool:
    """Whether a run of this machine is said to run, and its process is gone."""
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
    """Every run below a folder; symbolic links to folders are followed, each folder read once."""
    found = Records()

    def damaged(error: OSError) -> None:
        if root.exists():
            found.damaged.append(f"{error.filename}: {error.strerror}")

    for folder, names in _folders(root, damaged):
        try:
            if "record.json" in names:
                found.runs.append((folder, vars(load(folder / "record.json"))))
            elif "status.json" in names:
                found.add_unfinished(folder, "page.md" in names)
        except DamagedError as error:
            found.damaged.append(str(error))
        except OSError as error:
            damaged(error)
    found.unfinished = +found.unfinished
    return found


def _folders(root: Path, unreadable: Callable[[OSError], None]) -> Iterator[tuple[Path, list[str]]]:
    """Folders with the names of their files, sorted by path; one may vanish while it is sought."""
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

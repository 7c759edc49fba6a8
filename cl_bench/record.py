"""What a run leaves behind: its folder, its status, its rows, and one JSON file that proves it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from cl_bench import __version__
from cl_bench.types import UserError

PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "wandb")


@dataclass(frozen=True)
class RunRecord:
    """Everything one run proves. All but `measured` is the same whenever the run is repeated."""

    config: dict[str, Any]  # resolved
    hash: str  # of the config without seed and places
    seed: int
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


def software() -> dict[str, Any]:
    """Versions, and the commit where the package runs from a git checkout."""
    root = Path(__file__).parents[1]
    commit = None
    if (root / ".git").exists() and shutil.which("git"):
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        commit = found.stdout.strip() or None
    versions = {"cl_bench": __version__} | {name: version(name) for name in PACKAGES}
    return {"commit": commit, "python": platform.python_version(), "versions": versions}


def records(root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every finished run below a folder: where it lies, what it says."""
    for path in sorted(root.rglob("record.json")):
        yield path.parent, json.loads(path.read_text())


def unfinished(root: Path) -> Counter[str]:
    """How many runs below a folder have no record, by what their status says."""
    files = (f for f in root.rglob("status.json") if not (f.parent / "record.json").exists())
    return Counter(json.loads(file.read_text())["state"] for file in files)


class Folder:
    """outputs/<dataset>/<scenario>/<method>/<config hash>/seed<k>, and all that lies in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.metrics = path / "metrics.jsonl"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time; a lock dies with its process."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path}: another process is at this run") from None
            yield

    def finished(self) -> RunRecord | None:
        """The record, where there is one: it is written last, whole or not at all."""
        file = self.path / "record.json"
        return RunRecord(**json.loads(file.read_text())) if file.exists() else None

    def status(self) -> dict[str, Any]:
        """The last status written; empty for a new run."""
        file = self.path / "status.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def mark(self, state: str, error: str | None = None) -> None:
        """running | stopped | failed (with the traceback) | done."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.write("status.json", {"state": state, "time": now, "pid": os.getpid(), "error": error})

    def write(self, name: str, content: dict[str, Any]) -> None:
        """One JSON file, whole or not at all."""
        fresh = self.path / f"{name}.tmp"
        fresh.write_text(json.dumps(plain(content), indent=1, allow_nan=False) + "\n")
        fresh.replace(self.path / name)

    def clear(self) -> None:
        """Forget the run that was here (`force=true`)."""
        for entry in self.path.iterdir():
            if entry.name != "lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def finish(self, record: RunRecord) -> None:
        """Write table, then record: from then on the run is over, whatever its status says."""
        import pandas as pd

        names = [f"task_{j}" for j in range(len(record.initial))]
        table = pd.DataFrame([record.initial, *record.accuracy], columns=pd.Index(names))
        table.index = pd.Index(["initial", *names], name="after")
        table.to_csv(self.path / "accuracy.csv")
        self.checkpoint.with_suffix(".previous").unlink(missing_ok=True)
        self.write("record.json", asdict(record))
        self.mark("done")


class Journal:
    """metrics.jsonl: one row a line, on the disk before the next; the truth that wandb mirrors."""

    def __init__(self, path: Path, keep: int) -> None:
        self.file = path.open("a+b")
        assert keep <= self.file.seek(0, os.SEEK_END), "rows that the checkpoint vouches for"
        self.file.truncate(keep)  # rows after the checkpoint will be written again
        self.file.seek(0, os.SEEK_END)

    def rows(self) -> list[dict[str, Any]]:
        """Those that are there."""
        self.file.seek(0)
        return [json.loads(line) for line in self.file]

    def write(self, row: dict[str, Any]) -> None:
        """Append, flush, sync."""
        self.file.write(json.dumps(plain(row), allow_nan=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def size(self) -> int:
        """Bytes so far."""
        return self.file.tell()

"""The folder of a run: its lock, its status, its rows, its record."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.base.files import DamagedError
from cl_bench.results import record as records
from cl_bench.results.record import RunRecord, plain

BUSY = "another process is at this run"


class Folder:
    """outputs/<dataset>/<scenario>/<method>/<config hash>/seed<k>, and all that lies in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.previous = previous(self.checkpoint)
        self.metrics = path / "metrics.jsonl"
        self.record = path / "record.json"

    def prepare(self) -> None:
        """Create the folder, and fail where no file can be made in it."""
        files.require_writable(self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time; a lock dies with its process."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with files.locked(self.path / "lock"):
                yield
        except files.LockedError:
            raise UserError(f"{self.path}: {BUSY}") from None

    def finished(self, config_hash: str, seed: int) -> RunRecord | None:
        """The record, where there is one: it is written last, whole or not at all.

        UserError where the file is not a record of this version, or one of another config or seed
        (a folder that was copied or renamed); nothing is changed then.
        """
        if not self.record.exists():
            return None
        try:
            found = records.load(self.record)
        except DamagedError as error:
            raise UserError(f"{error}; force=true starts the run over") from None
        if (found.hash, found.seed) != (config_hash, seed):
            raise UserError(
                f"{self.record}: is of config {found.hash}, seed {found.seed}; this run is config "
                f"{config_hash}, seed {seed}; nothing was changed: force=true starts the run over"
            )
        return found

    def status(self) -> dict[str, Any]:
        """The last status written; empty for a new run, or where it is damaged."""
        try:
            return files.read_json(self.path / "status.json")
        except (FileNotFoundError, DamagedError):
            return {}

    def mark(self, state: str, error: str | None = None, **more: Any) -> None:
        """Set the status: running | stopped | failed (with the traceback) | done."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        who = {"host": socket.gethostname(), "pid": os.getpid()}
        content = {"state": state, "time": now, **who, "error": error, **more}
        files.write_json(self.path / "status.json", content)

    def mark_if_possible(self, state: str, error: str | None = None) -> None:
        """`mark`, where the disk allows it: after an error that the disk itself may have caused."""
        with suppress(OSError):
            self.mark(state, error)

    def restore(self, status: dict[str, Any]) -> None:
        """Put an earlier status back; without one, leave no trace of a run that did not begin."""
        if status:
            files.write_json(self.path / "status.json", status)
            return
        for name in ("status.json", "config.yaml"):
            (self.path / name).unlink(missing_ok=True)

    def safe(self) -> str:
        """What of an interrupted run can be continued, in words."""
        if self.record.exists():
            return "the record is written, only what comes after it is missing"
        if not self.path.exists():
            return "its folder was removed, the same command starts over"
        if self.checkpoint.exists() or self.previous.exists():
            return "the last checkpoint is safe, the same command continues from it"
        return "no checkpoint was written yet, the same command starts over"

    def clear(self) -> None:
        """Forget the run that was here: first its record, then what it could continue from.

        Stopped at any point, the folder is that of a run which is not finished: the same command
        never takes what is left for a result. Symbolic links are removed, not what they point to.
        """
        first = [self.record, self.checkpoint, self.previous]
        for file in first:
            file.unlink(missing_ok=True)
        files.sync(self.path)
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif not entry.name.startswith("lock"):
                entry.unlink(missing_ok=True)

    def finish(self, record: RunRecord) -> None:
        """Write table, then record: from then on the run is over, whatever its status says."""
        import pandas as pd

        names = [f"task_{j}" for j in range(len(record.initial))]
        table = pd.DataFrame([record.initial, *record.accuracy], columns=pd.Index(names))
        table.index = pd.Index(["initial", *names], name="after")
        files.write_text(self.path / "accuracy.csv", table.to_csv())
        files.write_json(self.record, plain(asdict(record)))
        self.previous.unlink(missing_ok=True)
        self.mark_if_possible("done")  # the record says it, too

    def write_pictures(self, contents: dict[str, bytes]) -> dict[str, Path]:
        """Write `<name>.png` for each; returns their paths by name."""
        paths = {name: self.path / f"{name}.png" for name in contents}
        for name, path in paths.items():
            files.write_bytes(path, contents[name])
        return paths


def previous(checkpoint: Path) -> Path:
    """Where the checkpoint before the newest lies."""
    return checkpoint.with_suffix(".previous")


def kept(path: Path, position: tuple[int, str] | None) -> bytes:
    """The rows that a checkpoint vouches for (`Journal.position`); None: no rows.

    UserError where they are not in the file any more.
    """
    if position is None:
        return b""
    content = path.read_bytes()[: position[0]] if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != position[1]:
        raise UserError(
            f"{path}: its first {position[0]} bytes are not those that the checkpoint beside it "
            "was written with; nothing was changed: force=true starts over"
        )
    return content


class Journal:
    """metrics.jsonl: one row a line, on the disk before the next; the truth that wandb mirrors."""

    def __init__(self, path: Path, content: bytes) -> None:
        """Keep the rows in `content`, with which the file begins; those after it are cut off."""
        self.path, self.sha = path, hashlib.sha256(content)
        self.file = path.open("a+b")
        self.file.truncate(len(content))
        self.file.seek(0, os.SEEK_END)

    def rows(self) -> list[dict[str, Any]]:
        """Those that are there."""
        self.file.seek(0)
        return [json.loads(line) for line in self.file]

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; it is on the disk when this returns."""
        line = json.dumps(plain(row), allow_nan=False).encode() + b"\n"
        files.append(self.file, line, self.path)
        self.sha.update(line)

    def position(self) -> tuple[int, str]:
        """Bytes so far, and their SHA-256."""
        return self.file.tell(), self.sha.hexdigest()

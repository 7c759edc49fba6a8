"""The folder of a run and its files: lock, status, rows, checkpoints, record and pictures."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.base.files import DamagedError
from cl_bench.results.record import RunRecord, json_value, read_record

if TYPE_CHECKING:  # imported where it is used: it is slow to import
    import pandas as pd

LOCKED = "another process is working on this run"


class Folder:
    """The folder outputs/<dataset>/<scenario>/<method>/<config hash>/seed<k>."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.previous = previous(self.checkpoint)
        self.metrics = path / "metrics.jsonl"
        self.record = path / "record.json"

    def require_writable(self) -> None:
        """Create the folder; OSError where no file can be made in it."""
        files.require_writable(self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock, which ends with the process; UserError where another holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with files.locked(self.path / "lock"):
                yield
        except files.LockedError:
            raise UserError(f"{self.path}: {LOCKED}") from None

    def finished(self, config_hash: str, seed: int) -> RunRecord | None:
        """The record of a finished run; None where the run is not finished.

        Raises UserError, and changes nothing, where the file is damaged, of another record format,
        or of another config or seed (of a folder that was copied or renamed).
        """
        if not self.record.exists():
            return None
        try:
            record = read_record(self.record)
        except DamagedError as error:
            raise UserError(f"{error}; force=true starts the run over") from None
        if (record.hash, record.seed) != (config_hash, seed):
            raise UserError(
                f"{self.record}: is of config {record.hash}, seed {record.seed}; this run is of "
                f"config {config_hash}, seed {seed}; nothing was changed: force=true starts the "
                "run over"
            )
        return record

    def status(self) -> dict[str, Any]:
        """The content of status.json; empty where there is none, or it is damaged."""
        try:
            return files.read_json(self.path / "status.json")
        except (FileNotFoundError, DamagedError):
            return {}

    def set_status(self, state: str, error: str | None = None, **more: Any) -> None:
        """Write status.json: `state` is running, stopped, failed or done.

        error  the reason of a failure, in one line
        more   further values, such as the `traceback` of an error of unknown cause
        """
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        process = {"host": socket.gethostname(), "pid": os.getpid()}
        content = {"state": state, "time": now, **process, "error": error, **more}
        files.write_json(self.path / "status.json", content)

    def try_set_status(self, state: str, error: str | None = None, **more: Any) -> None:
        """Write status.json, unless the disk fails: a full disk may be the error to report."""
        with suppress(OSError):
            self.set_status(state, error, **more)

    def restore_status(self, status: dict[str, Any]) -> None:
        """Undo `set_status` of a run that was refused before training.

        An empty `status` means that there was no run before: its config.yaml is removed too, and
        the folder, with that of its config, unless it has more than a lock and the rows of the run
        that this one was to go on from. The lock must be held.
        """
        if status:
            files.write_json(self.path / "status.json", status)
            return
        for name in ("status.json", "config.yaml"):
            (self.path / name).unlink(missing_ok=True)
        left = [entry.name for entry in self.path.iterdir() if entry != self.metrics]
        if all(name.startswith("lock") for name in left):
            with suppress(OSError):  # the folder of a config has other seeds
                shutil.rmtree(self.path)
                self.path.parent.rmdir()

    def recovery_note(self) -> str:
        """What the same command will do after this run was interrupted, as a clause."""
        if self.record.exists():
            return "the record is written, only pictures and wandb's summary may be missing"
        if not self.path.exists():
            return "its folder was removed, the same command starts over"
        if self.checkpoint.exists() or self.previous.exists():
            return "the last checkpoint is safe, the same command continues from it"
        return "no checkpoint was written yet, the same command starts over"

    def clear(self) -> None:
        """Remove all files of a run but its lock.

        The record and the checkpoints go first, so that files left by an interrupted `clear` are
        never taken for a result. Symbolic links are removed, not what they point to.
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
        """Write accuracy.csv, then the record: a run is finished as soon as its record is there."""
        files.write_text(self.path / "accuracy.csv", accuracy_csv(record))
        files.write_json(self.record, json_value(asdict(record)))
        self.previous.unlink(missing_ok=True)
        self.try_set_status("done")  # not needed: the record decides

    def write_tables(self, tables: Mapping[str, pd.DataFrame]) -> None:
        """Write each table to `<name>.csv`."""
        for name, table in tables.items():
            files.write_text(self.path / f"{name}.csv", table.to_csv())

    def write_pictures(self, contents: dict[str, bytes]) -> dict[str, Path]:
        """Write each content to `<name>.png`; returns the paths by name."""
        paths = {name: self.path / f"{name}.png" for name in contents}
        for name, path in paths.items():
            files.write_bytes(path, contents[name])
        return paths


def accuracy_csv(record: RunRecord) -> str:
    """`accuracy_table` as the text of a CSV file, without loading pandas, which takes a while."""
    names, rows = _accuracies(record)
    lines = [["after", *names]]
    for after, row in zip(["initial", *names], rows, strict=True):
        lines.append([after, *("" if v is None or isnan(v) else repr(float(v)) for v in row)])
    return "".join(f"{','.join(line)}\n" for line in lines)


def accuracy_table(record: RunRecord) -> pd.DataFrame:
    """The accuracies: a row before training and after each task, a column for each tested task."""
    import pandas as pd

    names, rows = _accuracies(record)
    table = pd.DataFrame(rows, columns=pd.Index(names), dtype=float)
    table.index = pd.Index(["initial", *names], name="after")
    return table


def _accuracies(record: RunRecord) -> tuple[list[str], list[list[float | None]]]:
    """The names of the tasks, and the accuracies before training and after each task."""
    return [f"task_{j}" for j in range(len(record.initial))], [record.initial, *record.accuracy]


def previous(checkpoint: Path) -> Path:
    """The path of the second newest checkpoint."""
    return checkpoint.with_suffix(".previous")


def read_journal(path: Path, position: tuple[int, str] | None) -> bytes:
    """The rows of a journal up to the position in a checkpoint; no rows where that is None.

    Raises UserError where the file does not begin with the rows that the checkpoint was written
    after (`Journal.position`).
    """
    if position is None:
        return b""
    content = path.read_bytes()[: position[0]] if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != position[1]:
        raise UserError(
            f"{path}: its first {position[0]} bytes are not those that the checkpoint was written "
            "with; nothing was changed: force=true starts over"
        )
    return content


class Journal:
    """The file metrics.jsonl: one row of metrics per line, which wandb mirrors."""

    def __init__(self, path: Path, content: bytes) -> None:
        """Open the file, which begins with `content`, and cut off all rows after that."""
        self.path, self.sha = path, hashlib.sha256(content)
        self.file = path.open("a+b")
        self.file.truncate(len(content))
        self.file.seek(0, os.SEEK_END)

    def rows(self) -> list[dict[str, Any]]:
        """All rows in the file."""
        self.file.seek(0)
        return [json.loads(line) for line in self.file]

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; it is on the disk when this returns."""
        line = json.dumps(json_value(row), allow_nan=False).encode() + b"\n"
        files.append(self.file, line, self.path)
        self.sha.update(line)

    def position(self) -> tuple[int, str]:
        """The number of bytes in the file, and their SHA-256."""
        return self.file.tell(), self.sha.hexdigest()

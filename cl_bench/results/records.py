"""Reading all runs below a folder: finished ones, damaged files, and runs without a record."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.base.files import DamagedError
from cl_bench.results.record import read_record
from cl_bench.results.sweeps import SWEEP, Job, lacking


@dataclass(frozen=True)
class Unfinished:
    """A run without a record."""

    folder: Path
    state: str  # running, stopped, failed, killed, ...
    reason: str | None = None  # the last line of its error, if it failed


@dataclass
class Records:
    """All runs below a folder: finished ones, damaged files, and runs without a record."""

    runs: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)  # folder, record
    damaged: list[str] = field(default_factory=list)  # a line each, with the file's name
    without_record: list[Unfinished] = field(default_factory=list)
    sweeps: list[Path] = field(default_factory=list)  # folders of sweeps

    @property
    def lacking(self) -> list[Job]:
        """The jobs of sweeps that have no result."""
        states = {run.folder.absolute(): (run.state, run.reason) for run in self.without_record}
        return lacking(self.sweeps, states)

    @property
    def unfinished(self) -> Counter[str]:
        """The number of runs without a record by their state."""
        return Counter(run.state for run in self.without_record)

    @property
    def failures(self) -> list[str]:
        """A line for each run that failed, with its reason."""
        return [f"{run.folder}: {run.reason}" for run in self.without_record if run.reason]

    def add(self, folder: Path, names: Collection[str]) -> None:
        """Add what is in a folder with files of these names; DamagedError where one is damaged."""
        if "record.json" in names:
            self.runs.append((folder, vars(read_record(folder / "record.json"))))
        elif "status.json" in names:
            self.add_unfinished(folder, "page.md" in names)
        elif SWEEP in names:
            self.sweeps.append(folder)

    def add_unfinished(self, folder: Path, has_page: bool) -> None:
        """Add the run in a folder without a record, unless it is a study that is done."""
        status = files.read_json(folder / "status.json")
        state = "killed" if _was_killed(status) else str(status.get("state", "unknown"))
        if state == "done" and has_page:
            return
        reason = None
        if state == "failed":
            lines = str(status.get("error") or "the reason is not known").strip().splitlines()
            reason = lines[-1]
        self.without_record.append(Unfinished(folder, state, reason))

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


def read_all(*roots: Path) -> Records:
    """Read every run below folders; links to folders are followed, each folder is read once."""
    found = Records()

    def note_unreadable(error: OSError) -> None:
        if any(root.exists() for root in roots):
            found.damaged.append(f"{error.filename}: {error.strerror}")

    for folder, names in _folders(roots, note_unreadable):
        try:
            found.add(folder, names)
        except DamagedError as error:
            found.damaged.append(str(error))
        except OSError as error:
            note_unreadable(error)
    return found


def read_folders(roots: Sequence[Path]) -> Records:
    """`read_all`, with UserError where one of the folders does not exist."""
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; name the folder that has the runs")
    return read_all(*roots)


def _folders(
    roots: Iterable[Path], unreadable: Callable[[OSError], None]
) -> Iterator[tuple[Path, list[str]]]:
    """Each folder below `roots` with the names of its files, sorted by path.

    `unreadable` is called with the error of a folder that cannot be read, or has just been removed.
    """
    seen: set[tuple[int, int]] = set()
    walks = (os.walk(root, followlinks=True, onerror=unreadable) for root in roots)
    for path, folders, names in chain.from_iterable(walks):
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

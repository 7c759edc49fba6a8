"""Files are replaced whole or not at all, and locked also where a file system has no locks."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from cl_bench.base import files
from cl_bench.base.files import DamagedError


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    files.write_json(file, {"a": 1})
    assert files.read_json(file) == {"a": 1}
    with pytest.raises(ValueError):
        files.write_json(file, {"a": float("nan")})
    with pytest.raises(KeyError), files.replacing(file) as fresh:
        fresh.write(b"half")
        raise KeyError
    assert files.read_json(file) == {"a": 1} and os.listdir(tmp_path) == ["a.json"]


def test_what_is_no_object_is_damaged(tmp_path: Path) -> None:
    for content in (b"", b"{", b"null", b"[1]", b"\xff\xfe", b'{"a":' * 5000):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(DamagedError, match=r"a\.json: is damaged \("):
            files.read_json(tmp_path / "a.json")


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(OSError, match="not a regular file"):
            files.read_json(tmp_path / name)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        files.require_writable(tmp_path / "file" / "x")
    assert caught.value.filename == str(tmp_path / "file" / "x")


HOLD = """
import sys, errno
if sys.argv[2] == "soft":
    import fcntl
    def flock(*_): raise OSError(errno.{error}, "no locks")
    fcntl.flock = flock
from pathlib import Path
from cl_bench.base import files
try:
    with files.locked(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
except files.LockedError:
    print("busy")
"""


def holder(lock: Path, kind: str, error: str = "ENOLCK") -> subprocess.Popen[str]:
    """A process that holds a lock until it gets a line, or says that it is busy."""
    words = [sys.executable, "-c", HOLD.format(error=error), str(lock), kind]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(words, text=True, cwd=ROOT, **pipes)


@pytest.mark.parametrize(
    ("kind", "error"), [("hard", "ENOLCK"), ("soft", "ENOSYS"), ("soft", "ENOLCK")]
)
def test_one_process_holds_a_lock_and_it_dies_with_it(
    kind: str, error: str, tmp_path: Path
) -> None:
    """Also where the file system has no locks, which is said once."""
    lock = tmp_path / "lock"
    first = holder(lock, kind, error)
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    out, err = holder(lock, kind, error).communicate("")
    assert out == "busy\n"
    assert err.count("the file system has no locks") == (kind == "soft")
    first.kill()
    first.communicate()
    assert holder(lock, kind, error).communicate("\n")[0] == "held\n", "its process is gone"


def test_a_lock_is_released_where_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), files.locked(tmp_path / "lock"):
        raise KeyError
    with files.locked(tmp_path / "lock"):
        pass


def test_no_other_module_syncs_or_locks_files() -> None:
    """Atomic writes and locks are written once."""
    for path in sorted((ROOT / "cl_bench").rglob("*.py")):
        if path.name != "files.py":
            text = path.read_text()
            assert not re.search(r"\b(fcntl|filelock|fsync|os\.replace)\b", text), path
    assert errno.ENOLCK in files.NO_LOCKS

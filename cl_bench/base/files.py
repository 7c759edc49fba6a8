"""Files on disk: replaced atomically, locked by one process, opened only where they are regular.

Every file that a run, the data cache or a search leaves behind is written, locked and read by the
functions of this module. All of them raise OSError with the file's name in it, so that a full disk
or a read-only folder ends in one line (`errors.explain`).
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from filelock import FileLock, SoftFileLock, Timeout

from cl_bench.base.exceptions import one_line

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
_soft_folders: set[Path] = set()  # folders announced to have no hard locks


class LockedError(Exception):
    """Another process holds the lock; the message names the lock's file."""


class DamagedError(ValueError):
    """A file that this package wrote cannot be read; the message names it and says why."""


def absolute(path: str | os.PathLike[str]) -> Path:
    """`path` with `~` expanded, absolute and without `..`; symbolic links stay."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def require_writable(folder: Path) -> None:
    """Create the folder and a file in it; OSError where that is not possible."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise _named(error, folder) from None


def require_regular(path: Path) -> None:
    """OSError unless `path` is a regular file: reading a FIFO or a device would never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


@contextmanager
def fresh_path(path: Path) -> Iterator[Path]:
    """A path to write to, whose file takes the place of `path` when the block ends, synced.

    Where the block fails, `path` is as it was, and what was written is removed. One process at a
    time may replace a file: hold its lock.
    """
    fresh = path.with_name(f".{path.name}.tmp")
    try:
        fresh.unlink(missing_ok=True)  # left by a process that was killed, or a named pipe
        yield fresh
        with fresh.open("rb") as written:
            os.fsync(written.fileno())
        fresh.replace(path)
        sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _named(error, path) from None
        raise


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends (`fresh_path`)."""
    with fresh_path(path) as fresh, fresh.open("wb") as file:
        watched = _Watched(file)
        try:
            yield cast(BinaryIO, watched)
        except Exception:
            if watched.error is not None:  # PyTorch's writer hides what went wrong
                raise watched.error from None
            raise


class _Watched:
    """A file that keeps the first error of its writes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _named(error: OSError, path: Path) -> OSError:
    """The same error with the file's name, which failing writes do not have."""
    return OSError(error.errno, error.strerror or str(error), str(path))


def flush(file: BinaryIO) -> None:
    """Bring what was written to an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a whole file by `content`."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Replace a whole file by `content` in UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Replace a whole file by `content` as JSON; NaN is refused (see `record.json_value`)."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def append(file: BinaryIO, content: bytes, path: Path) -> None:
    """Write at the end of an open file; it is on the disk when this returns."""
    try:
        file.write(content)
        flush(file)
    except OSError as error:
        raise _named(error, path) from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; DamagedError where there is none in it."""
    try:
        require_regular(path)
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: is damaged ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise DamagedError(f"{path}: is damaged (no object, but {type(content).__name__})")
    return content


def sync(folder: Path) -> None:
    """Bring a folder's entries to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system can
            raise _named(error, folder) from None
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock in the file `path`; LockedError where another process does, unless `wait`.

    The lock ends with its process. Where the file system has no such locks, `<path>.soft` stands
    for one: a file that its process removes, or after it the next process of the same machine.
    """
    timeout = -1 if wait else 0
    try:
        lock: Any = FileLock(path, fallback_to_soft=False)
        try:
            lock.acquire(timeout=timeout)
        except OSError as error:
            if error.errno not in NO_LOCKS or isinstance(error, Timeout):
                raise
            lock = _soft(path)
            lock.acquire(timeout=timeout)
    except Timeout:
        raise LockedError(f"{path} is locked") from None
    try:
        yield
    finally:
        lock.release()


def _soft(path: Path) -> SoftFileLock:
    """The lock of a file system without locks; says so once for each folder."""
    soft = path.with_name(f"{path.name}.soft")
    if path.parent not in _soft_folders:
        _soft_folders.add(path.parent)
        print(
            f"{path.parent}: the file system has no locks; {soft.name} stands for one (remove it "
            "if its process ended on another machine)",
            file=sys.stderr,
        )
    return SoftFileLock(soft)

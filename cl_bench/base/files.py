"""Files on disk: replaced atomically, locked by one process, read only where they are regular.

Runs, the data cache and searches write, lock and read their files with these functions. All of them
raise OSError with the file's name, so that a full disk or a read-only folder gives a message of one
line (`config.errors.explain`).
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
_soft_folders: set[Path] = set()  # folders without locks that a message has named already


class LockedError(Exception):
    """Another process holds the lock; the message names the lock's file."""


class DamagedError(ValueError):
    """A file of this package cannot be read; the message names it and says why."""


def absolute(path: str | os.PathLike[str]) -> Path:
    """`path` as an absolute path without `~` and `..`; symbolic links are not resolved."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def user_cache_folder() -> Path:
    """The folder `cl_bench` in the user's cache folder, by the XDG specification."""
    user = os.environ.get("XDG_CACHE_HOME", "")
    return absolute(user if os.path.isabs(user) else "~/.cache") / "cl_bench"


def require_writable(folder: Path) -> None:
    """Create the folder if needed; raise OSError where no file can be created in it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise _with_path(error, folder) from None


def require_regular(path: Path) -> None:
    """Raise OSError unless `path` is a regular file: reading a pipe or a device may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


@contextmanager
def fresh_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path; its file is synced and replaces `path` when the block ends.

    Where the block fails, `path` is unchanged, and the temporary file is removed. Only one process
    at a time may replace a file: hold its lock.
    """
    fresh = path.with_name(f".{path.name}.tmp")
    try:
        fresh.unlink(missing_ok=True)  # of a process that was killed, or a named pipe
        yield fresh
        with fresh.open("rb") as written:
            os.fsync(written.fileno())
        fresh.replace(path)
        sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _with_path(error, path) from None
        raise


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yields a binary file that replaces `path` when the block ends, as `fresh_path` does."""
    with fresh_path(path) as fresh, fresh.open("wb") as file:
        watched = _Watched(file)
        try:
            yield cast(BinaryIO, watched)
        except Exception:
            if watched.error is not None:  # PyTorch's writer raises another error
                raise watched.error from None
            raise


class _Watched:
    """Wraps a file and remembers the first error of a write."""

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


def _with_path(error: OSError, path: Path) -> OSError:
    """The error with the file's name, which an error of a write lacks."""
    return OSError(error.errno, error.strerror or str(error), str(path))


def flush(file: BinaryIO) -> None:
    """Flush an open file, and sync it to the disk."""
    file.flush()
    os.fsync(file.fileno())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file by `content`."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Replace a file by `content` in UTF-8."""
    write_bytes(path, content.encode())


def write_unlocked(path: Path, content: str) -> None:
    """Replace a file that several processes may write at once: the last one wins.

    It is not synced, so that it may be damaged after a loss of power.
    """
    handle, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content.encode())
        os.replace(fresh, path)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Replace a file by `content` as JSON; NaN raises ValueError (see `record.json_value`)."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def append(file: BinaryIO, content: bytes, path: Path) -> None:
    """Append to an open file and sync it, so that the content is on the disk on return."""
    try:
        file.write(content)
        flush(file)
    except OSError as error:
        raise _with_path(error, path) from None


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; DamagedError where the file has none."""
    try:
        require_regular(path)
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: is damaged ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise DamagedError(f"{path}: is damaged (no object, but {type(content).__name__})")
    return content


def sync(folder: Path) -> None:
    """Sync a folder's entries, so that a file that was created or renamed survives a crash."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot
            raise _with_path(error, folder) from None
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock of the file `path` inside the block.

    Where another process holds it, wait for it if `wait`, else raise LockedError. The system
    releases the lock when the process ends. On a file system without locks, the existence of
    `<path>.soft` is the lock. Its process removes the file; if that process was killed, the next
    one on the same machine does.
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
    """The lock for a file system without locks; a message says so once for each folder."""
    soft = path.with_name(f"{path.name}.soft")
    if path.parent not in _soft_folders:
        _soft_folders.add(path.parent)
        print(
            f"{path.parent}: the file system has no locks; {soft.name} stands for one (remove it "
            "if its process ended on another machine)",
            file=sys.stderr,
        )
    return SoftFileLock(soft)

"""A place on disk where a data set may be: whether it is complete, and a hash of its state."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cl_bench.base.exceptions import UserError
from cl_bench.data.arrays import Source

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"}
SMALL = 4 * 2**20  # bytes: files up to this size are hashed
SHOWN = 5  # number of names that a message lists
NO_TEXT = {"Cc", "Cs"}  # Unicode categories: control characters, and bytes that are not UTF-8
NOTHING, FILE, FOLDER = "nothing", "a file", "a folder"
KINDS = {  # the words for a file type
    stat.S_IFREG: FILE,
    stat.S_IFDIR: FOLDER,
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True)
class Images:
    """All image files `depth` folders below `root`, without hidden ones."""

    root: Path
    depth: int  # 0: in `root` itself
    listed: bool = False  # a published list names them, so that any file ending is accepted


@dataclass(frozen=True)
class Origin:
    """One place and layout in which a data set is accepted."""

    place: Path
    layout: str
    read: Callable[[], Source]
    files: tuple[Path, ...] = ()  # single files: arrays and lists
    images: tuple[Images, ...] = ()

    @property
    def parts(self) -> list[tuple[Path, str]]:
        """Each path that must exist, and whether it must be a file or a folder."""
        return [(path, FILE) for path in self.files] + [(i.root, FOLDER) for i in self.images]

    @property
    def complete(self) -> bool:
        """Whether all files and folders of the layout exist."""
        return all(path_kind(path) == wanted for path, wanted in self.parts)


def path_kind(path: Path) -> str:
    """What a path leads to, in words: "a file", "a folder", "nothing", "a broken link", ..."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "a broken link" if os.path.islink(path) else NOTHING
    except OSError as error:
        return f"out of reach ({error.strerror})"
    return KINDS.get(stat.S_IFMT(mode), "a device")


def is_image(name: str) -> bool:
    """Whether a file name is that of an image, and not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGES


def subfolders(path: Path) -> list[Path]:
    """The folders in `path`, sorted by name, without hidden ones.

    Raises UserError for a broken link, which may stand for a folder, and for a name with control
    characters or not in UTF-8, which could not be printed or recorded as the name of a class.
    """
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    found = {path / name: path_kind(path / name) for name in names}
    for place, what in found.items():
        if what not in (FILE, FOLDER):
            raise UserError(f"{place} is {what}, neither a file nor a folder")
        if what == FOLDER and any(unicodedata.category(c) in NO_TEXT for c in place.name):
            raise UserError(
                f"{path}: the folder {place.name!r} is no name of a class: it is not in UTF-8, or "
                "has control characters"
            )
    return [place for place, what in found.items() if what == FOLDER]


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted by name, and by number where all names are numbers: 2 is before 10."""
    names = [*names]
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if numbers else sorted(names)


def describe_obstacle(origins: Sequence[Origin]) -> str:
    """A sentence on the first path that exists but is not the expected file; "" if none."""
    for path, wanted in _parts(origins, FILE):
        what = path_kind(path)
        if what not in (NOTHING, wanted):
            return f"{path} is {what}, not {wanted}"
    return ""


def describe_found(origins: Sequence[Origin]) -> str:
    """A sentence on what exists at the places of incomplete origins; "" if nothing does."""
    wanted = [(o.place, FOLDER) for o in origins if o.place not in o.files]
    for path, expected in [*wanted, *_parts(origins, FOLDER), *_parts(origins, FILE)]:
        what = path_kind(path)
        if what not in (NOTHING, expected):
            return f"{path} is {what}, not {expected}"
    for origin in origins:
        if any(path_kind(path) != NOTHING for path, _ in origin.parts):
            return f"{_missing(origins, origin.place)} not found in {origin.place}"
    there = [o.place for o in origins if path_kind(o.place) == FOLDER]
    return f"{there[0]} {describe_folder(there[0])}" if there else ""


def _parts(origins: Sequence[Origin], wanted: str) -> Iterator[tuple[Path, str]]:
    return ((path, what) for o in origins for path, what in o.parts if what == wanted)


def _missing(origins: Sequence[Origin], place: Path) -> str:
    """The first missing path of each layout in `place`, in words: "test or val"."""
    lacking = [
        next(str(path.relative_to(place)) for path, _ in origin.parts if path_kind(path) == NOTHING)
        for origin in origins
        if origin.place == place and any(path_kind(path) != NOTHING for path, _ in origin.parts)
    ]
    return " or ".join(dict.fromkeys(lacking))


def describe_folder(folder: Path) -> str:
    """The content of a folder in words: "is empty", "has 2 folders (cat, dog) and 9 files (.gif)".

    Hidden entries are not counted.
    """
    with os.scandir(folder) as entries:
        shown = sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))
    folders = [name for name, is_folder in shown if is_folder]
    files = [name for name, is_folder in shown if not is_folder]
    endings = sorted({os.path.splitext(name)[1] or name for name in files})
    counts = [_counted(folders, "folder", folders)] if folders else []
    counts += [_counted(files, "file", endings)] if files else []
    return f"has {' and '.join(counts)}" if counts else "is empty"


def _counted(entries: list[str], noun: str, names: list[str]) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    plural = "" if len(entries) == 1 else "s"
    return f"{len(entries)} {noun}{plural} ({', '.join(names[:SHOWN])}{more})"


def fingerprint(origin: Origin) -> str:
    """A hash of the layout, and of the name, size and modification time of every file in it.

    Of a single file of at most `SMALL` bytes, the content is hashed in place of the time, so that
    two installations of the same package agree. Names are relative to the place, so that a data set
    that was moved keeps its prepared file.
    """
    sha = hashlib.sha256(origin.layout.encode())
    for path in origin.files:
        info = path.stat()
        whole = info.st_size <= SMALL
        mark = hashlib.sha256(path.read_bytes()).hexdigest() if whole else info.st_mtime_ns
        sha.update(os.fsencode(f"\n{path.parent.name}/{path.name} {info.st_size} {mark}"))
    for images in origin.images:
        name = os.path.relpath(images.root, origin.place)
        for lines in _states(str(images.root), name, images.depth, images.listed):
            sha.update(os.fsencode(lines))
    return sha.hexdigest()


def _states(folder: str, name: str, depth: int, listed: bool) -> Iterator[str]:
    """For each folder `depth` levels below `folder`: its name, and a line for each of its images.

    `name` takes the place of `folder` in the lines. There may be a million files, so that each file
    costs only one entry of `scandir` and one `stat`.
    """
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    if depth:
        for entry in found:
            if not entry.name.startswith(".") and entry.is_dir():
                yield from _states(entry.path, f"{name}/{entry.name}", depth - 1, listed)
    else:
        read = [entry for entry in found if listed or is_image(entry.name)]
        yield "\n".join([f"\n{name}/", *map(_state, read)])


def _state(entry: os.DirEntry[str]) -> str:
    try:
        info = entry.stat()
    except OSError:  # a broken link, which is reported when it is read
        return f"{entry.name} is out of reach"
    return f"{entry.name} {info.st_size} {info.st_mtime_ns}"

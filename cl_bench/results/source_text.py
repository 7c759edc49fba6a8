"""What the text of a Python module says: its hash without comments and docstrings, and its imports.

Parsing the hundred modules of a run takes a third of a second. What was found is therefore kept for
the next process, by the SHA-256 of the text, in the user's cache folder. Without that file, or with
a damaged one, the modules are parsed again.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from cl_bench.base import files

KEPT = 1000  # texts; a run has about a hundred


class Import(NamedTuple):
    """`import module`, or `from module import names` with `level` dots before the module."""

    level: int
    module: str
    names: tuple[str, ...]


class Parsed(NamedTuple):
    """What is found in a text."""

    sha256: str  # the first 16 digits, of the text without comments and docstrings
    imports: tuple[Import, ...]


class ParsedTexts:
    """What is found in texts, by their SHA-256: read from a file, and written for other processes.

    The name of the file has the version of Python and a hash of this module, because what is found
    depends on both.
    """

    def __init__(self) -> None:
        self._known: dict[str, Any] | None = None  # None before the file is read
        self._changed = False  # since it was read or written

    def parsed(self, text: bytes) -> Parsed:
        """What is found in a text; one that is no Python is hashed whole, and imports nothing."""
        if self._known is None:
            self._known = _read(self.file)
        name = hashlib.sha256(text).hexdigest()
        found = _checked(self._known.get(name))
        if found is None:
            try:
                found = parse(text)
            except (SyntaxError, ValueError):  # a file that is being edited
                return Parsed(name[:16], ())
            self._known[name] = found
            self._changed = True
        return found

    def write(self) -> None:
        """Write the file if something new was found, and if it can be written."""
        if not self._changed or self._known is None:
            return
        self._changed = False
        newest = dict([*self._known.items()][-KEPT:])
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            files.write_unlocked(self.file, json.dumps(newest))

    @property
    def file(self) -> Path:
        own = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
        return files.user_cache_folder() / f"sources-{platform.python_version()}-{own}.json"


def parse(text: bytes) -> Parsed:
    """Parse a module; raises SyntaxError or ValueError where it is no Python."""
    tree = ast.parse(text)
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [Import(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            imports.append(Import(node.level, node.module or "", names))
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body[0] = ast.Pass()
    sha256 = hashlib.sha256(ast.unparse(tree).encode()).hexdigest()
    return Parsed(sha256[:16], tuple(imports))


def _read(file: Path) -> dict[str, Any]:
    with suppress(OSError, files.DamagedError):
        return files.read_json(file)
    return {}


def _checked(entry: Any) -> Parsed | None:
    """An entry of the file as it was before it was written; None for anything else."""
    try:
        sha256, imports = entry
        found = tuple(Import(level, module, tuple(names)) for level, module, names in imports)
    except (TypeError, ValueError):
        return None
    texts = [sha256, *(text for level, module, names in found for text in (module, *names))]
    right = all(isinstance(text, str) for text in texts) and len(sha256) == 16
    return Parsed(sha256, found) if right and all(type(i.level) is int for i in found) else None

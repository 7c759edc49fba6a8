"""Which source files the numbers of a run are made of, so that a record says what code made it.

A run's sources are the modules of its config's targets and of the training loop, and all that these
import, in their own packages: whether a file is tracked by git, installed, or neither. PyTorch and
torchvision are told by their versions instead. A file counts by its syntax tree without docstrings,
so that an edited comment is not other code.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cl_bench import __version__

PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "wandb")
BY_VERSION = ("torch", "torchvision")  # told by `software`, not by their files
ENGINE = ("cl_bench.config.build", "cl_bench.engine.experiment", "cl_bench.core.runtime")
NO_NUMBERS = {  # modules of ours that check, name or store a run, and cannot change a number of it
    *("cl_bench.base.bounds", "cl_bench.base.files", "cl_bench.results.record"),
    *("cl_bench.results.source_code", "cl_bench.results.tracking"),
    *(f"cl_bench.config.{name}" for name in ("combinations", "nodes", "hydra_errors", "schema")),
}


@dataclass(frozen=True)
class Code:
    """The sources of a run."""

    sha256: str  # of all of them
    files: dict[str, str]  # module name to the first 16 digits of its SHA-256

    def differences(self, other: dict[str, Any]) -> str:
        """The modules in which `other`, the `code` of a record, differs; at most three by name."""
        theirs = other.get("files") or {}
        names = [n for n in sorted({*self.files, *theirs}) if self.files.get(n) != theirs.get(n)]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return ", ".join(names[:3]) + more if names else "an earlier part of the run"

    def joined(self, earlier: list[dict[str, Any]]) -> dict[str, Any]:
        """This code for a record, with the codes that made earlier parts of the run."""
        if not earlier:
            return asdict(self)
        every = [*(code["sha256"] for code in earlier), self.sha256]
        name = hashlib.sha256("\n".join(every).encode()).hexdigest()
        return {**asdict(self), "sha256": name, "parts": every}


def code_of(targets: Iterable[Any]) -> Code:
    """The code of a run from what its config's `_target_`s are: classes and functions."""
    roots = {target.__module__ for target in targets} | {*ENGINE}
    found: dict[str, str] = {}
    left = sorted(roots)
    while left:
        name = left.pop()
        top = name.partition(".")[0]
        file = None if top in BY_VERSION or name in NO_NUMBERS else _file(name)
        if file is None or name in found:
            continue
        found[name], imported = _read(name, file)
        left += [n for n in imported if n.partition(".")[0] == top and n not in found]
    lines = [f"{name} {sha}" for name, sha in sorted(found.items())]
    whole = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return Code(whole, dict(sorted(found.items())))


@cache
def _file(name: str) -> Path | None:
    """The Python file of a module, found without importing it; None where there is none."""
    top, *rest = name.split(".")
    spec = find_spec(top)
    if spec is None:
        return None
    if not spec.submodule_search_locations:
        is_source = not rest and spec.origin is not None and spec.origin.endswith(".py")
        return Path(spec.origin) if is_source and spec.origin else None
    for folder in spec.submodule_search_locations:
        place = Path(folder).joinpath(*rest)
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if file.is_file():
                return file
    return None


@cache
def _read(name: str, file: Path) -> tuple[str, tuple[str, ...]]:
    """The hash of a module's source, and the names that it may import."""
    tree = ast.parse(file.read_bytes())
    imported = tuple(_imported(tree, name, file.name == "__init__.py"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body[0] = ast.Pass()
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16], imported


def _imported(tree: ast.Module, name: str, package: bool) -> Iterator[str]:
    """Modules that a module's import statements may name, and the packages that hold it."""
    parents = name.split(".")
    yield from (".".join(parents[:i]) for i in range(1, len(parents)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + package] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def software() -> dict[str, Any]:
    """Versions, and the commit where the package runs from a git checkout.

    The commit ends with -dirty where a file of the package or of conf differs from it, also one
    that git does not track.
    """
    versions = {"cl_bench": __version__} | {name: version(name) for name in PACKAGES}
    return {"commit": commit(), "python": platform.python_version(), "versions": versions}


def commit() -> str | None:
    """The commit of this checkout; None outside of one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or not shutil.which("git"):
        return None
    head = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=all", "--", "cl_bench", "conf")
    return f"{head}-dirty" if head and changed else head or None


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

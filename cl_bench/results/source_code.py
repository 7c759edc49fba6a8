"""Identifies the code that made the numbers of a run, by hashes of its sources.

The code of a run is the modules of its config's `_target_`s and of the engine, and every module
that these import, whether git tracks it or not. A module is hashed without its comments and
docstrings, so that editing these makes no other code. Of an installed package (PyTorch, NumPy, what
a method of the user's imports) the version counts, unless a `_target_` is in the package.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cl_bench import __version__
from cl_bench.results.source_text import Import, ParsedTexts

PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "wandb")
ENGINE = "cl_bench.engine.execution"  # every run is made by it and what it imports
NUMERICAL = {"torch", "torchvision", "timm", "numpy"}  # installed packages that change our numbers
INSTALLED = {"site-packages", "dist-packages"}
NOT_COUNTED = (  # our modules that check, name, show or store a run, and change no number of it
    "cl_bench.base.",
    *(f"cl_bench.config.{name}" for name in ("check", "combinations", "command", "compose")),
    *(f"cl_bench.config.{name}" for name in ("errors", "folders", "hydra_errors", "interfaces")),
    *(f"cl_bench.config.{name}" for name in ("name", "nodes", "optimizer_trial", "option_types")),
    *(
        f"cl_bench.config.{name}"
        for name in ("schema", "size", "tuned", "arguments", "unused_options")
    ),
    *(f"cl_bench.results.{name}" for name in ("figures", "folder", "source_code", "source_text")),
    *(f"cl_bench.results.{name}" for name in ("terminal", "tracking")),
)
MAX_NAMED = 3  # modules that are named in a text
_texts = ParsedTexts()
_contents: dict[str, bytes] = {}  # the source of each module, as this process first found it


def listed(modules: list[str]) -> str:
    """The first modules as a text, `a, b, c and 4 more`; empty for none."""
    more = f" and {len(modules) - MAX_NAMED} more" if len(modules) > MAX_NAMED else ""
    return ", ".join(modules[:MAX_NAMED]) + more


@dataclass(frozen=True)
class Code:
    """The code of a run: hashes of its modules, and versions of the packages that they import."""

    sha256: str  # of the two dictionaries below
    files: dict[str, str]  # module -> first 16 digits of its SHA-256
    packages: dict[str, str] = field(default_factory=dict)  # package -> version

    def differences(self, other: dict[str, Any]) -> str:
        """The modules and packages in which `other`, the `code` of a record, differs, as a text.

        At most three are named. Without any, an earlier part of a continued run differs.
        """
        names = []
        for mine, theirs in ((self.files, "files"), (self.packages, "packages")):
            known = other.get(theirs) or {}
            names += [n for n in sorted({*mine, *known}) if mine.get(n) != known.get(n)]
        return listed(names) or "an earlier part of the run"

    def with_earlier(self, earlier: list[dict[str, Any]]) -> dict[str, Any]:
        """The field `code` of a record, with the codes of a run's earlier parts, oldest first."""
        if not earlier:
            return asdict(self)
        every = [*(code["sha256"] for code in earlier), self.sha256]
        name = hashlib.sha256("\n".join(every).encode()).hexdigest()
        return {**asdict(self), "sha256": name, "parts": every}


def code_of(targets: Iterable[Any]) -> Code:
    """The code of a run whose config has these classes and functions as its `_target_`s."""
    files, packages = with_imports({ENGINE, *(target.__module__ for target in targets)})
    versions = {top: found for top in sorted(packages) if (found := _version(top)) is not None}
    files = dict(sorted(files.items()))
    lines = [f"{name} {value}" for name, value in (*files.items(), *versions.items())]
    return Code(hashlib.sha256("\n".join(lines).encode()).hexdigest(), files, versions)


def with_imports(roots: set[str]) -> tuple[dict[str, str], set[str]]:
    """The hashes of these modules and of those that they import, and the packages imported."""
    own = {name.partition(".")[0] for name in roots} - NUMERICAL
    _remember_loaded(own)
    files: dict[str, str] = {}
    packages: set[str] = set()
    left = sorted(roots)
    while left:
        name = left.pop()
        top = name.partition(".")[0]
        file = None if name in files or name.startswith(NOT_COUNTED) else source_file(name)
        if file is not None and (top in own or not INSTALLED & {*file.parts}):
            files[name], imported = read_source(name, file)
            left += [n for n in imported if n.partition(".")[0] not in sys.stdlib_module_names]
            tops = {n.partition(".")[0] for n in imported} - own
            packages |= tops & NUMERICAL if top == "cl_bench" else tops
    _texts.write()
    return files, packages


def _remember_loaded(packages: set[str]) -> None:
    """Keep the present sources of all loaded modules of these packages.

    A later job of the same process runs the modules as they were loaded, even if a file was edited
    in between.
    """
    for name in [*sys.modules]:
        if name.partition(".")[0] in packages and name not in _contents:
            file = source_file(name)
            if file is not None:
                _contents[name] = file.read_bytes()


@cache
def _version(top: str) -> str | None:
    """The version of the installed package with the top-level module `top`; None without one."""
    if top in sys.stdlib_module_names:
        return None
    distributions = {top: [top]} if top in NUMERICAL else packages_distributions()
    found = distributions.get(top)
    return version(found[0]) if found else None


def find_top(top: str) -> ModuleSpec | None:
    """How a package or a single module would be imported; None where it is not found."""
    try:
        return find_spec(top)
    except (ImportError, ValueError):
        return None


def source_file(name: str) -> Path | None:
    """The source file of a module, found without importing it; None where there is none."""
    return _source_file(name, tuple(sys.path))


@cache
def _source_file(name: str, search_path: tuple[str, ...]) -> Path | None:
    """`source_file`; the search path grows when a folder of options is added."""
    top, *rest = name.split(".")
    spec = find_top(top)
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
def read_source(name: str, file: Path) -> tuple[str, tuple[str, ...]]:
    """The hash of a module's source, and the modules that it may import."""
    found = _texts.parsed(_contents.setdefault(name, file.read_bytes()))
    return found.sha256, tuple(_imported(found.imports, name, file.name == "__init__.py"))


def _imported(imports: Iterable[Import], name: str, package: bool) -> Iterator[str]:
    """The modules that import statements may name, and the packages that the module is in."""
    parents = name.split(".")
    yield from (".".join(parents[:i]) for i in range(1, len(parents)))
    for level, own, names in imports:
        above = parents[: len(parents) - level + package] if level else []
        module = ".".join([*above, *([own] if own else [])])
        yield module
        yield from (f"{module}.{each}" for each in names)


def software_versions() -> dict[str, Any]:
    """The commit, and the versions of Python, of this package and of the most important others."""
    versions = {"cl_bench": __version__} | {name: version(name) for name in PACKAGES}
    return {"commit": git_commit(), "python": platform.python_version(), "versions": versions}


def git_commit() -> str | None:
    """The commit of the git checkout that the package runs from; None outside of a checkout.

    It ends with -dirty where a file in cl_bench/ or conf/ differs from it or is not tracked.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or not shutil.which("git"):
        return None
    head = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=all", "--", "cl_bench", "conf")
    return f"{head}-dirty" if head and changed else head or None


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

"""The folders of config options: conf/ of this package, and those of other packages.

A package has its options in `conf/` within itself or beside itself, in the groups of ours:
`conf/method/anchor.yaml` is `method=anchor`. It is found where it is installed with an entry point,

    [project.entry-points."cl_bench.conf"]
    my_package = "my_package"

or by the option `--config-dir <folder>` of every command. That option is kept in the environment
(`CL_BENCH_CONFIG_DIR`, several folders are separated as in PATH), so that the processes that a
sweep starts have it, too. The folder that contains the package with or beside such a `conf/` is put
at the end of Python's search path, so that the `_target_`s of its options can be imported.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from cl_bench.base.exceptions import UserError, one_line
from cl_bench.base.files import absolute
from cl_bench.config.nodes import CONF
from cl_bench.config.option_files import ParsedFiles, use_parsed

ENTRY_POINTS = "cl_bench.conf"
VARIABLE = "CL_BENCH_CONFIG_DIR"
OPTIONS = ("--config-dir", "-cd")
PROVIDER = "cl_bench"  # what Hydra writes down of the folders beside conf/


def all_folders() -> tuple[Path, ...]:
    """The folders of options, that of this package first.

    Raises UserError where a folder is missing, has none of the groups, or has an option of a name
    that another folder has.
    """
    found = _checked(_in_environment())
    make_importable()
    return found


def make_importable() -> None:
    """Put the packages of the folders of `--config-dir` on Python's search path."""
    for folder in map(Path, _in_environment()):
        inside = (folder.parent / "__init__.py").is_file()
        place = str(folder.parents[1] if inside else folder.parent)
        if place not in sys.path:
            sys.path.append(place)


def _in_environment() -> tuple[str, ...]:
    typed = os.environ.get(VARIABLE, "").split(os.pathsep)
    return tuple(dict.fromkeys(str(absolute(part)) for part in typed if part))


@cache
def _checked(typed: tuple[str, ...]) -> tuple[Path, ...]:
    others = {f"{ENTRY_POINTS}={e.value}": _folder_of(e) for e in _entry_points()}
    others |= {f"{OPTIONS[0]} {folder}": absolute(folder) for folder in typed}
    groups = {entry.name for entry in CONF.iterdir() if entry.is_dir()}
    owners = dict.fromkeys(_names(CONF), CONF)
    for source, folder in others.items():
        if not folder.is_dir():
            raise UserError(f"{source}: no such folder")
        if not any((folder / group).is_dir() for group in groups):
            known = ", ".join(sorted(groups))
            raise UserError(f"{source}: has no options; they are in the folders {known}")
        for name in _names(folder):
            if owners.setdefault(name, folder) != folder:
                raise UserError(f"{source}: {name} is in {owners[name]} too; give it another name")
    return tuple(dict.fromkeys([CONF, *others.values()]))


def _entry_points() -> list[EntryPoint]:
    return sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.value)


def _folder_of(entry: EntryPoint) -> Path:
    """The folder `conf` within the package that an entry point names, or beside it."""
    try:
        spec = find_spec(entry.module)
    except (ImportError, ValueError) as error:
        raise UserError(f"{ENTRY_POINTS}={entry.value}: {one_line(error)}") from None
    if spec is None or spec.origin is None:
        raise UserError(f"{ENTRY_POINTS}={entry.value}: no such package")
    package = Path(spec.origin).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def _names(folder: Path) -> Iterator[str]:
    """The options in a folder, such as method/er.yaml."""
    return (file.relative_to(folder).as_posix() for file in folder.rglob("*.yaml"))


def is_group(name: str) -> bool:
    """Whether a folder of options has this group."""
    return bool(name) and any((folder / name).is_dir() for folder in all_folders())


def option_files(group: str, below: bool = False) -> list[Path]:
    """The YAML files of a group in all folders, by their names; `below`: of its subfolders, too."""
    pattern = "**/*.yaml" if below else "*.yaml"
    found = [file for folder in all_folders() for file in (folder / group).glob(pattern)]
    return sorted(found, key=lambda file: (file.stem, file))


def option_names(group: str) -> list[str]:
    """The names of a group's options, without those in subfolders."""
    return [file.stem for file in option_files(group)]


def option_file(group: str, name: str) -> Path | None:
    """The YAML file of an option; None where there is none."""
    places = (folder / group / f"{name}.yaml" for folder in all_folders())
    return next((place for place in places if place.is_file()), None)


def texts_with_bases(group: str, name: str) -> list[str]:
    """The text of an option's YAML file, after the texts of the options in its defaults."""
    file = option_file(group, name)
    text = file.read_text() if file is not None else ""
    bases = re.findall(rf"^  - (\w+)(?:@(?:{group}|_global_))?$", text, flags=re.MULTILINE)
    own = [base for base in bases if base != "_self_"]
    return [*(part for base in own for part in texts_with_bases(group, base)), text]


def take_options(words: list[str]) -> list[str]:
    """The words of a command line without `--config-dir`, whose folder is added to the others.

    Raises UserError where a folder is missing or unusable.
    """
    left, given = [], list[str]()
    rest = iter(words)
    for word in rest:
        option, assigned, value = word.partition("=")
        if option in OPTIONS:
            given.append(str(absolute(value if assigned else next(rest, ""))))
        else:
            left.append(word)
    if given:
        wanted = tuple(dict.fromkeys([*_in_environment(), *given]))
        _checked(wanted)  # before it is kept
        os.environ[VARIABLE] = os.pathsep.join(wanted)
    all_folders()
    return left


def options_for(given: Iterable[Path]) -> list[str]:
    """The options that a command needs to find these folders; entry points need none."""
    return [f"{OPTIONS[0]}={folder}" for folder in given if folder not in _installed()]


@cache
def _installed() -> set[Path]:
    """The folders of options that entry points name."""
    return {_folder_of(entry) for entry in _entry_points()}


class _OptionFolders(SearchPathPlugin):
    """Adds the other packages' folders to those that Hydra searches for options."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append each folder; Hydra calls this before it composes a config."""
        for folder in all_folders()[1:]:
            search_path.append(provider=PROVIDER, path=str(folder))
        use_parsed(search_path)


def register() -> None:
    """Make Hydra search all folders of options, and Python their packages."""
    Plugins.instance().register(_OptionFolders)
    Plugins.instance().register(ParsedFiles)
    all_folders()

"""Searches for several methods by one command: each with its own space, all with the same budget.

A file of spaces holds for each method the keys to search with their values in the notation of
`grid`; what stands under `every` is searched for all methods, unless a method gives the key other
values or `null`. A method without any key has one trial, with the values of the command itself. A
key with one value has it at all points: something that this method needs beside the protocol.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from cl_bench.base.exceptions import UserError
from cl_bench.base.files import DamagedError
from cl_bench.config.compose import composed, labels_of
from cl_bench.config.nodes import PACKAGE, read_yaml
from cl_bench.tuning.search import DEFAULTS, Search

SHIPPED = PACKAGE / "tuned_values" / "spaces"
EVERY = "every"  # the entry of a file of spaces that holds for all methods


def searches(arguments: list[str]) -> list[Search]:
    """The searches of a command line, one for each method that `method=a,b,...` names.

    With `spaces=<name>` each has the keys and values of its method in that file. All are checked
    before this returns; UserError where one is wrong.
    """
    named = [a for a in arguments if a.startswith("method=")]
    spaces = [a.partition("=")[2] for a in arguments if a.startswith("spaces=")]
    common = [a for a in arguments if not a.startswith(("spaces=", "method="))]
    if len(named) > 1 or len(spaces) > 1:
        twice = named if len(named) > 1 else spaces
        raise UserError(f"{twice[1]}: the same is given twice, {twice[0]} and {twice[1]}")
    if not named and not spaces:
        return [Search.parse(arguments)]
    if spaces and any(a.startswith("grid=") for a in common):
        raise UserError(f"spaces={spaces[0]}: is given with grid=; leave one of them out")
    methods = named[0].partition("=")[2].split(",") if named else [_method_of(common)]
    if len(set(methods)) < len(methods):
        raise UserError(f"{named[0]}: a method is listed twice")
    found = read_spaces(spaces[0]) if spaces else None
    return [_search(common, method, found, spaces) for method in methods]


def _search(
    common: list[str], method: str, found: dict[str, dict[str, str | None]] | None, file: list[str]
) -> Search:
    """The search for one method; an error in its space names the file and the method."""
    grid = _grid(found, method)
    try:
        return Search.parse([*common, f"method={method}", *grid], from_file=found is not None)
    except UserError as error:
        if not file:
            raise
        raise UserError(f"spaces={file[0]}, {method}: {error}") from None


def read_spaces(name: str) -> dict[str, dict[str, str | None]]:
    """The spaces of a file of the package, by its name, or of the user's own: `name` ends in .yaml.

    Raises UserError where there is none, or where it does not hold keys and values of methods.
    """
    file = Path(name) if name.endswith(".yaml") else SHIPPED / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.yaml")))
        raise UserError(f"spaces={name}: no such file; there are {known}, or name a .yaml file")
    try:
        found = read_yaml(file)
    except DamagedError as error:
        raise UserError(f"spaces={name}: cannot be read as YAML: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"spaces={name}: must map methods to the keys that are searched")
    for method, space in found.items():
        if not isinstance(space, dict) or not all(
            isinstance(key, str) and (value is None or isinstance(value, str))
            for key, value in space.items()
        ):
            raise UserError(
                f"spaces={name}: {method} must map keys to values in the notation of grid=, "
                "such as optimizer.lr: 0.01,0.1"
            )
    return found


def _grid(spaces: dict[str, dict[str, str | None]] | None, method: str) -> list[str]:
    """The argument `grid=...` of a method; empty without a file of spaces, or without a key."""
    if spaces is None:
        return []
    if method not in spaces or method == EVERY:
        known = ", ".join(sorted(spaces.keys() - {EVERY}))
        more = (
            f"; the line `{method}: {{}}` adds it with those of {EVERY}" if EVERY in spaces else ""
        )
        raise UserError(f"method={method}: the spaces do not have it; they have {known}{more}")
    space = spaces.get(EVERY, {}) | spaces[method]
    words = [f"{key}={values}" for key, values in space.items() if values is not None]
    return ["grid=" + shlex.join(words)] if words else []


def _method_of(overrides: list[str]) -> str:
    config = [word for word in overrides if word.partition("=")[0] not in DEFAULTS]
    return labels_of(composed(*config, with_hydra=True).hydra)[2]

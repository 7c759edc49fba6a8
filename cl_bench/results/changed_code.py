"""Tells what has become of the code of a record: which of its modules were changed since."""

from __future__ import annotations

from typing import Any

from cl_bench.config.nodes import target_nodes
from cl_bench.results.source_code import find_top, read_source, source_file, with_imports

# The modules that change a network after its class has made it: they fold, linearise and adopt it.
PREPARING = ("cl_bench.models.prepare", "cl_bench.models.foreign")


def changed_since(code: dict[str, Any]) -> list[str]:
    """The modules in the `code` of a record whose sources have changed.

    A module that its package no longer has is one of them; those of a package that is not found
    here are in `not_found`.
    """
    lost = {*not_found(code)}
    changed = []
    for name, before in (code.get("files") or {}).items():
        file = source_file(name)
        if name not in lost and (file is None or read_source(name, file)[0] != before):
            changed.append(name)
    return changed


def changed_network_code(code: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Those modules of `changed_since` that compute the logits of a recorded run's network.

    They are the classes of the network and the transform, and what these import. The versions of
    installed packages (`code["packages"]`) are not compared.
    """
    parts = {"model": config["model"], "transform": config["dataset"].get("transform")}
    names = [*PREPARING, *(node["_target_"] for _, node in target_nodes(parts, ""))]
    files, _ = with_imports({module for name in names if (module := _module_of(name))})
    return [name for name in changed_since(code) if name in files]


def _module_of(name: str) -> str | None:
    """The module that a dotted name begins with; None where none is found."""
    while name and source_file(name) is None:
        name = name.rpartition(".")[0]
    return name or None


def not_found(code: dict[str, Any]) -> list[str]:
    """The modules in the `code` of a record whose package, or single file, is not found here.

    A folder that merely has the name of the package, with none of its modules, is not the package.
    """
    tops = {name: name.partition(".")[0] for name in code.get("files") or {}}
    there = {top for name, top in tops.items() if source_file(name) is not None}
    there |= {top for top in {*tops.values()} - there if _has_file(top)}
    return [name for name, top in tops.items() if top not in there]


def _has_file(top: str) -> bool:
    spec = find_top(top)
    return spec is not None and spec.origin is not None

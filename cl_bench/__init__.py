"""cl_bench: a continual-learning benchmark, one command a run, and from Python the names in `API`.

Their types are in `__init__.pyi`. They are imported when they are asked for, because the commands
need little of them, and because what a run imports is the code that its record names.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
API = ("Run", "UserError", "compare", "load", "run", "runs")


def __getattr__(name: str) -> Any:
    """Import one of the names in `API`."""
    if name == "run":
        return import_module("cl_bench.run")  # the module of the command, which can be called
    if name == "UserError":
        return import_module("cl_bench.base.exceptions").UserError
    if name in API:
        return getattr(import_module("cl_bench.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *API]

"""cl_bench: a continual-learning benchmark, one command a run; from Python the names in __all__."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_bench.api import Run, compare, load, run, runs
    from cl_bench.base.exceptions import UserError

__version__ = "0.1.0"
__all__ = ["Run", "UserError", "compare", "load", "run", "runs"]


def __getattr__(name: str) -> Any:
    """Import what Python code asks for when it is asked for: the commands need little of it."""
    if name == "run":
        return import_module("cl_bench.run")  # the module of the command, which can be called
    if name == "UserError":
        return import_module("cl_bench.base.exceptions").UserError
    if name in __all__:
        return getattr(import_module("cl_bench.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

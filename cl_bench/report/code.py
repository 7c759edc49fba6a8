"""Which rows of a table were made by different code, or by sources that were changed since."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cl_bench.results.source_code import changed_since

SHOWN = 3  # modules that are named


def unlike(runs: list[dict[str, Any]]) -> str:
    """Where runs were made by different code, the modules that differ; else nothing."""
    codes = [run.get("code") or {} for run in runs]
    parts = any("parts" in code for code in codes)
    if len({code.get("sha256") for code in codes}) < 2 and not parts:
        return ""
    files = [code.get("files") or {} for code in codes]
    names = sorted({name for own in files for name in own})
    return _named(n for n in names if len({str(own.get(n)) for own in files}) > 1) or "within a run"


def changed(runs: list[dict[str, Any]]) -> str:
    """The modules that made some of the runs, and are not as they were then; else nothing."""
    return _named(sorted({name for run in runs for name in changed_since(run.get("code") or {})}))


def _named(modules: Iterable[str]) -> str:
    names = list(modules)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

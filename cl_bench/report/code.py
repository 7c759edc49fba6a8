"""Which modules differ between the runs of a row, or have changed since its runs were made."""

from __future__ import annotations

from collections.abc import Iterable

from cl_bench.report.runs import Run
from cl_bench.results.source_code import changed_since

MAX_NAMED = 3  # modules


def differing_modules(runs: list[Run]) -> str:
    """The modules that differ where runs were made by different code; empty otherwise."""
    codes = [run.record.get("code") or {} for run in runs]
    parts = any("parts" in code for code in codes)  # code that changed while a run was resumed
    if len({code.get("sha256") for code in codes}) < 2 and not parts:
        return ""
    files = [code.get("files") or {} for code in codes]
    names = sorted({name for hashes in files for name in hashes})
    differing = [n for n in names if len({str(hashes.get(n)) for hashes in files}) > 1]
    return _listed(differing) or "within a run"


def changed_modules(runs: list[Run]) -> str:
    """The modules that made some of the runs and have changed since; empty where none has."""
    codes = [run.record.get("code") or {} for run in runs]
    return _listed(sorted({name for code in codes for name in changed_since(code)}))


def _listed(modules: Iterable[str]) -> str:
    names = list(modules)
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more

"""The search from its command line to the file that `tuned=true` reads."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from cl_bench.base import files
from cl_bench.base.escape import visible
from cl_bench.base.exceptions import DIVERGED, UserError
from cl_bench.config import tuned
from cl_bench.config.compose import composed, labels_of
from cl_bench.config.nodes import deciding
from cl_bench.results import source_code
from cl_bench.tuning.optuna_search import run_optuna
from cl_bench.tuning.search import Search
from cl_bench.tuning.spaces import searches
from cl_bench.tuning.trials import Trial, run_points


def tune(arguments: list[str]) -> None:
    """Run the searches that `arguments` describe, one after the other; each writes its best point.

    Raises UserError where the arguments of any are wrong, before anything is run.
    """
    asked = searches(arguments)
    for search in asked:
        files.require_writable(_values_file(search).parent)
    for search in asked:
        _tune_one(search)


def _tune_one(search: Search) -> None:
    """Run one search, print its points, and write the best one.

    Raises UserError where a run fails or training diverges at all points; nothing is written then.
    """
    import pandas as pd

    keys = ", ".join(axis.key for axis in search.axes) or "no key is searched"
    print(f"{_values_file(search).stem}: {keys}")
    by_optuna = search.strategy == "optuna" and not search.has_one_point
    run = run_optuna if by_optuna else run_points
    trials = run(search, lambda trial: print(trial.row(), file=sys.stderr))
    ranked = sorted(trials, key=lambda trial: -trial.score)  # of equal scores the first stays first
    print(pd.DataFrame([trial.row() for trial in ranked]).to_string(index=False))
    diverged = sum(trial.error is not None for trial in trials)
    if diverged == len(trials):
        raise UserError(f"training {DIVERGED} at all {diverged} points: nothing was written")
    if diverged:
        print(f"training {DIVERGED} at {diverged} of {len(trials)} points, which are skipped")
    print(f"best: {ranked[0].row()}")
    for line in at_ends(ranked):
        print(line)
    print(visible(f"files: {write_best(search, ranked)} (used with tuned=true)"))


def at_ends(ranked: list[Trial]) -> list[str]:
    """A line for each key whose best value is the lowest or the highest of at least three."""
    lines = []
    for key, value in ranked[0].point.items():
        try:
            tried = sorted({float(trial.point[key]) for trial in ranked})
        except ValueError:
            continue  # not numbers
        if len(tried) > 2 and float(value) in (tried[0], tried[-1]):
            which = "lowest" if float(value) == tried[0] else "highest"
            lines.append(f"{key}={value} is the {which} that was tried: others may be better still")
    return lines


def write_best(search: Search, ranked: list[Trial]) -> Path:
    """Write the values of the first trial, and all trials as the evidence for it."""
    file, best = _values_file(search), ranked[0]
    parser = OverridesParser.create()
    overrides = parser.parse_overrides([f"{k}={v}" for k, v in best.point.items()])
    content = {
        "values": {override.key_or_group: override.value() for override in overrides},
        "evidence": {
            "command": f"python -m cl_bench.tune {shlex.join(deciding(sys.argv[1:]))}",
            "under": tuned.conditions(composed(*search.overrides_of(best.point, 0)), best.point),
            "split": "val",
            "first tasks": search.first,
            "seeds": search.seeds,
            "commit": source_code.git_commit(),
            "trials": [trial.row() for trial in ranked],
        },
    }
    with files.locked(file.with_suffix(".lock"), wait=True):
        files.write_text(file, OmegaConf.to_yaml(OmegaConf.create(content)))
    return file


def _values_file(search: Search) -> Path:
    cfg = composed(*search.overrides, with_hydra=True)
    return tuned.values_file(cfg.tuned_dir, *labels_of(cfg.hydra))

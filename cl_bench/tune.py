"""python -m cl_bench.tune method=ewc dataset=pmnist 'grid=method.strength=1,5 optimizer.lr=0.1,1'

Searches on held-out training images (evaluation.split=val) of the first tasks, never on test data,
and writes the values that are best on average over the seeds, with the evidence, to where
`tuned=true` finds them. Each trial is an ordinary run: what was done is not repeated, so that the
same command goes on where it was stopped. Points at which training diverges are skipped and named,
any other failure stops the search. Of points with equal accuracy the first one is taken.

    grid=<key>=<a>,<b> <key>=range(1,5) <key>=tag(log,interval(0.1,10))   Hydra's own notation
    strategy=grid     all combinations; no intervals
             random   `trials` draws
             optuna   `trials` of Optuna's TPE (pip install -e ".[tune]"), one after the other
    first=3  tasks, seeds=0, trials=20, jobs=1 at once, unless told otherwise (first=20 seeds=0,1,2:
             dearer, and nearer to the whole stream); all else are overrides of cl_bench.run
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from cl_bench.base import files
from cl_bench.base.escape import visible
from cl_bench.base.exceptions import DIVERGED, UserError
from cl_bench.config import tuned
from cl_bench.config.command import run_command
from cl_bench.config.compose import choices, composed
from cl_bench.config.nodes import CONF
from cl_bench.results import source_code
from cl_bench.tuning.axis import Axis
from cl_bench.tuning.search import Point, Search, Trial
from cl_bench.tuning.trials import Processes, code_now, enumerated, tried


def by_optuna(search: Search, tell: Callable[[Trial], None]) -> list[Trial]:
    """TPE from seed 0: with the same answers the same questions, so that it, too, goes on."""
    try:
        optuna = import_module("optuna")
    except ModuleNotFoundError:
        raise UserError("strategy=optuna: pip install optuna, or use grid or random") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    trials, code = [], code_now(search)
    with Processes() as processes:
        for _ in range(search.trials):
            asked = study.ask()
            trial = tried(search, _suggested(asked, search.axes), processes, code)
            tell(trial)
            if trial.error:
                study.tell(asked, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(asked, trial.score)
            trials.append(trial)
    return trials


def _suggested(asked: Any, axes: Sequence[Axis]) -> Point:
    """Optuna's next point."""
    point = {}
    for axis in axes:
        if axis.values:
            point[axis.key] = asked.suggest_categorical(axis.key, axis.values)
        else:
            value = asked.suggest_float(axis.key, axis.low, axis.high, log=axis.log)
            point[axis.key] = f"{value:.6g}"
    return point


def write(search: Search, trials: list[Trial], best: Trial) -> Path:
    """The best values with their evidence."""
    file = _file(search)
    parser = OverridesParser.create()
    typed = parser.parse_overrides([f"{k}={v}" for k, v in best.point.items()])
    command = ["python -m cl_bench.tune", *map(shlex.quote, sys.argv[1:])]
    ranked = sorted(trials, key=lambda trial: -trial.score)
    content = {
        "values": {override.key_or_group: override.value() for override in typed},
        "evidence": {
            "command": " ".join(command),
            "under": tuned.under(composed(*search.command(best.point, 0)), best.point),
            "split": "val",
            "first tasks": search.first,
            "seeds": search.seeds,
            "commit": source_code.commit(),
            "trials": [trial.row() for trial in ranked],
        },
    }
    with files.locked(file.with_suffix(".lock"), wait=True):
        files.write_text(file, OmegaConf.to_yaml(OmegaConf.create(content)))
    return file


def _file(search: Search) -> Path:
    """Where the values go."""
    return tuned.place(CONF, *choices(search.overrides))


def main() -> None:
    import pandas as pd

    if len(sys.argv) == 1 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return
    search = Search.of(sys.argv[1:])
    files.require_writable(_file(search).parent)
    run = by_optuna if search.strategy == "optuna" else enumerated
    trials = run(search, lambda trial: print(trial.row(), file=sys.stderr))
    best = max(trials, key=lambda trial: trial.score)  # of equal ones the first
    rows = [trial.row() for trial in sorted(trials, key=lambda trial: -trial.score)]
    print(pd.DataFrame(rows).to_string(index=False))
    lost = sum(trial.error is not None for trial in trials)
    if lost == len(trials):
        raise UserError(f"training {DIVERGED} at all {lost} points: nothing was written")
    if lost:
        print(f"training {DIVERGED} at {lost} of {len(trials)} points, which are no evidence")
    print(f"best: {best.row()}")
    print(visible(f"files: {write(search, trials, best)} (used with tuned=true)"))


def cli() -> None:
    """The command line of a search."""
    run_command(main, takes_overrides=False)


if __name__ == "__main__":
    cli()

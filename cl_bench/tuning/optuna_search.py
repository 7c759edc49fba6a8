"""A search whose next point Optuna proposes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from cl_bench.base.exceptions import UserError
from cl_bench.tuning.axis import Axis
from cl_bench.tuning.search import Point, Search
from cl_bench.tuning.trials import Processes, Trial, current_code, run_trial


def run_optuna(search: Search, report: Callable[[Trial], None]) -> list[Trial]:
    """Run `search.trials` points of Optuna's TPE sampler, one after the other.

    The sampler has seed 0: after the same results it proposes the same point, so that a repeated
    search finds its finished runs. `report` is called with each trial.
    """
    try:
        optuna = import_module("optuna")
    except ModuleNotFoundError:
        raise UserError("strategy=optuna: pip install optuna, or use grid or random") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    trials, code = [], current_code(search)
    with Processes() as processes:
        for _ in range(search.trials):
            proposed = study.ask()
            trial = run_trial(search, _point(proposed, search.axes), processes, code)
            report(trial)
            if trial.error:
                study.tell(proposed, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(proposed, trial.score)
            trials.append(trial)
    return trials


def _point(proposed: Any, axes: Sequence[Axis]) -> Point:
    """The point that a trial of Optuna's stands for."""
    point = {}
    for axis in axes:
        if axis.values:
            point[axis.key] = proposed.suggest_categorical(axis.key, axis.values)
        else:
            value = proposed.suggest_float(axis.key, axis.low, axis.high, log=axis.log)
            point[axis.key] = f"{value:.6g}"
    return point

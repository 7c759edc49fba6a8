"""python -m cl_bench.tune method=ewc dataset=pmnist 'grid=method.strength=1,5 optimizer.lr=0.1,1'

Searches on held-out training images (evaluation.split=val) of the first tasks, never on test data,
and writes the values that are best on average over the seeds, with the evidence, to where
`tuned=true` finds them. Each trial is an ordinary run: what was done is not repeated, so that the
same command goes on where it was stopped.

    grid=<key>=<a>,<b> <key>=range(1,5) <key>=tag(log,interval(0.1,10))   Hydra's own notation
    strategy=grid     all combinations; no intervals
             random   `trials` draws
             optuna   `trials` of Optuna's TPE (pip install -e ".[tune]"), one after the other
    first=3  tasks, seeds=0, trials=20, jobs=1 at once, unless told otherwise (first=20 seeds=0,1,2:
             dearer, and nearer to the whole stream); all else are overrides of cl_bench.run
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from cl_bench import source_code, tuned
from cl_bench.run import CONF, cli
from cl_bench.search import Search, Trial, choices, composed
from cl_bench.types import UserError


def tried(search: Search, point: dict[str, str]) -> Trial:
    """The runs of one point, each in a process of its own; done ones answer at once."""
    trial = Trial(point)
    for seed in search.seeds:
        command = [sys.executable, "-m", "cl_bench.run", *search.command(point, seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        if done.returncode or not lines or not lines[-1].startswith("files: "):
            said = done.stderr.strip().splitlines() or ["no word"]
            trial.error = f"failed: {said[-1]}"
            return trial
        folder = Path(lines[-1].removeprefix("files: "))
        found = json.loads((folder / "record.json").read_text())
        trial.accuracies.append(found["metrics"]["ACC"])
        trial.seconds += sum(found["measured"]["train_seconds"]) / len(search.seeds)
    return trial


def enumerated(search: Search, tell: Callable[[Trial], None]) -> list[Trial]:
    """Every point of a grid or of the random draws, `jobs` at once."""
    trials = []
    with ThreadPoolExecutor(search.jobs) as pool:
        for trial in pool.map(lambda point: tried(search, point), search.points()):
            tell(trial)
            trials.append(trial)
    return trials


def by_optuna(search: Search, tell: Callable[[Trial], None]) -> list[Trial]:
    """TPE from seed 0: with the same answers the same questions, so that it, too, goes on."""
    try:
        optuna = import_module("optuna")
    except ModuleNotFoundError:
        raise UserError("strategy=optuna: pip install optuna, or use grid or random") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    trials = []
    for _ in range(search.trials):
        asked = study.ask()
        point = {}
        for axis in search.axes:
            if axis.values:
                point[axis.key] = asked.suggest_categorical(axis.key, axis.values)
            else:
                value = asked.suggest_float(axis.key, axis.low, axis.high, log=axis.log)
                point[axis.key] = f"{value:.6g}"
        trial = tried(search, point)
        tell(trial)
        study.tell(asked, max(trial.score, 0.0))
        trials.append(trial)
    return trials


def write(search: Search, trials: list[Trial], best: Trial) -> Path:
    """The best values with their evidence."""
    file = tuned.place(Path(CONF), *choices(search.overrides))
    parser = OverridesParser.create()
    typed = parser.parse_overrides([f"{k}={v}" for k, v in best.point.items()])
    command = ["python -m cl_bench.tune", *map(shlex.quote, sys.argv[1:])]
    ranked = sorted(trials, key=lambda trial: -trial.score)
    content = {
        "values": {override.key_or_group: override.value() for override in typed},
        "evidence": {
            "command": " ".join(command),
            "under": tuned.under(composed(search.command(best.point, 0)), best.point),
            "split": "val",
            "first tasks": search.first,
            "seeds": search.seeds,
            "commit": source_code.commit(),
            "trials": [trial.row() for trial in ranked],
        },
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    return file


def main() -> None:
    import pandas as pd

    if len(sys.argv) == 1 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return
    search = Search.of(sys.argv[1:])
    run = by_optuna if search.strategy == "optuna" else enumerated
    trials = run(search, lambda trial: print(trial.row(), file=sys.stderr))
    best = max(trials, key=lambda trial: trial.score)
    rows = [trial.row() for trial in sorted(trials, key=lambda trial: -trial.score)]
    print(pd.DataFrame(rows).to_string(index=False))
    if best.score == -math.inf:
        raise UserError("all trials failed: nothing was written")
    print(f"best: {best.row()}\nfiles: {write(search, trials, best)} (used with tuned=true)")


if __name__ == "__main__":
    cli(main, hydra_arguments=False)

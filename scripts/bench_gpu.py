"""Measures steps as CUDA graphs, and several runs at once on one GPU (`bench.py --gpu`).

Without a GPU the same is measured on the CPU: planned steps then go without graphs, and runs share
the cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from contenders import Bare, Contender, composed, rounds
from ratios import Ratios

METHODS = ("finetune", "er", "ewc", "derpp", "emcl", "lamaml", "dlcft")
NEEDS = {"dlcft": ("model.pretrained=null",)}  # no backbone fits every model
GRAPHS = "runtime.graphs=true"


def gpu(overrides: list[str], tasks: int, runs: int, found: Ratios) -> None:
    """Both measurements; `runs` is the number of runs at once."""
    found.overrides = ["runtime.threads=1", *overrides]
    by_graphs(found.overrides, tasks, found)
    several(found.overrides, runs, found)


def by_graphs(overrides: list[str], tasks: int, found: Ratios) -> None:
    """Compare the steps of each method as graphs with the same steps one by one.

    The tasks come after another one, so that each method has a memory or a penalty. A task counts
    with the steps in which its graph is found and captured.
    """
    print(f"\n{'':10}{'steps':>8}{'us / step':>12}{'by graphs':>12}{'ratio':>8}{'planned':>10}")
    for name in METHODS:
        words = [f"method={name}", *NEEDS.get(name, ()), *overrides]
        pair = {"plain": Contender(*words), "graphs": Contender(*words, GRAPHS)}
        plain = pair["plain"]
        first, *chosen = plain.stream.tasks[: tasks + 1]
        for each in pair.values():
            each.train(first)
            each.finish(first)
        runners = {key: each.train for key, each in pair.items()}
        if name == "finetune":
            runners["bare"] = Bare(plain, composed(*words)).train
        seconds = rounds(chosen, runners)
        steps = plain.schedule.epochs * -(-len(chosen[0]) // plain.schedule.batch_size)
        slow, quick = (1e6 * seconds[key] / steps for key in ("plain", "graphs"))
        trained = len(chosen) + 2  # tasks: the first one, and one more with which `rounds` begins
        share = pair["graphs"].planned / (steps * trained)
        print(f"{name:10}{steps:8}{slow:12.0f}{quick:12.0f}{quick / slow:8.2f}{share:10.0%}")
        found.add(f"method={name}", "cost of a step as a graph over one without", quick / slow)
        found.add(f"method={name}", "a step", slow / 1e6, "seconds")
        if name == "finetune":
            ratio, by_graph = (seconds[key] / seconds["bare"] for key in ("plain", "graphs"))
            print(f"{'':10}of the bare loop's time: {ratio:.2f}, by graphs {by_graph:.2f}")
            found.add("method=finetune", "cost of a step over the bare loop's", ratio)


def several(overrides: list[str], runs: int, found: Ratios) -> None:
    """Compare the training of several runs at once with that of one alone."""
    alone, together = (seconds_of(overrides, count) for count in (1, runs))
    gain = runs * alone / together
    print(f"\n{runs} runs at once: {together:.1f} s of training each, one alone {alone:.1f} s")
    print(f"together they train {gain:.2f} times as fast as one after the other")
    found.add(f"{runs} runs at once", "training speed over one after the other", gain)


def seconds_of(overrides: list[str], count: int) -> float:
    """The mean training seconds of so many runs at once, on one device."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = ",".join(map(str, range(count)))
        words = [f"seed={seeds}", "hydra/launcher=cores", f"hydra.launcher.n_jobs={count}"]
        words += [f"runtime.per_gpu={count}", "tracking=none", f"output_dir={folder}"]
        command = [sys.executable, "-m", "cl_bench.run", "-m", *words, *overrides]
        subprocess.run(command, check=True, capture_output=True)
        records = [json.loads(file.read_text()) for file in Path(folder).rglob("record.json")]
    assert len(records) == count, "each run has a record"
    return sum(sum(record["measured"]["train_seconds"]) for record in records) / count

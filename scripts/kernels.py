"""Counts the kernels and the waits of a step of each method on CUDA, without a GPU.

    python scripts/kernels.py           # writes results/kernels.csv
    python scripts/kernels.py gem emcl  # of these methods alone

scripts/results_pages.py makes a page of it.

A CUDA device is pretended (tests/pretended_cuda.py): each operation on it that is no view counts as
one kernel, which is a lower bound, and each value that the host must wait for as a wait. A step is
one of the last whole ones of a small run of three tasks: one kind of each method, 8 images, a
perceptron of one hidden layer, and two blocks of a ResNet with batch norm and Adam. With
runtime.graphs a graph is one launch; what a plan of 64 steps launches beside the graphs is shared
among them. Methods whose steps cannot be planned have no such number.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections import Counter
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
if importlib.util.find_spec("pytest") is None:
    sys.exit('error: scripts/kernels.py needs the tests; pip install -e ".[dev]"')

from conftest import class_of  # noqa: E402
from pretended_cuda import PretendedCuda  # noqa: E402
from test_pretended_cuda import (  # noqa: E402
    FEWER,
    KINDS,
    NETWORKS,
    PLAIN,
    REFUSED,
    WAITS,
    short_run,
)

from cl_bench.engine.session import Host  # noqa: E402
from cl_bench.engine.steps import LONGEST, Steps  # noqa: E402
from cl_bench.report.results_table import ResultRow, read, write  # noqa: E402
from cl_bench.results.source_code import software_versions  # noqa: E402
from cl_bench.testing.small import blobs  # noqa: E402
from cl_bench.testing.small_run import SmallRun  # noqa: E402

LAUNCHES = "kernel", "graph", "h2d_async"
SLOW = {name: ("method.inner_lr=0.001",) for name in ("emcl", "emcl_replay")}  # in longer tasks
TABLE, NAMES = "kernels", {"mlp": "perceptron", "resnet": "ResNet"}
FILE = ROOT / f"results/{TABLE}.csv"
NOTE = "a command of its own, not of cl_bench.run"


def counted(method: str, net: str) -> dict[str, float]:
    """The kernels and waits of a step, and its launches with graphs, where it can be planned."""
    with PretendedCuda() as device, device.each_call(class_of(method), "observe") as steps:
        short_run(method, learner=NETWORKS[net])()
    found = {
        "kernels a step": mean_count(steps[-3:-1], "kernel"),
        "waits a step": mean_count(steps[-3:-1], *WAITS),
    }
    with PretendedCuda() as device, device.each_call(Steps, "take") as steps:
        machine = {**PLAIN, "graphs": True}
        made = short_run(method, *SLOW.get(method, ()), learner=NETWORKS[net], machine=machine)
        LongRun(**{each.name: getattr(made, each.name) for each in fields(made)})()
    plans = [i for i, step in enumerate(steps) if step["graph", "replay"] and len(step) > 1]
    if plans and plans[-2] > len(steps) * 2 // 3:  # of the last of three tasks
        found["launches a step, graphs"] = mean_count(steps[plans[-2] : plans[-1]], *LAUNCHES)
    return found


class LongRun(SmallRun):
    """The same run on tasks of some plans of whole length, which no logged loss interrupts."""

    def __call__(self) -> SmallRun:
        images = 8 * (2 * LONGEST + 8) + 4
        self.arranged = lambda stream: blobs(
            self.scenario, each=images, device=stream.tasks[0].x.device
        )
        return super().__call__()

    def _host(self, rt: Any) -> Host:
        host = super()._host(rt)
        host.log_every = 10**9
        return host


def mean_count(steps: list[Counter[tuple[str, str]]], *kinds: str) -> float:
    """The mean number of events of these kinds in a step."""
    return sum(n for step in steps for (kind, _), n in step.items() if kind in kinds) / len(steps)


def main() -> None:
    """Count, print and write."""
    known = software_versions()
    versions = f"python {known['python']}, torch {known['versions']['torch']}"
    methods = sys.argv[1:] or KINDS
    rows = [row for row in read(FILE) if row.row not in methods]
    for method in methods:
        for net, name in NAMES.items():
            if (method, net) in REFUSED:
                continue
            for metric, value in counted(method, net).items():
                row = ResultRow(
                    table=TABLE,
                    row=method,
                    command="python scripts/kernels.py",
                    dataset="",
                    scenario="",
                    method=method,
                    split="",
                    metric=f"{metric}, {name}",
                    mean=Decimal(f"{value:g}"),
                    sd=None,
                    n=None,
                    seeds="",
                    lower=None,
                    upper=None,
                    unit="count",
                    device="CUDA, pretended",
                    commit=known["commit"] or "",
                    versions=versions,
                    date=time.strftime("%Y-%m-%d"),
                    published=None,
                    published_spread=None,
                    published_source="",
                    note="; ".join([NOTE, *FEWER.get(method, ())]),
                )
                rows.append(row)
                print(f"{method:14}{row.metric:32}{value:g}", flush=True)
    write(FILE, sorted(rows, key=lambda row: row.row))


if __name__ == "__main__":
    main()

"""Counts the kernels and the waits of a step of each method on CUDA, without a GPU.

    python scripts/kernels.py   # writes results/kernels.csv, of which results_pages.py makes a page

A CUDA device is pretended (tests/pretended_cuda.py): each operation on it that is no view counts as
one kernel, which is a lower bound, and each value that the host must wait for as a wait. A step is
one of the last whole ones of a small run of three tasks: one kind of each method, 8 images, a
perceptron of one hidden layer, and two blocks of a ResNet with batch norm and Adam.
"""

from __future__ import annotations

import sys
import time
from decimal import Decimal
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from conftest import class_of  # noqa: E402
from pretended_cuda import PretendedCuda  # noqa: E402
from test_pretended_cuda import FEWER, KINDS, NETWORKS, WAITS, short_run  # noqa: E402

from cl_bench.report.results_table import ResultRow, write  # noqa: E402
from cl_bench.results.source_code import software_versions  # noqa: E402

TABLE, NAMES = "kernels", {"mlp": "perceptron", "resnet": "ResNet"}
NOTE = "a command of its own, not of cl_bench.run"


def counted(method: str, net: str) -> tuple[float, float]:
    """The kernels and the waits of a step."""
    with PretendedCuda() as device, device.each_call(class_of(method), "observe") as steps:
        short_run(method, learner=NETWORKS[net])()
    whole = steps[-3:-1]
    kernels = sum(n for step in whole for (kind, _), n in step.items() if kind == "kernel")
    waits = sum(n for step in whole for (kind, _), n in step.items() if kind in WAITS)
    return kernels / len(whole), waits / len(whole)


def main() -> None:
    """Count, print and write."""
    known = software_versions()
    versions = f"python {known['python']}, torch {known['versions']['torch']}"
    rows = []
    for method in KINDS:
        for net, name in NAMES.items():
            for metric, value in zip(("kernels", "waits"), counted(method, net), strict=True):
                row = ResultRow(
                    table=TABLE,
                    row=method,
                    command="python scripts/kernels.py",
                    dataset="",
                    scenario="",
                    method=method,
                    split="",
                    metric=f"{metric} a step, {name}",
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
    write(ROOT / f"results/{TABLE}.csv", rows)


if __name__ == "__main__":
    main()

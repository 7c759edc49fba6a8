"""Records as runs leave them, without the runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cl_bench.report.runs import Run, finished_runs
from cl_bench.report.tables import Table, columns
from cl_bench.results.record import FORMAT
from cl_bench.results.records import read_all
from cl_bench.results.source_code import code_of


@cache
def learner() -> str:
    """The hash of a module, so that the records are of now."""
    return code_of([]).files["cl_bench.core.learner"]


def write(
    root: Path, method: str, name: str, acc: Sequence[float], place: str = "toy/data", **leaves: Any
) -> None:
    """A record a seed; `leaves`: of the config, `a__b` for a.b."""
    for seed, value in enumerate(acc):
        config: dict[str, Any] = {"seed": seed, "method": {"_target_": f"cl_bench.{method}"}}
        for key, leaf in leaves.items():
            node = config
            *groups, last = key.split("__")
            for group in groups:
                node = node.setdefault(group, {})
            node[last] = leaf
        dataset, scenario = place.split("/")[-2:]
        record = {
            "format": FORMAT,
            "labels": {"dataset": dataset, "scenario": scenario, "method": method},
            "code": {"sha256": "one", "files": {"cl_bench.core.learner": learner()}},
            "initial": [0.1, 0.1],
            "parameters": 1,
            "theta_sha256": "",
            "hash": name,
            "seed": seed,
            "config": config,
            "accuracy": [[0.9, None], [value, value]],
            "metrics": {"ACC": value, "BWT": value - 0.9, "FWT": None, "forgetting": 0.9 - value},
            "measured": {"train_seconds": [1.0, 2.0], "eval_seconds": [0.1], "peak_mib": 100.0},
            "gradients_per_sample": 2.0,
            "state_bytes": 0,
            "stream": {"task_identities": [0, 1]},
        }
        folder = root / place / method / name / f"seed{seed}"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(record))


def some(root: Path) -> Path:
    """Two configs of er, one of ewc, joint, and a search's trial."""
    write(root, "er", "aaa", (0.5, 0.6, 0.7), optimizer__lr=0.1, method__linear=True)
    write(root, "er", "bbb", (0.4,), optimizer__lr=0.2, method__linear=True)
    write(root, "ewc", "ccc", (0.3, 0.5), optimizer__lr=0.1)
    write(root, "joint", "ddd", (0.9, 0.9), optimizer__lr=0.1)
    write(root, "ewc", "eee", (0.8,), optimizer__lr=0.3, evaluation__split="val")
    return root


def change(file: Path, place: str, value: Any) -> None:
    """Put a value at a dotted place of a record."""
    record = node = json.loads(file.read_text())
    *groups, last = place.split(".")
    for group in groups:
        node = node.setdefault(group, {})
    node[last] = value
    file.write_text(json.dumps(record))


def runs_below(root: Path) -> list[Run]:
    """The finished runs below a folder."""
    return finished_runs(read_all(root))


def lines(table: Table) -> list[dict[str, str]]:
    """The texts of a table's rows, by column."""
    shown = columns(table)
    return [{c.name: c.cells[i].text for c in shown} for i in range(len(table.rows))]

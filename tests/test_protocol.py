"""Whole runs against what is known of them: a change that moves a benchmark's numbers shows here.

Bands are wide enough for another machine's rounding (a run's own spread over seeds is 2.5 points)
and narrow enough for a wrong protocol: labels, permutations, learning rate, evaluation.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import command, finished, linked

QUICK = ("evaluation.when=final", "tracking=none")


def acc(where: Path, *overrides: str) -> float:
    code, _, err = finished(command(*QUICK, *overrides, where=where))
    assert code == 0, err
    (record,) = where.rglob("record.json")
    return 100 * json.loads(record.read_text())["metrics"]["ACC"]


def test_bundled_digits(tmp_path: Path) -> None:
    """The default run, ER and joint training in their order, at their levels (seed 0)."""
    finetune = acc(tmp_path / "finetune")
    er = acc(tmp_path / "er", "method=er", "optimizer.lr=0.1")
    joint = acc(tmp_path / "joint", "method=joint")
    assert finetune == pytest.approx(55.9, abs=5)
    assert finetune + 5 < er < joint
    assert joint == pytest.approx(77, abs=5)


def test_permuted_mnist(real: Path, tmp_path: Path) -> None:
    """Online SGD on the published protocol: 55.42 +- 0.65 (La-MAML, table 1)."""
    data = linked(tmp_path, real, "MNIST")
    found = [
        acc(tmp_path / f"out{s}", "dataset=pmnist", f"data_dir={data}", f"seed={s}") for s in (0, 1)
    ]
    assert sum(found) / 2 == pytest.approx(55.4, abs=5)

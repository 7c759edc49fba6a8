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
    """Of one run, or the mean over those of a sweep."""
    code, _, err = finished(command(*QUICK, *overrides, where=where))
    assert code == 0, err
    found = [json.loads(file.read_text())["metrics"]["ACC"] for file in where.rglob("record.json")]
    return 100 * sum(found) / len(found)


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
    seeds = "-m", "dataset=pmnist", f"data_dir={data}", "seed=0"
    assert acc(tmp_path / "out", *seeds) == pytest.approx(55.4, abs=5)

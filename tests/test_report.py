"""Records to a table: means, spreads, and what sets configs apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cl_bench import report


def write(root: Path, method: str, name: str, seed: int, acc: float, lr: float) -> None:
    folder = root / "toy/data" / method / name / f"seed{seed}"
    folder.mkdir(parents=True)
    record = {
        "hash": name,
        "config": {"seed": seed, "optimizer": {"lr": lr}, "method": {"_target_": method}},
        "metrics": {"ACC": acc, "BWT": None, "forgetting": 0.1, "LA": 0.9},
        "measured": {"train_seconds": [1.0, 2.0]},
    }
    (folder / "record.json").write_text(json.dumps(record))


def test_means_over_seeds(tmp_path: Path) -> None:
    for seed, acc in enumerate((0.5, 0.6, 0.7)):
        write(tmp_path, "er", "aaa", seed, acc, 0.1)
    write(tmp_path, "er", "bbb", 0, 0.4, 0.2)
    write(tmp_path, "ewc", "ccc", 0, 0.3, 0.1)
    rows = report.table(tmp_path).to_dict("records")
    many, single, ewc = rows
    assert many["differs"] == "optimizer.lr=0.1" and many["ACC"] == "60.00 +- 10.00"
    assert many["n"] == 3 and many["BWT"] == "-" and many["train s"] == "3.0"
    assert single["differs"] == "optimizer.lr=0.2" and single["ACC"] == "40.00"
    assert ewc["method"] == "ewc" and ewc["differs"] == ""


def test_nothing_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        report.main()
    assert caught.value.code == 2

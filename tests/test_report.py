"""Records to tables and a page: means, intervals, pairs, published figures, what differs."""

from __future__ import annotations

import json
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import composed, names
from omegaconf import OmegaConf
from records import some, write
from scipy.stats import bootstrap

from cl_bench.disparity import disparities
from cl_bench.metrics import order_disparity
from cl_bench.report import __main__ as report
from cl_bench.report import published, tables
from cl_bench.report.orders import order_rows
from cl_bench.report.rows import gather, leaves
from cl_bench.report.statistics import paired, summary
from cl_bench.types import UserError


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return some(tmp_path)


def test_means_over_seeds(runs: Path) -> None:
    """60 +- 10 of 50, 60, 70; what sets configs apart; a search's trials stand apart."""
    own, search = tables.tables(gather(runs), None)
    many, single, ewc, joint = tables.cells(own)
    assert many["differs"] == "optimizer.lr=0.1" and many["ACC"] == "60.00 ± 10.00"
    assert many["n"] == "3" and many["BWT"] == "-30.00 ± 10.00" and many["train s"] == "3.0"
    assert single["differs"] == "optimizer.lr=0.2" and single["ACC"] == "40.00"
    assert ewc["method"] == "ewc" and ewc["differs"] == "" and "FWT" not in ewc
    assert joint["later / first"] == "2.00" and joint["gradients"] == "2.0"
    assert search.title == "toy, data-incremental, validation split"
    numbers = tables.frame([own])
    assert list(numbers["ACC"]) == pytest.approx([60, 40, 40, 90])
    assert list(numbers["n"]) == [3, 1, 2, 2] and list(numbers["ACC sd"].isna()) == [
        False,
        True,
        False,
        False,
    ]
    assert len(pd.read_csv(StringIO(numbers.to_csv(index=False)))) == 4


def test_best_and_second_are_of_rivals(runs: Path) -> None:
    """By what is printed: ties share a place, joint training has none."""
    (own, _) = tables.tables(gather(runs), None)
    acc, bwt, forgetting = own.metrics
    assert own.ranks(acc) == own.ranks(bwt) == own.ranks(forgetting) == {0: 1, 1: 2, 2: 2}
    told = tables.markdown([own])
    assert "| **60.00 ± 10.00** |" in told and "| _40.00_ |" in told and "| 90.00 ± 0.00 |" in told
    latex = tables.latex([own])
    assert r"er & optimizer.lr=0.1 & 3 & \textbf{\boldmath$60.00 \pm 10.00$}" in latex
    assert r"\underline{$40.00$}" in latex and r"joint &  & 2 & $90.00 \pm 0.00$" in latex


def test_rows_of_chosen_keys_say_what_they_average(runs: Path) -> None:
    rows = [row for row in gather(runs, ["linear"]) if row.section[2] == "test"]
    assert [row.differs for row in rows[:1]] == ["method.linear=true (over optimizer.lr=0.1|0.2)"]
    assert len(rows[0].runs) == 4 and len(rows) == 3
    with pytest.raises(UserError, match=r"--by liner: is no key .* did you mean .*method.linear"):
        gather(runs, ["liner"])
    write(runs, "lwf", "fff", (0.1,), dataset__split="class")
    told = r"is in several keys; did you mean dataset.split or evaluation.split\?"
    with pytest.raises(UserError, match=told):
        gather(runs, ["split"])


def test_what_comes_with_a_part_is_not_told(tmp_path: Path) -> None:
    """Adam's betas are told by Adam; a learning rate that both have is not."""
    adam = {"optimizer___target_": "torch.optim.Adam", "optimizer__betas": [0.9, 0.999]}
    write(tmp_path, "er", "aaa", (0.5,), optimizer__lr=0.1, **adam)
    write(tmp_path, "er", "bbb", (0.5,), optimizer__lr=0.2, optimizer___target_="torch.optim.SGD")
    told = [row.differs for row in gather(tmp_path)]
    assert told == ["optimizer=Adam optimizer.lr=0.1", "optimizer=SGD optimizer.lr=0.2"]


def test_intervals_are_the_bootstrap_of_the_mean() -> None:
    """Against scipy; one number has neither spread nor interval."""
    values = [61.0, 64.0, 58.0, 70.0, 66.0, 59.0]
    found = summary(values)
    theirs = bootstrap((values,), np.mean, n_resamples=50_000, method="percentile", rng=1)
    assert (found.n, found.mean) == (6, pytest.approx(63)) and found.sd == pytest.approx(4.56, 1e-3)
    assert found.interval is not None
    ends = theirs.confidence_interval
    assert found.interval == pytest.approx((ends.low, ends.high), abs=0.15)
    assert summary([3.0]).interval is None and str(summary([3.0])) == "3.00"


def test_pairs_are_of_equal_seeds() -> None:
    """Seeds 1 and 2 are in both: gains 1 and 3, whatever the seeds do to both."""
    found = paired({0: 9.0, 1: 51.0, 2: 13.0}, {1: 50.0, 2: 10.0, 3: 0.0})
    assert found is not None and (found.n, found.mean) == (2, 2)
    assert found.interval == (1, 3) and paired({0: 1.0}, {1: 1.0}) is None


def test_a_baseline_is_one_row(runs: Path) -> None:
    own, search = tables.tables(gather(runs), "ewc")
    told = [line["ACC - ewc"] for line in tables.cells(own)]
    assert told[0] == "+15.00 [10.00, 20.00] (n=2)" and told[2] == "-" and told[1] == "+10.00 (n=1)"
    assert own.baseline is not None and search.baseline is not None
    with pytest.raises(UserError, match=r"--baseline 'er': 2 rows in toy/data/test"):
        tables.tables(gather(runs), "er")
    (chosen, _) = tables.tables(gather(runs), "er optimizer.lr=0.2")
    assert chosen.baseline is chosen.rows[1]
    with pytest.raises(UserError, match=r"no such row; methods: er, ewc, joint"):
        tables.tables(gather(runs), "gem")


def test_published_figures_stand_beside_their_rows(tmp_path: Path) -> None:
    """EWC on 20 permutations: 62.32 (EMCL); batches of 20 are another protocol, 10 tasks no row."""
    leaves: dict[str, Any] = {"dataset__tasks": 20, "dataset__train_per_task": 1000}
    leaves |= {"schedule__epochs": 1, "schedule__batch_size": 10}
    write(tmp_path, "ewc", "a", (0.6, 0.7), "pmnist/data", **leaves)
    write(tmp_path, "ewc", "b", (0.6,), "pmnist/data", **leaves | {"schedule__batch_size": 20})
    write(tmp_path, "ewc", "c", (0.6,), "pmnist/data", **leaves | {"dataset__tasks": 10})
    (table,) = tables.tables(gather(tmp_path), None)
    same, other, none = (table.nearest(row) for row in table.rows)
    assert same is not None and same.figure.value == 62.32 and same.other == []
    assert same.deviation == pytest.approx(65 - 62.32)
    assert other is not None and other.other == ["schedule.batch_size=20 (published: 10)"]
    assert none is None
    assert tables.cells(table)[1]["published ACC"] == "62.32 ± 1.34 (EMCL, table III)*"


def test_published_files_name_what_exists() -> None:
    """Every line parses; its metric, dataset, method and keys are ours."""
    methods, datasets = names("method"), names("dataset")
    plain = partial(OmegaConf.to_container, resolve=True)
    keys = {
        key
        for method in ("dlcft", "der", "ewc")
        for key in leaves({"config": plain(composed(f"method={method}", "dataset=seqcifar100"))})
    }
    for figure in published.figures():
        assert figure.method in methods and figure.dataset in datasets
        assert figure.metric in {q.name for q in tables.METRICS} and -100 < figure.value < 100
        for key in {**figure.row, **figure.protocol}.keys() - {"backbone"}:
            assert published.fitting(key, keys), key


def test_the_command_writes_all_forms(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(runs), "--baseline", "ewc"])
    report.main()
    assert "toy, data-incremental\n" in capsys.readouterr().out
    assert {f.suffix for f in runs.glob("report.*")} == {".html", ".md", ".csv", ".tex"}


@pytest.mark.parametrize("arguments", [["nowhere"], [".", "--by", "x"], [".", "--baseline", "x"]])
def test_a_wrong_option_ends_in_one_line(
    runs: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(runs)
    monkeypatch.setattr("sys.argv", ["report", *arguments])
    with pytest.raises(SystemExit) as caught:
        report.main()
    assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert not list(runs.glob("report.*"))


def test_what_an_order_costs(tmp_path: Path) -> None:
    """Tasks a, b: a 90, 80 and b 60, 70 under two orders (seeds averaged): AOPD 10, MOPD 10."""
    finals = {"A": [[0.9, 0.6], [0.9, 0.6]], "[1, 0]": [[0.72, 0.81], [0.68, 0.79]]}
    for place, (order, runs) in enumerate(finals.items()):
        identities = [0, 1] if order == "A" else [1, 0]
        for seed, last in enumerate(runs):
            folder = tmp_path / f"toy/task/er/{place}/seed{seed}"
            write(tmp_path / f"{place}{seed}", "er", "x", (0.5,))
            (found,) = (tmp_path / f"{place}{seed}").rglob("record.json")
            record = json.loads(found.read_text())
            record["hash"], record["config"]["scenario"] = str(place), {"order": order}
            record["accuracy"] = [[last[0], None], last]
            record["stream"] = {"task_identities": identities}
            folder.mkdir(parents=True)
            (folder / "record.json").write_text(json.dumps(record))
    (row,) = order_rows(tmp_path / "toy")
    assert (row["orders"], row["seeds"], row["AOPD"], row["MOPD"]) == (2, "2", "10.00", "10.00")
    assert row["ACC"] == "75.00 ± 0.00" and row["differs"] == ""
    assert 0 < float(row["AOPD of seeds"]) <= float(row["MOPD of seeds"]) < 4


def test_the_floor_is_what_equal_orders_show() -> None:
    """Ten tasks, R = 5 orders that are all alike, S = 3: the floor is the AOPD that they have."""
    rng, shown, floors = torch.Generator().manual_seed(0), [], []
    for _ in range(30):
        runs = [0.5 + 0.01 * torch.randn(3, 10, generator=rng) for _ in range(5)]
        records = [
            [{"accuracy": [r.tolist()], "stream": {"task_identities": list(range(10))}} for r in f]
            for f in runs
        ]
        found = disparities(records)
        shown.append((found["AOPD"], found["MOPD"]))
        floors.append((found["AOPD of seeds"], found["MOPD of seeds"]))
    means = [torch.tensor(values).mean(0) for values in (shown, floors)]
    torch.testing.assert_close(*means, rtol=0.15, atol=0)


def test_one_order_has_no_disparity() -> None:
    finals = torch.tensor([[0.3, 0.9, 0.5], [0.4, 0.5, 0.5]])
    assert order_disparity(finals[:1]) == (0, 0)
    mean, most = order_disparity(finals)
    assert most == pytest.approx(0.4) and mean == pytest.approx(0.5 / 3)

"""The pages of sweeps: their tables, findings and figures, and the sweeps that they refuse."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import command, finished
from hydra._internal.callbacks import Callbacks
from omegaconf import OmegaConf
from records import change, runs_below, write

from cl_bench.base.exceptions import UserError
from cl_bench.config.compose import composed
from cl_bench.report.method_page import MethodTable
from cl_bench.report.sweep_pages import AblationTable, Curves, OrderTable, ValueGrid
from cl_bench.results.page import Page


def write_grid(root: Path, name: str, x: float, split: str, *acc: float) -> None:
    """The runs of one config of a grid, a seed for each accuracy."""
    leaves: dict[str, Any] = {"a___target_": f"some.{name}", "s": x, "evaluation__split": split}
    write(root, "er", f"{name}{x}{split}", acc, **leaves)


def test_a_grid_is_chosen_on_validation_and_reported_on_test(tmp_path: Path) -> None:
    runs, grid = tmp_path / "runs", ValueGrid("title", ["a._target_", "absent"], "s", {"One": 41.0})
    write_grid(runs, "One", 1.0, "val", 0.5, 0.51)
    write_grid(runs, "One", 10.0, "val", 0.6, 0.61)
    write_grid(runs, "One", 1.0, "test", 0.9, 0.91)
    write_grid(runs, "One", 10.0, "test", 0.4, 0.41)
    write_grid(runs, "Two", 1.0, "val", 0.3, 0.31)
    text = grid.page(runs_below(runs)).write(tmp_path / "out")
    assert "One: s 10, validation 60.50, test 40.50 +- 0.71 (n = 2)" in text
    assert "Two: s 1, validation 30.50\n" in text
    with (tmp_path / "out/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["variant"], float(r["value"]), r["chosen"]) for r in rows] == [
        ("One", 1.0, ""),
        ("One", 10.0, "*"),
        ("Two", 1.0, "*"),
    ]
    assert [row["published"] for row in rows] == ["41.0", "41.0", ""]
    assert (tmp_path / "out/figure.png").stat().st_size > 5000
    change(next(runs.rglob("One1.0val/seed0/record.json")), "hash", "other")
    with pytest.raises(UserError, match="One, s=1 was run there with other values"):
        grid.page(runs_below(runs))


def test_a_value_that_lost_a_seed_is_not_chosen(tmp_path: Path) -> None:
    write_grid(tmp_path, "One", 1.0, "val", 0.5, 0.5)
    write_grid(tmp_path, "One", 9.0, "val", 0.9)
    page = ValueGrid("title", ["a._target_"], "s", {}).page(runs_below(tmp_path))
    assert [row["chosen"] for row in page.rows] == ["*", ""]


def test_the_table_of_a_suite(tmp_path: Path) -> None:
    """A row for each method, the best one first; runs of two configs are not mixed."""
    write(tmp_path, "er", "x", (0.5, 0.6))
    write(tmp_path, "ewc", "y", (0.3, 0.3))
    page = MethodTable("title").page(runs_below(tmp_path))
    assert [(row["method"], row["ACC"], row["n"]) for row in page.rows] == [
        ("er", pytest.approx(55.0), 2),
        ("ewc", pytest.approx(30.0), 2),
    ]
    assert page.findings == ["measured on toy, scenario=data", "highest: er, ACC 55.00 (n = 2)"]
    assert {"gradients", "train s", "state MiB"} <= page.rows[0].keys()
    assert "ACC_task" not in page.rows[0], "no run measured it"
    page.write(tmp_path / "out")
    assert (tmp_path / "out/figure.png").stat().st_size > 5000
    write(tmp_path, "er", "other", (0.5,))
    with pytest.raises(UserError, match="er was run there with other values of other keys"):
        MethodTable("title").page(runs_below(tmp_path))


def ablation(root: Path) -> Path:
    """Three configs of two seeds, one of which has no `a`; their BWT is -0.1."""
    write(root, "er", "x", (0.5, 0.51), a___target_="some.One", s=1.0)
    write(root, "er", "y", (0.6, 0.61), s=2.0)
    write(root, "er", "z", (0.4, 0.41), a___target_="some.Two", s=1.0)
    for file in root.rglob("record.json"):
        change(file, "metrics.BWT", -0.1)
    return root


def test_an_ablation_has_a_column_for_each_part(tmp_path: Path) -> None:
    """A metric that a run lacks is the mean of the others."""
    runs, table = ablation(tmp_path / "runs"), AblationTable("title", ["a._target_", "s"])
    page = table.page(runs_below(runs))
    assert [(r["a"], r["s"], r["n"]) for r in page.rows] == [
        ("One", "1.0", 2),
        ("Two", "1.0", 2),
        ("none", "2.0", 2),
    ]
    assert [r["ACC"] for r in page.rows] == pytest.approx([50.5, 40.5, 60.5])
    assert page.rows[0]["ACC sd"] == pytest.approx(0.5**0.5) and page.rows[0]["BWT"] == -10
    assert "highest: a=none, s=2.0, ACC 60.50 (n = 2)" in page.write(tmp_path / "out")
    first = runs / "toy/data/er/x/seed0/record.json"
    change(first, "metrics.BWT", None)
    assert table.page(runs_below(runs)).rows[0]["BWT"] == -10
    change(first, "hash", "other")
    with pytest.raises(UserError, match=r"One 1\.0 was run there with other values"):
        table.page(runs_below(runs))


def test_further_metrics_of_an_ablation(tmp_path: Path) -> None:
    table = AblationTable("title", ["a._target_", "s"], ["forgetting", "growth"])
    row = table.page(runs_below(ablation(tmp_path))).rows[0]
    assert [row["forgetting"], row["growth"]] == [pytest.approx(39.5), None]
    with pytest.raises(UserError, match="forgeting: no such metric; there are ACC, ACC_task, BWT"):
        AblationTable("title", ["s"], ["forgeting"])


def test_copies_count_once_and_what_is_left_out_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the report: the first copy counts, also where another one has other results."""
    ablation(tmp_path)
    shutil.copytree(tmp_path / "toy", tmp_path / "z")
    change(tmp_path / "z/data/er/x/seed0/record.json", "metrics.ACC", 0.9)
    (tmp_path / "z/data/er/y/seed0/record.json").write_text("{")
    table = AblationTable("title", ["a._target_", "s"])
    hydra = {"sweep": {"dir": str(tmp_path / ".sweeps/now")}}
    table.on_multirun_end(OmegaConf.create({"output_dir": str(tmp_path), "hydra": hydra}))
    out, err = capsys.readouterr()
    assert "| One | 1.0 | 50.5 | 0.7071 | -10 | 0 | 2 | 2 |" in out
    assert "| none | 2.0 | 60.5 | 0.7071 | -10 | 0 | 2 | 2 |" in out
    assert err.count("left out: ") == err.count("\n") == 2
    assert "its results are not those of" in err and "er/y/seed0/record.json: is damaged" in err


JOURNALS = {
    "max_eigenvalue": [
        {"event": "probe", "task": 0, "step": 0, "max_eigenvalue": 2.0, "accuracy": 0.0},
        {"event": "step", "step": 5, "task": 0, "loss": 0.5},
        {"event": "probe", "task": 0, "step": 9, "max_eigenvalue": 0.5, "accuracy": 1.0},
    ],
    "ACC": [
        {"event": "task", "task": 0, "accuracy": {"0": 0.5}, "metrics": {"ACC": 0.5}},
        {"event": "task", "task": 1, "accuracy": {"0": 0.4}, "metrics": {"ACC": 0.75}},
    ],
}


def curves(root: Path, quantity: str) -> Page:
    """The page of a run with the journal above, which is written."""
    write(root, "er", "x", (0.5,), a___target_="some.One")
    journal = "\n".join(map(json.dumps, JOURNALS[quantity]))
    (root / "toy/data/er/x/seed0/metrics.jsonl").write_text(journal)
    page = Curves("title", ["a._target_"], quantity, "log").page(runs_below(root))
    page.write(root / "out")
    return page


def test_curves_of_a_probe(tmp_path: Path) -> None:
    page = curves(tmp_path, "max_eigenvalue")
    (row,) = page.rows
    assert row["variant"] == "One seed 0" and row["last / largest"] == 0.25
    assert row["last accuracy"] == 1.0 and "at training accuracy 1.000" in page.findings[0]


def test_curves_of_a_metric(tmp_path: Path) -> None:
    page = curves(tmp_path, "ACC")
    (row,) = page.rows
    assert row["first"] == 0.5 and row["last"] == 0.75 and "last accuracy" not in row
    assert "training accuracy" not in page.findings[0]


REFUSED = {
    "a text for a number": (ValueGrid("t", [], "method.odd", {}), "method.odd=x, which is no"),
    "no accuracy": (AblationTable("t", ["method.odd"]), "no run there has measured ACC"),
    "no journal": (Curves("t", [], "ACC", "linear"), "metrics.jsonl: is missing or damaged"),
    "a gap": (OrderTable("t", []), "er lacks final accuracies"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_page_says_what_it_cannot_use(kind: str, tmp_path: Path) -> None:
    sweep, line = REFUSED[kind]
    write(tmp_path, "er", "a", (0.5,), method__odd="x")
    file = next(tmp_path.rglob("record.json"))
    change(file, "metrics.ACC", None)
    change(file, "accuracy", [[0.9, None], [None, None]])
    with pytest.raises(UserError) as caught:
        sweep.page(runs_below(tmp_path))
    assert line in str(caught.value)


def test_a_sweep_with_its_page(tmp_path: Path) -> None:
    """experiment=fisher_vs_hessian on bundled digits, two strengths, one task less than three."""
    small = "dataset=pmnist5k", "dataset.tasks=2", "seed=0", "method.strength=1,10"
    ask = "experiment=fisher_vs_hessian", *small, "evaluation.split=val"
    code, out, err = finished(command(*ask, "curvature=diag_ggn", where=tmp_path / "out"))
    assert code == 0, err
    assert "DiagonalHessian ggn: strength" in out
    assert {"page.md", "table.csv", "figure.png"} <= {p.name for p in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("failure", ["two configs", "no place", "no place for notes"])
def test_a_sweep_whose_page_cannot_be_made_fails(
    failure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the list of jobs, and with exit code 2; Hydra calls the callbacks of a suite."""
    for variant in ("x", "y") if failure == "two configs" else ("x",):
        write(tmp_path, "er", variant, (0.5,))
    if failure != "two configs":
        (tmp_path / "page.md").mkdir()
    if failure == "no place for notes":
        (tmp_path / ".sweeps").touch()
    cfg = composed("experiment=suite/pmnist", with_hydra=True)
    cfg.output_dir, cfg.hydra.sweep.dir = str(tmp_path), str(tmp_path / ".sweeps/now")
    with pytest.raises(SystemExit) as end:
        Callbacks(cfg).on_multirun_end(config=cfg)
    assert end.value.code == 2
    printed = capsys.readouterr()
    jobs = f"all jobs done: python -m cl_bench.report {tmp_path}" in printed.out
    assert jobs == (failure != "no place for notes")
    two = "output_dir: er was run there"
    expected = two if failure == "two configs" else f"{tmp_path}/page.md: Is a dir"
    assert printed.err.startswith(f"error: the page of the sweep: {expected}")

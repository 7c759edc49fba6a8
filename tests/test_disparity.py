"""AOPD and MOPD: what the order of the tasks costs, by the tasks' identities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from records import runs_below, write

from cl_bench.base.exceptions import UserError
from cl_bench.report import formats
from cl_bench.report.html_page import html
from cl_bench.report.orders import disparity, order_summary
from cl_bench.report.runs import Run
from cl_bench.report.sweep_pages import OrderTable
from cl_bench.results.metrics import order_disparity


def test_what_an_order_costs(tmp_path: Path) -> None:
    """Tasks a, b: a 90, 80 and b 60, 70 under two orders (seeds averaged): AOPD 10, MOPD 10."""
    finals = {"A": [[0.9, 0.6], [0.9, 0.6]], "[1, 0]": [[0.72, 0.81], [0.68, 0.79]]}
    for place, (order, runs) in enumerate(finals.items()):
        identities = [0, 1] if order == "A" else [1, 0]
        for seed, last in enumerate(runs):
            folder = tmp_path / f"toy/task/er/{place}/seed{seed}"
            write(tmp_path / f"{place}{seed}", "er", "x", (0.5,), "toy/task")
            (found,) = (tmp_path / f"{place}{seed}").rglob("record.json")
            record = json.loads(found.read_text())
            record["hash"], record["config"]["scenario"] = str(place), {"order": order}
            record["seed"] = seed
            record["accuracy"] = [[last[0], None], last]
            record["stream"] = {"task_identities": identities}
            folder.mkdir(parents=True)
            (folder / "record.json").write_text(json.dumps(record))
    report = order_summary(runs_below(tmp_path / "toy"))
    (row,) = report.rows
    assert report.left_out == ""
    assert (row["orders"], row["seeds"], row["AOPD"], row["MOPD"]) == (2, "2", "10.00", "10.00")
    assert row["ACC"] == "75.00 ± 0.00" and row["options"] == ""
    assert "| toy | task | er |  | 2 | 2 | 75.00 ± 0.00 | 10.00 | 10.00 |" in formats.markdown(
        [], report
    )
    assert r"toy & task & er &  & 2 & 2 & 75.00 $\pm$ 0.00 & 10.00" in formats.latex([], report)
    assert "<td>75.00 ± 0.00</td><td>10.00</td>" in html([], report, "")
    assert 0 < float(row["AOPD of seeds"]) <= float(row["MOPD of seeds"]) < 4


def under(
    root: Path, method: str, name: str, order: str, last: list[float], tasks: list[int]
) -> None:
    """A run's record under an order of the tasks."""
    write(root, method, name, (sum(last) / len(last),), "toy/task", scenario__order=order)
    file = root / "toy/task" / method / name / "seed0/record.json"
    record = json.loads(file.read_text())
    record |= {"accuracy": [[last[0], None], last], "stream": {"task_identities": tasks}}
    file.write_text(json.dumps(record))


def test_the_page_of_a_sweep_tells_methods_apart(tmp_path: Path) -> None:
    """Methods of one class, too (ewc and l2 are); a method that lacks an order is set apart."""
    for method, drop in (("ewc", 0.3), ("l2", 0.1)):
        under(tmp_path, method, "a", "A", [0.9, 0.9], [0, 1])
        under(tmp_path, method, "b", "B", [0.9, 0.9 - drop], [1, 0])
    under(tmp_path, "si", "a", "A", [0.9, 0.9], [0, 1])
    page = OrderTable("", []).page(runs_below(tmp_path))
    found = {row["variant"]: (row["orders"], row["AOPD"], row["MOPD"]) for row in page.rows}
    assert found["ewc"] == pytest.approx((2, 15, 30)) and found["l2"] == pytest.approx((2, 5, 10))
    assert page.findings == [
        "least: l2, AOPD 5.00, MOPD 10.00",
        "si: 1 of 2 orders, not to be compared",
    ]
    split = OrderTable("", ["scenario.order"]).page(runs_below(tmp_path))
    assert {row["variant"] for row in split.rows} == {"ewc A", "ewc B", "l2 A", "l2 B", "si A"}


def test_orders_of_unlike_tasks_have_no_disparity(tmp_path: Path) -> None:
    """The first two of three under two orders: the report leaves them out, a sweep refuses."""
    under(tmp_path, "er", "a", "A", [0.9, 0.6], [0, 1])
    under(tmp_path, "er", "b", "B", [0.9, 0.6], [1, 2])
    found = order_summary(runs_below(tmp_path))
    assert found.rows == [] and found.left_out.endswith("(stream.first): er on toy (2 runs).")
    for form in (formats.markdown, formats.plain_text, formats.latex):
        assert "er on toy (2 runs)" in form([], found)
    assert found.left_out in html([], found, "")
    with pytest.raises(UserError, match="runs under several orders have different tasks"):
        OrderTable("", []).page(runs_below(tmp_path))


def test_the_floor_is_what_equal_orders_show() -> None:
    """Ten tasks, R = 5 orders that are all alike, S = 3: the floor is the AOPD that they have."""
    rng, shown, floors = torch.Generator().manual_seed(0), [], []
    for _ in range(30):
        runs = [0.5 + 0.01 * torch.randn(3, 10, generator=rng) for _ in range(5)]
        stream = {"task_identities": list(range(10))}
        records = [[{"accuracy": [r.tolist()], "stream": stream} for r in f] for f in runs]
        names = "", "", "", "test", "", 0, {}
        orders = [[Run(Path(), record, *names) for record in f] for f in records]
        found = disparity(orders).values
        shown.append((found["AOPD"], found["MOPD"]))
        floors.append((found["AOPD of seeds"], found["MOPD of seeds"]))
    means = [torch.tensor(values).mean(0) for values in (shown, floors)]
    torch.testing.assert_close(*means, rtol=0.15, atol=0)


def test_one_order_has_no_disparity() -> None:
    finals = torch.tensor([[0.3, 0.9, 0.5], [0.4, 0.5, 0.5]])
    assert order_disparity(finals[:1]) == (0, 0)
    mean, most = order_disparity(finals)
    assert most == pytest.approx(0.4) and mean == pytest.approx(0.5 / 3)

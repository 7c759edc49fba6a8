"""Studies: the laws that they must find, what they leave, and that none is done twice."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import blobs, command, composed, finished, identity, learner, mlp, resnet
from torch import Generator

from cl_bench.base.exceptions import UserError
from cl_bench.config.check import check_config
from cl_bench.config.name import config_hash
from cl_bench.config.nodes import targets
from cl_bench.core.criteria import ScaledMSE
from cl_bench.core.types import Batch
from cl_bench.engine import job
from cl_bench.engine.execution import Plan
from cl_bench.engine.schedule import Schedule
from cl_bench.probes.max_eigenvalue import MaxEigenvalue
from cl_bench.results.folder import Folder
from cl_bench.results.source_code import code_of
from cl_bench.studies import hessian_ratio, prior_vs_distillation, taylor_error
from cl_bench.studies.models import MODELS, fitted, hessian
from cl_bench.studies.sweeps import Grid, Table, Traces


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps for the models that are trained step by step."""
    for name in ("logistic", "mlp"):
        monkeypatch.setitem(MODELS, name, replace(MODELS[name], steps=300))


def test_the_hessians_ratio_follows_its_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 0.03 wherever the test split has a hundred samples, ours and the published points."""
    quick(monkeypatch)
    page = hessian_ratio.study([10, 50], repeats=5, extension_dimension=2, seed=0)
    linear = [row for row in page.rows if row["model"] == "linear" and row["n_test"] >= 100]
    assert len(linear) == 8
    for row in linear:
        assert row["ratio"] == pytest.approx(row["theory"], abs=0.03)
        assert row["published"] == pytest.approx(row["theory"], abs=0.03)
    equal = [row["ratio"] for row in linear if row["log10 n/d"] == 2]
    assert equal[0] > equal[1] + 0.1, "no function of n / d"
    assert hessian_ratio.ratio(torch.eye(3)) == 1
    assert hessian_ratio.ratio(torch.ones(4, 4)) == pytest.approx(1 / 4)


def test_a_quadratic_has_no_taylor_error(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    page = taylor_error.study(6, 4, 500, tasks=4, drift=0.1, repeats=1, seed=0)
    rows = {(row["model"], row["displacement"]): row for row in page.rows}
    for scale in taylor_error.SCALES:
        assert rows["linear", scale]["taylor error"] < 1e-12
    small, whole = (rows["mlp", scale]["taylor error"] for scale in (0.01, 1.0))
    assert 0 < small < 1e-3 * whole, "third order"


@pytest.mark.parametrize("name", ["linear", "logistic", "mlp"])
def test_models_by_vectors(name: str) -> None:
    """The Hessian by differences; training ends where the gradient is small."""
    model = MODELS[name]
    theta, x, y = fitted(model, 3, 200, Generator().manual_seed(0))
    slope = torch.func.grad(model.loss)
    assert slope(theta, x[40:], y[40:]).norm() < 0.05 * slope(theta + 0.5, x[40:], y[40:]).norm()
    step = 1e-6 * torch.eye(len(theta), dtype=torch.float64)
    rows = [(slope(theta + e, x, y) - slope(theta - e, x, y)) / 2e-6 for e in step]
    exact = hessian(model, theta, x, y)
    torch.testing.assert_close(
        torch.stack(rows), exact, rtol=1e-4, atol=1e-6 * float(exact.abs().max())
    )


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_prior_and_distillation_part_at_third_order(kind: str) -> None:
    """With batch norm too: its statistics are those of w0."""
    torch.manual_seed(0)
    deep = resnet(shape=(1, 4, 4), activation="tanh")
    net: Any = mlp(activation="tanh") if kind == "mlp" else deep
    made, stream = learner(net, transform=identity()), blobs("data", each=60)
    order, schedule = Generator().manual_seed(0), Schedule(6, 8, "train", "none", "none", 0.5)
    page = prior_vs_distillation.study(made, stream, order, schedule, [1e-4, 2e-4, 5e-4])
    assert page.rows[1]["order"] == pytest.approx(3, abs=0.2)
    assert page.rows[0]["KL"] == pytest.approx(page.rows[0]["quadratic"], rel=0.1)
    assert page.rows[0]["KL"] > 0
    made.criterion = ScaledMSE(1.0)
    with pytest.raises(UserError, match="criterion=cross_entropy"):
        prior_vs_distillation.study(made, stream, order, schedule, [1e-3, 2e-3])


def record(folder: Path, name: str, strength: float, split: str, seed: int, acc: float) -> Any:
    config = {"a": {"_target_": f"some.{name}"}, "s": strength, "evaluation": {"split": split}}
    measured = {"train_seconds": [1.0, 2.0]}
    told = {"seed": seed, "metrics": {"ACC": acc}, "measured": measured}
    told["gradients_per_sample"] = 1.0
    return folder, {"config": config, "hash": f"{name}{strength}{split}"} | told


def test_a_grid_is_chosen_on_validation_and_reported_on_test(tmp_path: Path) -> None:
    found = [
        record(tmp_path, name, strength, split, seed, acc + 0.01 * seed)
        for name, strength, split, acc in (
            ("One", 1.0, "val", 0.5),
            ("One", 10.0, "val", 0.6),
            ("One", 1.0, "test", 0.9),
            ("One", 10.0, "test", 0.4),
            ("Two", 1.0, "val", 0.3),
        )
        for seed in (0, 1)
    ]
    page = Grid("a title", ["a._target_", "absent"], "s", {"One": 41.0}).page(found)
    text = page.write(tmp_path / "out")
    assert "One: s 10, validation 60.50, test 40.50 +- 0.71 (n = 2)" in text
    assert "Two: s 1, validation 30.50\n" in text
    with (tmp_path / "out/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["variant"], float(r["value"]), r["chosen"]) for r in rows] == [
        ("One", 1.0, ""),
        ("One", 10.0, "*"),
        ("Two", 1.0, "*"),
    ]
    assert (tmp_path / "out/figure.png").stat().st_size > 5000
    found[0][1]["hash"] = "other"
    with pytest.raises(UserError, match="One, s=1 was run there with other values"):
        Grid("a title", ["a._target_"], "s", {}).page(found)


def test_a_value_that_lost_a_seed_is_not_chosen(tmp_path: Path) -> None:
    runs = [(1.0, 0, 0.5), (1.0, 1, 0.5), (9.0, 0, 0.9)]
    found = [record(tmp_path, "One", s, "val", seed, acc) for s, seed, acc in runs]
    page = Grid("a title", ["a._target_"], "s", {}).page(found)
    assert [row["chosen"] for row in page.rows] == ["*", ""]


def test_an_ablation_has_a_column_for_each_part(tmp_path: Path) -> None:
    found = [
        record(tmp_path, name, strength, "test", seed, acc + 0.01 * seed)
        for name, strength, acc in (("One", 1.0, 0.5), ("One", 2.0, 0.6), ("Two", 1.0, 0.4))
        for seed in (0, 1)
    ]
    for _, each in found:
        each["metrics"]["BWT"] = -0.1
        if each["config"]["s"] == 2.0:
            del each["config"]["a"]
    page = Table("a title", ["a._target_", "s"]).page(found)
    assert [(r["a"], r["s"], r["n"]) for r in page.rows] == [
        ("One", "1.0", 2),
        ("Two", "1.0", 2),
        ("none", "2.0", 2),
    ]
    assert [r["ACC"] for r in page.rows] == pytest.approx([50.5, 40.5, 60.5])
    assert page.rows[0]["ACC sd"] == pytest.approx(0.5**0.5) and page.rows[0]["BWT"] == -10
    assert "highest: a=none, s=2.0, ACC 60.50 (n = 2)" in page.write(tmp_path / "out")
    found[0][1]["metrics"]["BWT"] = None
    assert Table("a title", ["a._target_", "s"]).page(found).rows[0]["BWT"] == -10
    found[0][1]["hash"] = "other"
    with pytest.raises(UserError, match=r"One 1\.0 was run there with other values"):
        Table("a title", ["a._target_", "s"]).page(found)


def test_traces_of_a_probe(tmp_path: Path) -> None:
    lines = [
        '{"event": "probe", "task": 0, "step": 0, "max_eigenvalue": 2.0, "accuracy": 0.0}',
        '{"event": "step", "step": 5, "task": 0, "loss": 0.5}',
        '{"event": "probe", "task": 0, "step": 9, "max_eigenvalue": 0.5, "accuracy": 1.0}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    found = [record(tmp_path, "One", 1.0, "test", 3, 0.5)]
    page = Traces("a title", ["a._target_"], "max_eigenvalue", "log").page(found)
    (row,) = page.rows
    assert row["variant"] == "One seed 3" and row["last / largest"] == 0.25
    assert row["last accuracy"] == 1.0 and "at training accuracy 1.000" in page.findings[0]
    page.write(tmp_path / "out")


def test_traces_of_a_metric(tmp_path: Path) -> None:
    lines = [
        '{"event": "task", "task": 0, "accuracy": {"0": 0.5}, "metrics": {"ACC": 0.5}}',
        '{"event": "task", "task": 1, "accuracy": {"0": 0.4}, "metrics": {"ACC": 0.75}}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    found = [record(tmp_path, "One", 1.0, "test", 3, 0.5)]
    page = Traces("a title", ["a._target_"], "ACC", "linear").page(found)
    (row,) = page.rows
    assert row["first"] == 0.5 and row["last"] == 0.75 and "last accuracy" not in row
    assert "training accuracy" not in page.findings[0]
    page.write(tmp_path / "out")


@pytest.mark.parametrize("criterion", ["ce", "mse"])
def test_the_probe_is_the_largest_eigenvalue(criterion: str) -> None:
    import reference as ref

    made, task = ref.case("mlp", criterion)
    live = torch.ones(3, ref.CLASSES, dtype=torch.bool)
    live[:, 3] = False
    made.begin_task(live, torch.tensor([0]), None)
    task = type(task)(0, task.x, task.y % 3, task.t)
    rng, before = made.rng.get_state(), made.flat.theta.detach().clone()
    found = MaxEigenvalue(every=1, samples=5, iterations=300)(made, blobs("data"), task)
    spread = torch.tensor([0, 1, 2, 4, 5])  # of seven
    part = type(task)(0, task.x[spread], task.y[spread], task.t[spread])
    exact = torch.linalg.eigvalsh(ref.fisher(made, part))[-1]
    assert found["max_eigenvalue"] == pytest.approx(float(exact), rel=1e-5)
    with torch.no_grad():
        said = made.logits(made.flat.theta, Batch(part.x, part.y, part.t))[:, :3].argmax(1)
    assert found["accuracy"] == pytest.approx(float((said == part.y).double().mean()))
    assert made.rng.get_state().equal(rng) and made.flat.theta.equal(before) and made.net.training


def test_a_study_is_one_command_and_not_done_twice(tmp_path: Path) -> None:
    ask = "experiment=hessian_ratio", "study.dimensions=[4]", "study.repeats=2"
    small = "study.extension_dimension=0"
    code, out, err = finished(command(*ask, small, where=tmp_path / "out"))
    assert code == 0, err
    assert "linear regression: at most" in out
    (folder,) = (tmp_path / "out/studies/hessian_ratio").glob("*/seed0")
    made = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {"page.md", "table.csv", "figure.png", "status.json"} <= set(made)
    code, again, _ = finished(command(*ask, small, where=tmp_path / "out"))
    assert code == 0 and again == out
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == made | {
        "lock": made["lock"]
    }


def test_a_page_that_was_removed_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = "experiment=hessian_ratio", "study.dimensions=[4]", "study.repeats=2"
    cfg = composed(*ask, "study.extension_dimension=0")
    plain, folder = check_config(cfg), Folder(tmp_path)
    plan = Plan(cfg, plain, config_hash(cfg), ["", "", ""], folder, code_of(targets(plain)))
    job.study(plan)
    first = capsys.readouterr().out
    (tmp_path / "page.md").unlink()
    job.study(plan)
    assert capsys.readouterr().out == first and (tmp_path / "page.md").is_file()


def test_a_sweep_with_its_page(tmp_path: Path) -> None:
    """experiment=fisher_vs_hessian on bundled digits, two strengths, one task less than three."""
    small = "dataset=pmnist5k", "dataset.tasks=2", "seed=0", "method.strength=1,10"
    ask = "experiment=fisher_vs_hessian", *small, "evaluation.split=val"
    code, out, err = finished(command(*ask, "curvature=diag_ggn", where=tmp_path / "out"))
    assert code == 0, err
    assert "DiagonalHessian ggn: strength" in out
    assert {"page.md", "table.csv", "figure.png"} <= {p.name for p in (tmp_path / "out").iterdir()}


def test_a_study_on_a_network(tmp_path: Path) -> None:
    small = "experiment=prior_vs_distillation", "study.scales=[0.01,0.02]"
    code, out, err = finished(command(*small, where=tmp_path / "out"))
    assert code == 0, err
    assert "gradients of both objectives at w0" in out
    code, _, err = finished(command(*small, "dataset.tasks=1", where=tmp_path / "out"))
    assert code == 2 and err.strip().endswith("needs two tasks and two scales or more")

"""Studies on a network: the laws that they must find, their files, and that none is done twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import blobs, command, composed, finished, identity, learner, mlp, resnet, scheduled
from torch import Generator

from cl_bench.base.exceptions import UserError
from cl_bench.config.check import check_config
from cl_bench.config.name import config_hash
from cl_bench.config.nodes import targets
from cl_bench.core.criteria import CrossEntropy, ScaledMSE
from cl_bench.core.types import Batch
from cl_bench.curvature.dense import FullFisher
from cl_bench.curvature.kfac import KFAC
from cl_bench.engine import job
from cl_bench.engine.execution import Plan
from cl_bench.models.prepare import prepare_network
from cl_bench.probes.max_eigenvalue import MaxEigenvalue
from cl_bench.results.folder import Folder
from cl_bench.results.source_code import code_of
from cl_bench.studies import curvature_quality, hessian_ratio, prior_vs_distillation, taylor_error
from cl_bench.studies.models import MODELS, fitted, hessian


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
    order, schedule = (
        Generator().manual_seed(0),
        scheduled(epochs=6),
    )
    page = prior_vs_distillation.study(made, stream, order, schedule, [1e-4, 2e-4, 5e-4])
    assert page.rows[1]["order"] == pytest.approx(3, abs=0.2)
    assert page.rows[0]["KL"] == pytest.approx(page.rows[0]["quadratic"], rel=0.1)
    assert page.rows[0]["KL"] > 0
    made.criterion = ScaledMSE(1.0)
    with pytest.raises(UserError, match="criterion=cross_entropy"):
        prior_vs_distillation.study(made, stream, order, schedule, [1e-3, 2e-3])


def linear_network() -> Any:
    """A network that is linear in all of its parameters."""
    net = mlp(activation="tanh", hidden=[5])
    return prepare_network(
        net, torch.zeros(1, 1, 4, 4), None, "batch", True, "linearized", with_head=False
    )


SERVED = [("data", CrossEntropy()), ("task", CrossEntropy()), ("data", ScaledMSE(3.0))]
SERVED += [("task", ScaledMSE(3.0)), ("class", ScaledMSE(3.0))]


@pytest.mark.parametrize(("scenario", "criterion"), SERVED)
def test_the_rise_of_a_past_loss(scenario: str, criterion: Any) -> None:
    """On a linear network: 1/2 d'Gd is the second order in the outputs, and the exact Fisher's."""
    torch.manual_seed(0)
    made = learner(linear_network(), transform=identity())
    made.criterion, stream = criterion, blobs(scenario, each=40)
    order, schedule = (
        Generator().manual_seed(0),
        scheduled(epochs=5),
    )
    estimators = {"full": FullFisher("exact", None), "kfac": KFAC("exact", None, "diagonal")}
    page = curvature_quality.study(made, stream, order, schedule, estimators, 3)
    assert [row["step"] for row in page.rows] == [k for k in (9, 18, 25) for _ in range(4)]
    rows = {row["curvature"]: row for row in page.rows[-4:]}
    exact, full = rows[curvature_quality.EXACT], rows["full"]
    half = exact[curvature_quality.HALF]
    assert half > 0 and 0.01 < rows["kfac"]["share"] < 10
    assert rows["kfac"]["share"] != pytest.approx(1, rel=1e-3)
    assert half == pytest.approx(exact["in outputs"], rel=1e-3)
    assert full["share"] == pytest.approx(1, rel=1e-3)
    assert full["of the head"] == pytest.approx(exact["of the head"], rel=1e-3, abs=1e-9)
    assert exact["rise"] != pytest.approx(half, rel=1e-3), "task 0 has a gradient left"
    assert full["of the body"] > 0
    layers = rows[curvature_quality.LAYERS]
    assert layers["of the head"] == exact["of the head"]
    assert layers[curvature_quality.HALF] == pytest.approx(
        layers["of the head"] + layers["of the body"]
    )


def test_the_layers_are_the_blocks_of_the_matrix() -> None:
    """The sum over the layers is d'Bd with B the diagonal blocks of a dense matrix."""
    made = learner(mlp(), transform=identity())
    count, flat = made.flat.theta.numel(), made.flat
    root = torch.randn(count, count, generator=Generator().manual_seed(0), dtype=torch.float64)
    matrix, move = root @ root.T, torch.randn(count, dtype=torch.float64)
    parts = [*curvature_quality.by_layer(flat, move)]
    assert torch.stack(parts).sum(0).equal(move)
    wanted = 0.0
    layers = dict.fromkeys(name.rpartition(".")[0] for name in flat.slices)
    assert len(parts) == len(layers) >= 2
    for layer in layers:
        own = torch.cat(
            [torch.arange(count)[s] for n, s in flat.slices.items() if n.startswith(f"{layer}.")]
        )
        wanted += float(move[own] @ matrix[own][:, own] @ move[own])
    found = sum(float(part @ matrix @ part) for part in parts)
    assert found == pytest.approx(wanted)


def test_the_rise_is_not_measured_while_statistics_move() -> None:
    made, stream = learner(resnet(shape=(1, 4, 4)), transform=identity()), blobs("data", each=40)
    order, schedule = (
        Generator().manual_seed(0),
        scheduled(epochs=1),
    )
    with pytest.raises(UserError, match=r"use model\.norm=folded, or schedule.batch_norm=frozen"):
        curvature_quality.study(made, stream, order, schedule, {}, 3)
    grows = blobs("class", each=40)
    with pytest.raises(UserError, match="with new competitors a softmax has another"):
        curvature_quality.study(made, grows, order, schedule, {}, 3)
    one = replace(stream, tasks=stream.tasks[:1])
    with pytest.raises(UserError, match="needs two tasks"):
        curvature_quality.study(made, one, order, schedule, {}, 3)


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
        outputs = made.logits(made.flat.theta, Batch(part.x, part.y, part.t))[:, :3].argmax(1)
    assert found["accuracy"] == pytest.approx(float((outputs == part.y).double().mean()))
    assert made.rng.get_state().equal(rng) and made.flat.theta.equal(before) and made.net.training


def plan(folder: Path, *overrides: str) -> Plan:
    """A study that is to be made in a folder."""
    cfg = composed(*overrides)
    plain = check_config(cfg)
    return Plan(cfg, plain, config_hash(cfg), ["", "", ""], Folder(folder), code_of(targets(plain)))


RATIO = ("experiment=hessian_ratio", "study.dimensions=[4]", "study.repeats=2")
RATIO += ("study.extension_dimension=0",)


def test_a_study_is_one_command(tmp_path: Path) -> None:
    code, out, err = finished(command(*RATIO, where=tmp_path / "out"))
    assert code == 0, err
    assert "linear regression: at most" in out
    (folder,) = (tmp_path / "out/studies/hessian_ratio").glob("*/seed0")
    made = {path.name for path in folder.iterdir()}
    assert {"page.md", "table.csv", "figure.png", "status.json"} <= made


def test_a_study_is_not_done_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unless its page was removed; it is printed each time."""
    study = plan(tmp_path, *RATIO)
    job.run_study(study)
    first = capsys.readouterr().out
    made = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    job.run_study(study)
    assert capsys.readouterr().out == first
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == made
    (tmp_path / "page.md").unlink()
    job.run_study(study)
    assert capsys.readouterr().out == first and (tmp_path / "page.md").is_file()


def test_a_study_on_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = "experiment=prior_vs_distillation", "study.scales=[0.01,0.02]"
    job.run_study(plan(tmp_path / "two", *small))
    assert "gradients of both objectives at w0" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"needs two tasks and two scales or more$"):
        job.run_study(plan(tmp_path / "one", *small, "dataset.tasks=1"))

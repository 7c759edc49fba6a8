"""Every curvature against dense matrices in float64: what it is, and what it does to vectors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import reference as ref
import torch
import torch.nn.functional as F
from conftest import DEVICES, batch, composed, identity, learner, machine, mlp, names, resnet
from torch import Generator, Tensor, nn

from cl_bench.base.exceptions import UserError
from cl_bench.config.build import make_network
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Task
from cl_bench.curvature import backward, capture, diagonal, roots, sums
from cl_bench.curvature.base import Estimator, checked_eigh, eigh
from cl_bench.curvature.capture import PATCHES
from cl_bench.curvature.dense import FullFisher, FullHessian
from cl_bench.curvature.diagonal import BY_ROWS, MAS, BatchedFisher, Fisher, Identity
from cl_bench.curvature.elementwise import elementwise
from cl_bench.curvature.hessian import DiagonalHessian, HessianRowSums
from cl_bench.curvature.kfac import EKFAC, KFAC, TKFAC
from cl_bench.curvature.products import ggn_product, largest_eigenvalue
from cl_bench.curvature.sums import gram, mirrored
from cl_bench.models.head import head_of
from cl_bench.models.layers import accept_single_samples

CLOSE: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-10}
ESTIMATORS: dict[str, Estimator] = {
    "identity": Identity(),
    "diag_fisher": Fisher("exact", None),
    "batched": BatchedFisher(2, None),
    "mas": MAS(None),
    "diag_hessian": DiagonalHessian("exact", "absolute", 1, None),
    "full": FullFisher("exact", None),
    "full_hessian": FullHessian("clamped", None),
    "kfac": KFAC("exact", None, "diagonal"),
    "tkfac": TKFAC("exact", None, "diagonal", "published"),
    "ekfac": EKFAC("exact", None, "diagonal"),
}
CASES = [(kind, name) for kind in ref.KINDS for name in ESTIMATORS]


def size(made: Learner) -> int:
    return made.flat.theta.numel()


@pytest.mark.parametrize("criterion", ["ce", "mse"])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_operations_are_those_of_the_dense_matrix(kind: str, name: str, criterion: str) -> None:
    made, task = ref.case(kind, criterion)
    found: Any = ESTIMATORS[name](made, task)
    matrix = ref.dense(found.matvec, size(made))
    torch.testing.assert_close(matrix, matrix.T, **CLOSE)
    values = torch.linalg.eigvalsh(matrix)
    assert values[0] > -1e-9 * values[-1], "positive semi-definite"
    v = torch.randn(3, size(made), generator=Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(found.matvec(v), v @ matrix, **CLOSE)
    damped = matrix + 0.3 * torch.eye(size(made), dtype=torch.float64)
    torch.testing.assert_close(found.solve(v, 0.3), torch.linalg.solve(damped, v.T).T, **CLOSE)
    drawn, anchor = v[0].clone(), v[1]
    found.shrinkage(0.3).pull_towards_(drawn, anchor)
    wanted = torch.linalg.solve(damped, (v[0] - anchor) * 0.3) + anchor
    torch.testing.assert_close(drawn, wanted, **CLOSE)
    pushed = v[2].clone()
    found.add_matvec_(pushed, v[0], 0.7)
    torch.testing.assert_close(pushed, v[2] + 0.7 * matrix @ v[0], **CLOSE)
    torch.testing.assert_close(found.trace(), matrix.trace(), **CLOSE)
    torch.testing.assert_close(found.max_eigenvalue(), values[-1], **CLOSE)


def halves(task: Task) -> tuple[Task, Task]:
    cut = 3
    parts = (slice(0, cut), slice(cut, None))
    one, two = (Task(task.id, task.x[p], task.y[p], task.t[p]) for p in parts)
    return one, two


POOLED = ("identity", "diag_fisher", "mas", "full", "kfac", "tkfac")  # linear in the samples


@pytest.mark.parametrize("name", POOLED)
@pytest.mark.parametrize("kind", ref.KINDS)
def test_merging_the_parts_gives_the_whole(kind: str, name: str) -> None:
    """By number of samples, at one theta; EKFAC's diagonal is in another basis, see below."""
    made, task = ref.case(kind)
    (one, two), estimate = halves(task), ESTIMATORS[name]
    first: Any = estimate(made, one)
    merged = first.merge(estimate(made, two), 3 / 7, 4 / 7)
    whole = ref.dense(estimate(made, task).matvec, size(made))
    torch.testing.assert_close(ref.dense(merged.matvec, size(made)), whole, **CLOSE)


@pytest.mark.parametrize("name", ["identity", "diag_fisher", "full", "full_hessian"])
def test_linear_families_add_up(name: str) -> None:
    made, task = ref.case("mlp")
    one, two = (ESTIMATORS[name](made, part) for part in halves(task))
    found = ref.dense(one.merge(two, 2.0, 0.5).matvec, size(made))  # type: ignore[arg-type]
    parts = ref.dense(one.matvec, size(made)), ref.dense(two.matvec, size(made))
    torch.testing.assert_close(found, 2 * parts[0] + 0.5 * parts[1], **CLOSE)
    assert ESTIMATORS[name].linear


@pytest.mark.parametrize("name", ["kfac", "tkfac", "ekfac"])
def test_factored_families_merge_by_their_weights(name: str) -> None:
    """Twice the same is twice as much; a weight of zero leaves nothing behind."""
    made, task = ref.case("conv")
    one, two = (ESTIMATORS[name](made, part) for part in halves(task))
    alone = ref.dense(one.matvec, size(made))
    doubled = ref.dense(one.merge(one, 1.0, 1.0).matvec, size(made))  # type: ignore[arg-type]
    torch.testing.assert_close(doubled, 2 * alone, **CLOSE)
    kept = ref.dense(one.merge(two, 1.0, 0.0).matvec, size(made))  # type: ignore[arg-type]
    torch.testing.assert_close(kept, alone, **CLOSE)
    trace = one.merge(two, 2.0, 0.5).trace()  # type: ignore[arg-type]
    if name != "kfac":
        torch.testing.assert_close(trace, 2 * one.trace() + 0.5 * two.trace(), **CLOSE)
    assert not ESTIMATORS[name].linear


@pytest.mark.parametrize("kind", ["conv", "groups"])
def test_plain_averages_of_factors(kind: str) -> None:
    """(1 - r) A + r B for each factor and the scale; it differs from the pooled factors."""
    made, task = ref.case(kind)
    one, two = (TKFAC("exact", None, "diagonal", "exact")(made, part) for part in halves(task))
    plain, pooled = (
        factors(one.merge(two, 0.25, 0.75, plain=True)),
        factors(one.merge(two, 0.25, 0.75)),
    )
    pairs = zip(factors(one), factors(two), plain, pooled, strict=True)
    differ = 0
    for unit, (mine, theirs, found, other) in zip(ref.units(made), pairs, strict=True):
        wanted = tuple(0.25 * x + 0.75 * y for x, y in zip(mine, theirs, strict=True))
        torch.testing.assert_close(found, wanted, **CLOSE)
        torch.testing.assert_close(found[2], other[2], **CLOSE)
        differ += not torch.allclose(found[0], other[0]) and not ref.has_exact_block(made, unit)
    assert differ >= 2


@pytest.mark.parametrize("kind", ["conv", "tokens", "tangent tokens"])
def test_ekfacs_trace_is_the_fishers_in_every_basis(kind: str) -> None:
    """Its diagonal is of the gradients themselves, whichever factors give the basis."""
    made, task = ref.case(kind)
    exact = ref.fisher(made, task).trace()
    found = [EKFAC("exact", None, "diagonal", by)(made, task) for by in ("expand", "reduce")]
    for one in found:
        torch.testing.assert_close(one.trace(), exact, **CLOSE)
    v = torch.randn(size(made), dtype=torch.float64, generator=Generator().manual_seed(0))
    expanded, reduced = (one.matvec(v) for one in found)
    assert not torch.allclose(expanded, reduced)


def test_ekfac_merges_to_the_best_diagonal_in_the_pooled_basis() -> None:
    made, task = ref.case("mlp")
    one, two = (ESTIMATORS["ekfac"](made, part) for part in halves(task))
    merged: Any = one.merge(two, 2.0, 0.5)  # type: ignore[arg-type]
    matrices = [ref.dense(c.matvec, size(made)) for c in (one, two)]
    total = 2 * matrices[0] + 0.5 * matrices[1]
    pooled = KFAC("exact", None, "diagonal")
    basis: Any = pooled(made, halves(task)[0]).merge(pooled(made, halves(task)[1]), 2.0, 0.5)
    for name, block, factors in zip(ref.units(made), merged.blocks, basis.blocks, strict=True):
        at = ref.order(made, name)
        _, u_a, _, u_g = factors.eigen
        turn = torch.kron(u_g, u_a)
        best = (turn.T @ total[at][:, at] @ turn).diagonal()
        torch.testing.assert_close(block.values.flatten(), best, **CLOSE)


@pytest.mark.parametrize("criterion", ["ce", "mse"])
@pytest.mark.parametrize("kind", ref.KINDS)
def test_fisher_is_the_ggn(kind: str, criterion: str) -> None:
    """Scale 1: the mean over samples of J' H J, whatever is not stored of it."""
    made, task = ref.case(kind, criterion)
    exact = ref.fisher(made, task)
    torch.testing.assert_close(FullFisher("exact", None)(made, task).matrix, exact, **CLOSE)
    found = Fisher("exact", None)(made, task).values
    torch.testing.assert_close(found, exact.diagonal(), **CLOSE)
    v = torch.randn(size(made), dtype=torch.float64, generator=Generator().manual_seed(0))
    torch.testing.assert_close(ggn_product(made, task)(v), exact @ v, **CLOSE)


@pytest.mark.parametrize("kind", ["mlp", "tangent groups"])
def test_the_largest_eigenvalue_is_that_of_the_matrix(kind: str) -> None:
    made, task = ref.case(kind)
    v = torch.randn(size(made), dtype=torch.float64, generator=Generator().manual_seed(0))
    top, _ = largest_eigenvalue(ggn_product(made, task), v, 300)
    exact = torch.linalg.eigvalsh(ref.fisher(made, task))[-1]
    torch.testing.assert_close(top, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ref.KINDS)
def test_any_network_takes_the_rows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that have no formula here: the same numbers by per-sample gradients."""
    made, task = ref.case(kind)
    for estimate in (Fisher("exact", None), Fisher("empirical", None), MAS(None)):
        by_layers = estimate(made, task).values
        with monkeypatch.context() as patch:
            patch.setattr(made.net, BY_ROWS, True, raising=False)
            patch.setattr(diagonal, "visits", None)
            torch.testing.assert_close(estimate(made, task).values, by_layers, **CLOSE)


@pytest.mark.parametrize("kind", ref.KINDS)
def test_empirical_fisher_equals_the_loop(kind: str) -> None:
    made, task = ref.case(kind)
    rows = ref.labelled_gradients(made, task)
    found = Fisher("empirical", None)(made, task).values
    torch.testing.assert_close(found, rows.square().mean(0), **CLOSE)
    assert made.net.training
    matrix = FullFisher("empirical", None)(made, task).matrix
    torch.testing.assert_close(matrix, rows.T @ rows / len(task), **CLOSE)


def test_batched_is_the_square_of_the_mean() -> None:
    made, task = ref.case("conv")
    rows = ref.labelled_gradients(made, task)
    found = BatchedFisher(3, None)(made, task).values
    assert len(rows) % 3, "the last batch is smaller, and counts for less"
    expected = sum(len(part) * part.mean(0).square() for part in rows.split(3)) / len(rows)
    torch.testing.assert_close(found, expected, **CLOSE)
    single = BatchedFisher(1, None)(made, task).values
    torch.testing.assert_close(single, rows.square().mean(0), **CLOSE)


@pytest.mark.parametrize("kind", ref.KINDS)
def test_mas_equals_the_loop(kind: str) -> None:
    made, task = ref.case(kind)
    rows = [ref.flat_gradient(made, f.square().sum()) for _, f in ref.singles(made, task)]
    found = MAS(None)(made, task).values
    torch.testing.assert_close(found, torch.stack(rows).abs().mean(0), **CLOSE)
    relabelled = MAS(None)(made, Task(0, task.x, task.y.flip(0), task.t)).values
    assert found.equal(relabelled), "no label is used"
    with torch.no_grad():
        head_of(made.net).weight.mul_(3)
        head_of(made.net).bias.mul_(3)
    scaled = made.flat.views(MAS(None)(made, task).values)
    before = made.flat.views(found)
    first = next(iter(before))
    torch.testing.assert_close(scaled[first], 9 * before[first], **CLOSE)


@pytest.mark.parametrize("criterion", ["ce", "mse"])
def test_sampled_labels_are_right_in_expectation(criterion: str) -> None:
    made, task = ref.case("mlp", criterion)
    many = Task(0, *(getattr(task, f).repeat_interleave(4000, 0) for f in "xyt"))
    exact = Fisher("exact", None)(made, task).values
    found = Fisher("sampled", None)(made, many).values
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.02 * float(exact.max()))
    trace = KFAC("sampled", None, "diagonal")(made, many).trace()
    torch.testing.assert_close(
        trace, KFAC("exact", None, "diagonal")(made, task).trace(), rtol=0.05, atol=0
    )
    again = Fisher("sampled", None)(made, many).values
    assert not again.equal(found), "the learner's generator moves on"


def test_ggn_is_the_hessian_of_a_linear_softmax() -> None:
    made, task = ref.case("mlp")
    made = learner(mlp(ref.CLASSES, (2, 2, 2), hidden=[]).double(), transform=made.transform)
    exact = ref.hessian(made, task)
    torch.testing.assert_close(FullFisher("exact", None)(made, task).matrix, exact, **CLOSE)
    for estimate in ("ggn", "exact"):
        found = DiagonalHessian(estimate, "raw", 1, None)(made, task).values  # type: ignore[arg-type]
        torch.testing.assert_close(found, exact.diagonal(), **CLOSE)


@pytest.mark.parametrize("kind", ref.KINDS)
def test_hessians(kind: str) -> None:
    made, task = ref.case(kind)
    exact = ref.hessian(made, task)
    torch.testing.assert_close(FullHessian("raw", None)(made, task).matrix, exact, **CLOSE)
    raw = exact.diagonal()
    found = DiagonalHessian("exact", "raw", 1, None)(made, task).values
    torch.testing.assert_close(found, raw, **CLOSE)


@pytest.mark.parametrize("kind", ["mlp", "tangent"])
def test_probes_come_near_the_diagonal(kind: str) -> None:
    made, task = ref.case(kind)
    exact = ref.hessian(made, task).diagonal()
    probed = DiagonalHessian("hutchinson", "raw", 800, None)(made, task).values
    torch.testing.assert_close(probed, exact, rtol=0, atol=0.35 * float(exact.abs().max()))


def test_negative_curvature_is_turned_or_cut_off() -> None:
    made, task = ref.case("mlp")
    exact = ref.hessian(made, task)
    values, vectors = torch.linalg.eigh(exact)
    assert values[0] < 0, "not a minimum"
    for negative, wanted in (("absolute", values.abs()), ("clamped", values.clamp(min=0))):
        found = FullHessian(negative, None)(made, task).matrix  # type: ignore[arg-type]
        torch.testing.assert_close(found, vectors * wanted @ vectors.T, **CLOSE)
    raw = exact.diagonal()
    for negative, wanted in (("absolute", raw.abs()), ("clamped", raw.clamp(min=0))):
        found = DiagonalHessian("exact", negative, 1, None)(made, task).values  # type: ignore[arg-type]
        torch.testing.assert_close(found, wanted, **CLOSE)


def test_one_probe_is_enough_where_the_hessian_is_diagonal() -> None:
    """One unit for each weight: f = W x with one-hot x, squared loss."""
    made, _ = ref.case("mlp", "mse")
    made = learner(mlp(ref.CLASSES, (2, 2, 2), hidden=[]).double(), transform=made.transform)
    made.criterion = ref.CRITERIA["mse"]
    transform: Any = made.transform
    transform.shift.zero_()
    x = 255 * torch.eye(8, dtype=torch.uint8).view(8, 2, 2, 2)
    task = Task(0, x, torch.zeros(8, dtype=torch.long), torch.zeros(8, dtype=torch.long))
    weights = made.flat.slices["head.weight"]
    with torch.no_grad():
        found = DiagonalHessian("hutchinson", "raw", 1, None)
    one, exact = found(made, task).values, ref.hessian(made, task)
    off = (exact[weights, weights] - exact[weights, weights].diagonal().diag()).abs().max()
    assert off < 1e-12
    sums = HessianRowSums(None)(made, task).values
    cross = exact[weights, made.flat.slices["head.bias"]].sum(1)
    torch.testing.assert_close(sums[weights], exact.diagonal()[weights] + cross, **CLOSE)
    assert (one[weights] - exact.diagonal()[weights]).abs().max() <= cross.abs().max() + 1e-9


@pytest.mark.parametrize("kind", ref.KINDS)
def test_row_sums_are_not_the_diagonal(kind: str) -> None:
    made, task = ref.case(kind, samples=2)
    hessians = torch.stack([ref.hessian(made, part) for part in _each(task)])
    found = HessianRowSums(None)(made, task).values
    torch.testing.assert_close(found, hessians.sum(2).abs().mean(0), **CLOSE)
    exact = hessians.diagonal(dim1=1, dim2=2).abs().mean(0)
    assert not torch.allclose(found, exact, rtol=0.1)


def _each(task: Task) -> list[Task]:
    return [Task(0, *(getattr(task, f)[i : i + 1] for f in "xyt")) for i in range(len(task))]


def factors(found: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    """A, G and the scale of each group of each block."""
    return [
        triple
        for block in found.blocks
        for triple in (
            zip(block.a, block.g, block.scale, strict=True)
            if block.place.groups > 1
            else [(block.a, block.g, block.scale)]
        )
    ]


@pytest.mark.parametrize("criterion", ["ce", "mse"])
@pytest.mark.parametrize("kind", ref.KINDS)
def test_factors_equal_loops_over_samples_roots_and_places(kind: str, criterion: str) -> None:
    made, task = ref.case(kind, criterion)
    found: Any = KFAC("exact", None, "diagonal")(made, task)
    traced: Any = TKFAC("exact", None, "diagonal", "published")(made, task)
    wanted, wanted_traced = ref.kfac(made, task), ref.tkfac(made, task)
    every = zip(ref.units(made), factors(found), factors(traced), strict=True)
    for unit, (a, g, scale), (phi, psi, delta) in every:
        if ref.has_exact_block(made, unit):
            continue  # the next test
        torch.testing.assert_close((a, g), wanted[unit], **CLOSE)
        assert scale == 1
        torch.testing.assert_close((phi, psi, delta), wanted_traced[unit], **CLOSE)
        torch.testing.assert_close(phi.trace(), torch.ones_like(delta), **CLOSE)


@pytest.mark.parametrize("kind", ref.KINDS)
def test_blocks_are_kronecker_products_in_the_order_of_the_vector(kind: str) -> None:
    """And the exact blocks of the Fisher, where a group has one output."""
    made, task = ref.case(kind)
    found: Any = KFAC("exact", None, "diagonal")(made, task)
    matrix, fisher = ref.dense(found.matvec, size(made)), ref.fisher(made, task)
    rest, exact = torch.ones(size(made), dtype=torch.bool), 0
    for unit, (a, g, _) in zip(ref.units(made), factors(found), strict=True):
        at = ref.order(made, unit)
        block = torch.kron(g, a)
        torch.testing.assert_close(matrix[at][:, at], block, **CLOSE)
        if ref.has_exact_block(made, unit):
            torch.testing.assert_close(block, fisher[at][:, at], **CLOSE)
            exact += 1
        matrix[at.unsqueeze(1), at] = 0
        rest[at] = False
    torch.testing.assert_close(matrix, torch.where(rest, fisher.diagonal(), 0).diag(), **CLOSE)
    assert exact == (4 if "groups" in kind else 0)


@pytest.mark.parametrize("kind", ["groups", "tangent groups"])
@pytest.mark.parametrize("estimate", [KFAC, EKFAC, TKFAC])
def test_exact_blocks_stay_exact_when_merged(kind: str, estimate: Any) -> None:
    made, task = ref.case(kind)
    options: Any = ("exact", None, "diagonal") + (("exact",) if estimate is TKFAC else ())
    one, two = (estimate(*options)(made, part) for part in halves(task))
    exact = sum(0.3 * k * ref.fisher(made, part) for k, part in enumerate(halves(task), 1))
    assert isinstance(exact, Tensor)
    found = ref.dense(one.merge(two, 0.3, 0.6).matvec, size(made))
    for unit in ref.units(made):
        if ref.has_exact_block(made, unit):
            at = ref.order(made, unit)
            torch.testing.assert_close(found[at][:, at], exact[at][:, at], **CLOSE)


def test_frozen_batch_norm_has_no_curvature() -> None:
    made, task = ref.case("norm")
    for estimate in (KFAC, EKFAC):
        values = ref.dense(estimate("exact", None, "frozen")(made, task).matvec, size(made))
        for part in ("weight", "bias"):
            assert values[made.flat.slices[f"body.1.{part}"]].eq(0).all()


def test_kfac_is_exact_for_one_linear_layer_with_squared_loss() -> None:
    made, task = ref.case("mlp", "mse")
    made = learner(mlp(ref.CLASSES, (2, 2, 2), hidden=[]).double(), transform=made.transform)
    made.criterion = ref.CRITERIA["mse"]
    exact = ref.fisher(made, task)
    torch.testing.assert_close(exact, ref.hessian(made, task), **CLOSE)
    for estimate in (KFAC("exact", None, "diagonal"), EKFAC("exact", None, "diagonal")):
        found: Any = estimate(made, task)
        torch.testing.assert_close(ref.dense(found.matvec, size(made)), exact, **CLOSE)
    g = KFAC("exact", None, "diagonal")(made, task).blocks[0].g  # type: ignore[attr-defined]
    torch.testing.assert_close(g, torch.eye(ref.CLASSES, dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("criterion", ["ce", "mse"])
def test_tkfac_keeps_the_trace(criterion: str, few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "has_few_places", lambda *_: few)
    made, task = ref.case("mlp", criterion)
    found = TKFAC("exact", None, "diagonal", "published")(made, task)
    torch.testing.assert_close(found.trace(), ref.fisher(made, task).trace(), **CLOSE)
    for kind in ("groups", "conv"):
        made, task = ref.case(kind, criterion)
        exact = ref.fisher(made, task).trace()
        found: Any = TKFAC("exact", None, "diagonal", "exact")(made, task)
        torch.testing.assert_close(found.trace(), exact, **CLOSE)
        fisher = ref.fisher(made, task)
        every = zip(ref.units(made), factors(found), strict=True)
        for unit, (a, g, scale) in every:  # of each group, whichever way it is summed
            at = ref.order(made, unit)
            trace = scale * a.trace() * g.trace()
            torch.testing.assert_close(trace, fisher[at][:, at].trace(), **CLOSE)
    published = TKFAC("exact", None, "diagonal", "published")(made, task)
    assert not torch.allclose(published.trace(), exact, rtol=1e-3), "places do correlate"


def test_tkfac_is_exact_for_one_sample_and_one_root() -> None:
    made, task = ref.case("mlp")
    one = Task(0, task.x[:1], task.y[:1], task.t[:1])
    torch.manual_seed(0)
    made.criterion = OneRoot()
    found: Any = TKFAC("exact", None, "diagonal", "published")(made, one)
    exact = ref.fisher(made, one)
    for unit in ref.units(made):
        at = ref.order(made, unit)
        block = ref.dense(found.matvec, size(made))[at][:, at]
        torch.testing.assert_close(block, exact[at][:, at], **CLOSE)


class OneRoot:
    """A criterion whose Hessian has rank one."""

    squared: ClassVar[bool] = False

    def __call__(self, logits: Tensor, y: Tensor, live: Any) -> Tensor:
        return logits.sum(-1)

    def losses_and_gradients(self, logits: Tensor, y: Tensor, live: Any) -> tuple[Tensor, Tensor]:
        return logits.sum(-1), torch.ones_like(logits)

    def hessian_root(self, logits: Tensor, live: Any, rng: Any) -> Tensor:
        return torch.linspace(-1, 2, logits.shape[-1]).double().expand(1, *logits.shape)


@pytest.mark.parametrize("criterion", ["ce", "mse"])
@pytest.mark.parametrize("kind", ref.KINDS)
def test_ekfac_is_no_worse_than_kfac(kind: str, criterion: str) -> None:
    """In Frobenius norm, layer by layer; the same sampled labels in both passes."""
    made, task = ref.case(kind, criterion)
    exact = ref.fisher(made, task)
    matrices = [
        ref.dense(estimate("exact", None, "diagonal")(made, task).matvec, size(made))
        for estimate in (KFAC, EKFAC)
    ]
    for unit in ref.units(made):
        at = ref.order(made, unit)
        far, near = ((m[at][:, at] - exact[at][:, at]).norm() for m in matrices)
        assert near <= far + 1e-9 * exact.norm(), unit
        trace = matrices[1][at][:, at].trace()
        torch.testing.assert_close(trace, exact[at][:, at].trace(), **CLOSE)


def test_mask_of_live_classes() -> None:
    made, task = ref.case("mlp")
    live = torch.zeros(3, ref.CLASSES, dtype=torch.bool)
    live[:, :2] = True
    made.begin_task(live, torch.tensor([0]), None)
    inside = Task(0, task.x, task.y % 2, task.t)
    exact = ref.fisher(made, inside).diagonal()
    for labels in ("exact", "sampled", "empirical"):
        values = Fisher(labels, None)(made, inside).values
        head = made.flat.views(values)["head.weight"]
        assert head[2:].eq(0).all() and head[:2].gt(0).any()
    torch.testing.assert_close(Fisher("exact", None)(made, inside).values, exact, **CLOSE)
    mas = made.flat.views(MAS(None)(made, inside).values)["head.weight"]
    assert mas[2:].eq(0).all() and mas[:2].gt(0).any()


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("name", sorted(set(ESTIMATORS) - {"batched"}))
def test_parts_of_a_task_do_not_matter(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, task = ref.case(kind)
    v = torch.randn(size(made), dtype=torch.float64, generator=Generator().manual_seed(0))
    whole = ESTIMATORS[name](made, task).matvec(v)
    monkeypatch.setitem(backward.IMAGES, "cpu", 2)
    monkeypatch.setattr(backward, "CHUNK", 5)
    for module in ("backward", "capture", "diagonal", "kfac", "sums", "products"):
        monkeypatch.setattr(f"cl_bench.curvature.{module}.FLOATS", 30)
    monkeypatch.setitem(PATCHES, "cpu", 30)
    torch.testing.assert_close(ESTIMATORS[name](made, task).matvec(v), whole, **CLOSE)


def test_fewer_images_at_once_where_they_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """30 pixels: with a limit of 10 pixels a third of the usual number, the same factors."""
    made, task = ref.case("conv")
    whole = ref.dense(KFAC("exact", None, "diagonal")(made, task).matvec, size(made))
    assert backward.chunk(made, task) == 64
    monkeypatch.setattr(backward, "PIXELS", 10)
    assert backward.chunk(made, task) == 64 * 10 // 30
    monkeypatch.setitem(backward.IMAGES, "cpu", 6)
    assert backward.chunk(made, task) == 2
    parts = ref.dense(KFAC("exact", None, "diagonal")(made, task).matvec, size(made))
    torch.testing.assert_close(parts, whole, **CLOSE)


def test_a_part_of_the_samples() -> None:
    made, task = ref.case("mlp")
    drawn = Generator().manual_seed(0)
    drawn.set_state(made.rng.get_state())
    chosen = torch.randperm(7, generator=drawn)[:3].sort().values
    part = Task(0, task.x[chosen], task.y[chosen], task.t[chosen])
    found = Fisher("exact", 3)(made, task).values
    torch.testing.assert_close(found, Fisher("exact", None)(made, part).values, **CLOSE)
    everything = Fisher("exact", 99)(made, task).values
    torch.testing.assert_close(everything, Fisher("exact", None)(made, task).values, **CLOSE)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.Conv2d(3, 5, 1, stride=2, bias=False),
        nn.Conv2d(3, 5, 5, padding=2),
        nn.Conv2d(3, 3, 3, padding=1, groups=3),
        nn.Conv2d(3, 6, (1, 3), dilation=2, groups=3, bias=False),
    ],
)
@pytest.mark.parametrize("patches", [2**20, 1])
def test_squares_of_any_convolution(
    layer: nn.Conv2d, patches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two roots, the samples at once or one by one."""
    monkeypatch.setitem(PATCHES, "cpu", patches)
    a = torch.randn(4, 3, 7, 8, generator=Generator().manual_seed(0))
    net = nn.Sequential(layer)
    with capture.captured(net) as sites:
        out = net(a)
    (s,) = torch.autograd.grad(out.square().sum(), sites[0].output)
    found = dict(elementwise(sites[0], torch.stack([s, 2 * s]), torch.square))
    for name, parameter in layer.named_parameters():
        looped = torch.zeros_like(parameter)
        for i in range(4):
            (g,) = torch.autograd.grad(layer(a[i : i + 1]).square().sum(), parameter)
            looped += g.square() + (2 * g).square()
        torch.testing.assert_close(found[f"0.{name}"], looped, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.BatchNorm2d(3)])
def test_batch_norm_is_a_scaling_while_it_is_captured(layer: nn.BatchNorm1d) -> None:
    """The same output, in evaluation mode alone; afterwards its `forward` is the one before."""
    drawn = Generator().manual_seed(0)
    a = torch.randn(4, 3, 2, 5, generator=drawn) * 3 + 2
    a = a if isinstance(layer, nn.BatchNorm2d) else a[..., 0]
    layer(a)  # sets its statistics
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 2.0, generator=drawn)
    net = nn.Sequential(layer).eval()
    accept_single_samples(net)
    before, whole = vars(layer)["forward"], net(a)
    with capture.captured(net), capture.captured(net):
        assert vars(layer)["forward"] is not before
        torch.testing.assert_close(net(a), whole)
    assert vars(layer)["forward"] is before
    with pytest.raises(ZeroDivisionError), capture.captured(net):
        _ = 1 / 0
    assert vars(layer)["forward"] is before
    with capture.captured(net.train()):
        assert vars(layer)["forward"] is before
    net(a[:1])
    del layer.forward
    with capture.captured(net.eval()):
        assert "forward" in vars(layer)
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("power", [torch.square, torch.abs])
@pytest.mark.parametrize("patches", [2**20, 1])
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 2, 5)])
def test_powers_of_batch_norm(
    shape: tuple[int, ...],
    patches: int,
    power: Callable,
    bias: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two roots, the samples at once or one by one, against a loop over samples."""
    monkeypatch.setitem(PATCHES, "cpu", patches)
    drawn = Generator().manual_seed(0)
    layer = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(3)
    a = torch.randn(shape, generator=drawn) * 3 + 2
    layer(a)  # sets its statistics
    if not bias:
        layer.register_parameter("bias", None)
    net = nn.Sequential(layer).eval()
    with capture.captured(net) as sites:
        out = net(a)
    (s,) = torch.autograd.grad(out.square().sum(), sites[0].output)
    found = dict(elementwise(sites[0], torch.stack([s, 2 * s]), power))
    for name, parameter in layer.named_parameters():
        looped = torch.zeros_like(parameter)
        for i in range(4):
            (g,) = torch.autograd.grad(layer(a[i : i + 1]).square().sum(), parameter)
            looped += power(g) + power(2 * g)
        torch.testing.assert_close(found[f"0.{name}"], looped, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rank", [300, 20])
def test_eigenvectors_in_float32_pass_a_check(rank: int) -> None:
    """As those of float64, also of a matrix of low rank; what is not exact is not taken."""
    made = torch.randn(300, rank, generator=Generator().manual_seed(0))
    matrix = made @ made.T / rank
    found = checked_eigh(matrix)
    assert found is not None
    torch.testing.assert_close(found[0], eigh(matrix)[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1] * found[0] @ found[1].T, matrix, rtol=1e-3, atol=1e-3)
    matrix[0, 1] = matrix[1, 0] = torch.nan
    assert checked_eigh(matrix) is None


UNSERVED = [
    (nn.Conv2d(4, 4, 3, padding="same"), "padding=same"),
    (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padded by reflect"),
    (nn.PReLU(), "PReLU is none of Linear, Conv2d, BatchNorm1d"),
    (nn.BatchNorm2d(3, track_running_stats=False), "without running statistics"),
]


@pytest.mark.parametrize(("layer", "line"), UNSERVED, ids=[line for _, line in UNSERVED])
def test_layers_without_factors_are_named(layer: nn.Module, line: str) -> None:
    made, task = ref.case("mlp")
    ref.net(made).features[1] = layer
    for estimate in (KFAC("exact", None, "diagonal"), EKFAC("exact", None, "diagonal")):
        with pytest.raises(UserError, match=r"layer features\.1: .*" + line.replace(".", r"\.")):
            estimate.check(made, task)


def test_a_dense_matrix_too_large_is_refused() -> None:
    made, y = learner(mlp(10, (1, 28, 28))), torch.zeros(2, dtype=torch.long)
    task = Task(0, torch.ones(2, 1, 28, 28, dtype=torch.uint8), y, y)
    with pytest.raises(UserError, match="a dense matrix of 12730 parameters"):
        FullFisher("exact", None).check(made, task)
    with pytest.raises(UserError, match="a dense matrix"):
        DiagonalHessian("exact", "raw", 1, None).check(made, task)
    DiagonalHessian("ggn", "raw", 1, None).check(made, task)


class Odd(nn.Module):
    """A layer written over in place; or one that is used in other ways than as a layer.

    use    in place | twice | outside: its weight is read once more | named: its input is
    scale  the shape of a parameter of no layer; without, there is none
    """

    def __init__(self, use: str, *scale: int) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 8).double(), nn.Linear(8, ref.CLASSES).double()
        self.scale = nn.Parameter(torch.full(scale, 0.7).double()) if scale else 1.0
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        y = self.first(input=x) if self.use == "named" else self.first(x)
        if self.use == "twice":
            return self.head(self.first(y))
        if self.use == "outside":
            return self.head(y + F.linear(x, self.first.weight))
        return self.head((y * self.scale).relu_().view_as(y))


@pytest.mark.parametrize(
    ("net", "line"),
    [
        (Odd("twice"), "first is used twice"),
        (Odd("outside"), "the gradient of first.weight does not come from its layer alone"),
        (Odd("in place", 1, 1, 1), "give it as many dimensions"),
        (Odd("in place", 8), "the network: Odd is none of"),
    ],
)
@pytest.mark.parametrize("name", ["fisher", "ggn"])
def test_where_layers_have_no_formula_rows_are_used(net: Odd, line: str, name: str) -> None:
    """A diagonal is exact for any network; Kronecker factors need what hooks can record."""
    made, task = ref.case("mlp")
    made = learner(copy.deepcopy(net), transform=made.transform)
    with pytest.raises(UserError, match=line):
        KFAC("exact", None, "diagonal").check(made, task)
    estimates = {
        "fisher": Fisher("exact", None),
        "ggn": DiagonalHessian("ggn", "raw", 1, None),
    }
    estimate, before = estimates[name], made.sample_gradients
    estimate.check(made, task)
    assert made.sample_gradients == before, "a check is no part of what a run computes"
    exact = ref.fisher(made, task).diagonal()
    torch.testing.assert_close(estimate(made, task).values, exact, **CLOSE)


class Squeezing(Odd):
    """It takes no sample by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, None].squeeze())


def test_a_network_that_neither_way_serves_is_refused_before_training() -> None:
    made, task = ref.case("mlp")
    made = learner(Squeezing("twice"), transform=made.transform)
    with pytest.raises(UserError, match=r"takes no sample by itself .*first is used twice"):
        Fisher("exact", None).check(made, task)


def test_a_layer_may_get_its_input_by_name() -> None:
    made, task = ref.case("mlp")
    made = learner(Odd("named"), transform=made.transform)
    KFAC("exact", None, "diagonal").check(made, task)
    exact = ref.fisher(made, task).diagonal()
    torch.testing.assert_close(Fisher("exact", None)(made, task).values, exact, **CLOSE)


def test_an_output_that_is_changed_in_place_is_seen_as_it_was() -> None:
    made, task = ref.case("mlp")
    made = learner(Odd("in place"), transform=made.transform)
    for estimate in (Fisher("exact", None), KFAC("exact", None, "diagonal")):
        estimate.check(made, task)
    exact = ref.fisher(made, task).diagonal()
    torch.testing.assert_close(Fisher("exact", None)(made, task).values, exact, **CLOSE)


@pytest.mark.parametrize("name", names("model"))
def test_every_model_is_served(name: str) -> None:
    """No layer used twice, none written over in place: hooks see what they need."""
    node = composed(f"model={name}").model
    shape = (1, 28, 28) if name == "mlp" else (3, 64, 64)
    if name == "timm":
        pytest.importorskip("timm")
    made = learner(make_network(node, shape, 5))
    x = torch.zeros(1, *shape, dtype=torch.uint8)
    task = Task(0, x, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    for estimate in (KFAC("exact", None, "diagonal"), Fisher("exact", None), MAS(None)):
        estimate.check(made, task)


def test_a_folded_network_is_served() -> None:
    """Its new biases are parameters like others."""
    made = learner(resnet(norm="folded"))
    rows = batch(3, shape=(3, 8, 8))
    task = Task(0, rows.x, rows.y, rows.t)
    values = made.flat.views(Fisher("empirical", None)(made, task).values)
    assert values["stem.0.bias"].gt(0).any()
    found: Any = KFAC("exact", None, "diagonal")(made, task)
    assert found.blocks[0].place.bias is not None and found.rest.eq(0).all()


def test_batch_norm_of_the_batch_has_no_gradient_of_a_sample() -> None:
    made, task = ref.case("norm")
    ref.net(made).body[1] = nn.BatchNorm2d(3, track_running_stats=False).double()
    for estimate in (Fisher("exact", None), MAS(None)):
        with pytest.raises(UserError, match=r"layer body\.1 is batch norm without running"):
            estimate.check(made, task)


def test_identity_leaves_heads_alone_that_are_not_in_use() -> None:
    made, task = ref.case("mlp")
    live = torch.zeros(3, ref.CLASSES, dtype=torch.bool)
    live[0, :2] = live[1, 2:] = True
    made.begin_task(live, torch.tensor([0]), None)
    values = made.flat.views(Identity()(made, task).values)
    assert values["head.bias"].tolist() == [1, 1, 0, 0] and values["features.1.bias"].eq(1).all()


@pytest.mark.parametrize("kind", ["conv", "groups"])
def test_channels_last_is_the_same_matrix_in_another_order(kind: str) -> None:
    made, task = ref.case(kind)
    other = learner(made.net, machine(channels_last=True), transform=made.transform)
    g = Generator().manual_seed(0)
    v = torch.randn(size(made), dtype=torch.float64, generator=g)
    w = torch.zeros_like(v)
    for name, value in other.flat.views(w).items():
        value.copy_(made.flat.views(v)[name])
    for estimate in ESTIMATORS.values():
        plain = made.flat.views(estimate(made, task).matvec(v))
        turned = other.flat.views(estimate(other, task).matvec(w))
        for name in plain:
            torch.testing.assert_close(turned[name], plain[name], **CLOSE)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["mlp", "norm"])
def test_single_precision_on_any_device(kind: str, device: str) -> None:
    """float32, on the device, channels_last, under bf16 autocast (which a curvature leaves out)."""
    made, task = ref.case(kind)
    rt = machine(device, channels_last=True, precision="bf16")
    transform: Any = identity(rt.device, 2)
    transform.shift, transform.centred = made.transform.shift.float().to(rt.device), True  # type: ignore[attr-defined]
    transform.scale = made.transform.scale.float().to(rt.device)  # type: ignore[attr-defined]
    g = Generator().manual_seed(0)
    v = torch.randn(size(made), dtype=torch.float64, generator=g)
    wanted = {name: made.flat.views(e(made, task).matvec(v)) for name, e in ESTIMATORS.items()}
    parts = made.flat.views(v)
    other = learner(made.net.float(), rt, transform=transform)
    w = torch.zeros_like(other.flat.grad)
    for name, value in other.flat.views(w).items():
        value.copy_(parts[name])
    there = Task(0, *(getattr(task, f).to(rt.device) for f in "xyt"))
    for estimator, expected in wanted.items():
        found: Any = ESTIMATORS[estimator](other, there)
        moved = found.matvec(w)
        assert moved.dtype == torch.float32 and moved.device.type == device
        for name, value in other.flat.views(moved).items():
            tolerance = 2e-3 * float(max(part.abs().max() for part in expected.values()))
            torch.testing.assert_close(
                value.cpu().double(), expected[name], rtol=1e-3, atol=tolerance
            )
        assert found.solve(w, 0.1).isfinite().all()


def test_a_saturated_network_has_no_curvature() -> None:
    made, task = ref.case("mlp")
    with torch.no_grad():
        ref.net(made).head.bias.copy_(torch.tensor([1e5, 0, 0, 0]))
    for name in ("diag_fisher", "kfac", "tkfac", "ekfac", "full"):
        found: Any = ESTIMATORS[name](made, task)
        assert found.max_eigenvalue() == 0
        merged = found.merge(found, 1.0, 1.0)
        assert merged.matvec(made.flat.theta.detach()).eq(0).all()


def test_rows_average_to_the_gradient() -> None:
    made, task = ref.case("mlp")
    rows = torch.cat(list(ref_rows(made, task)))
    made.gradient(Batch(task.x, task.y, task.t))
    torch.testing.assert_close(rows.mean(0), made.flat.grad)


def ref_rows(made: Learner, task: Task) -> Any:
    from cl_bench.curvature.diagonal import jacobian_rows

    return jacobian_rows(made, task, roots.gradient)


@pytest.mark.parametrize("places", [1, 5])
@pytest.mark.parametrize("size", [7, 64, 150, 400])
def test_a_product_in_bands(size: int, places: int) -> None:
    """Below, at and beyond the width of a band, summed twice."""
    x = torch.randn(2, size, 3 * places, dtype=torch.float64)
    weights = torch.rand(2, 3 * places, dtype=torch.float64)
    total = x.new_zeros(2, size, size)
    for _ in range(2):
        gram(total, x * weights.unsqueeze(1), x, 0.5)
    exact = torch.einsum("gn,gin,gjn->gij", weights, x, x)
    torch.testing.assert_close(mirrored(total), exact)

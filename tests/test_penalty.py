"""What quadratic penalties promise: joint training, for diagonal quadratics; steps that hold."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import reference as ref
import torch
from conftest import learner
from torch import Generator, Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.config.check import check_config
from cl_bench.core.optim import SGD, effective_lr, stability_limit
from cl_bench.curvature.base import Estimator
from cl_bench.curvature.diagonal import Diagonal, Fisher
from cl_bench.curvature.kfac import EKFAC, KFAC
from cl_bench.curvature.merging import Merging, Quadratic, decayed_sum, one_per_task, running_mean
from cl_bench.curvature.penalty import Penalty
from cl_bench.curvature.penalty_steps import gradient, sharpest, sum_of

P = 6
G = Generator().manual_seed(0)
CENTRES = torch.randn(4, P, generator=G, dtype=torch.float64)
WEIGHTS = torch.rand(4, P, generator=G, dtype=torch.float64) + 0.1
SIZES = (3, 5, 2, 4)


def solved(merging: Merging, tasks: int, share: Any) -> Tensor:
    """Tasks 1/2 (x - c)' D (x - c) in a row, each with its penalty solved exactly."""
    past: list[Quadratic] = []
    theta = torch.zeros(P, dtype=torch.float64)
    for t in range(tasks):
        new, old = share(t)
        curvature = new * WEIGHTS[t]
        slope = curvature * (theta - CENTRES[t])
        if past:
            slope = slope + old * gradient(past, theta)
            curvature = curvature + old * sum_of([each.curvature for each in past]).values
        theta = theta - slope / curvature
        past = merging(past, Quadratic(Diagonal(WEIGHTS[t]), theta, 1, SIZES[t]))
    return theta


def joint(tasks: int, counts: Any = (1, 1, 1, 1)) -> Tensor:
    weights = torch.tensor(counts[:tasks], dtype=torch.float64).unsqueeze(1) * WEIGHTS[:tasks]
    return (weights * CENTRES[:tasks]).sum(0) / weights.sum(0)


def whole(t: int) -> tuple[float, float]:
    return 1.0, 1.0


@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
def test_one_anchor_is_joint_training(tasks: int) -> None:
    """Huszar 2018; with means in place of sums where the loss has the same weights (DLCFT)."""
    torch.testing.assert_close(solved(partial(decayed_sum, decay=1.0), tasks, whole), joint(tasks))
    mean = partial(running_mean, by="tasks", factors="weighted")
    shares = solved(mean, tasks, lambda t: (1 / (t + 1), t / (t + 1)))
    torch.testing.assert_close(shares, joint(tasks))
    sizes = partial(running_mean, by="samples", factors="weighted")
    counts = solved(
        sizes,
        tasks,
        lambda t: (SIZES[t] / sum(SIZES[: t + 1]), sum(SIZES[:t]) / sum(SIZES[: t + 1])),
    )
    torch.testing.assert_close(counts, joint(tasks, SIZES))


def test_anchors_apart_are_joint_training_for_two_tasks_only() -> None:
    torch.testing.assert_close(solved(one_per_task, 2, whole), joint(2))
    for tasks in (3, 4):
        assert (solved(one_per_task, tasks, whole) - joint(tasks)).abs().max() > 1e-2


def test_count_is_not_joint_training_beside_a_loss_of_weight_one() -> None:
    found = solved(partial(running_mean, by="tasks", factors="weighted"), 3, whole)
    assert (found - joint(3)).abs().max() > 1e-2


def test_other_mergings_are_not() -> None:
    for decay in (0.0, 0.5):
        found = solved(partial(decayed_sum, decay=decay), 3, whole)
        assert (found - joint(3)).abs().max() > 1e-2


def case(
    estimate: Estimator, step: Any, strength: float, merging: Any, lr: float = 0.1, m: float = 0.5
) -> Any:
    """A penalty with the curvatures of two tasks, and a learner away from both anchors."""
    made, task = ref.case("mlp")
    made = learner(made.net, optimizer=lambda p: SGD(p, lr, m), transform=made.transform)
    penalty = Penalty(made, merging, strength, step, 1)
    for shift in (0.1, -0.2):
        penalty.add(made, estimate(made, task), task)
        with torch.no_grad():
            made.flat.theta.add_(shift * torch.linspace(-1, 1, made.flat.theta.numel()))
    return penalty, made, task


ONE = partial(decayed_sum, decay=1.0)
CASES = [
    (Fisher("exact", None), ONE),
    (Fisher("exact", None), one_per_task),
    (KFAC("exact", None, "diagonal"), ONE),
    (EKFAC("exact", None, "diagonal"), ONE),
]


@pytest.mark.parametrize(("estimate", "merging"), CASES)
def test_the_implicit_step_is_the_minimiser(estimate: Estimator, merging: Any) -> None:
    """Of the penalty + |x - v|^2 / (2 lr / (1 - momentum)), v where the loss's step went."""
    penalty, made, _ = case(estimate, "implicit", 3.0, merging)
    made.flat.grad.zero_()
    v = made.flat.theta.detach().clone()
    penalty.move(made)
    x = made.flat.theta.detach()
    slope = 3.0 * gradient(penalty.quadratics, x) + (x - v) / (0.1 / (1 - 0.5))
    assert slope.abs().max() < 1e-9 and (x - v).abs().max() > 1e-4


@pytest.mark.parametrize("step", ["explicit", "implicit"])
def test_every_nth_step_for_n_steps(step: str) -> None:
    """At rest in between; then as one step of n times the strength."""
    rare, made, _ = case(Fisher("exact", None), step, 0.2, ONE, m=0.0)
    often, other, _ = case(Fisher("exact", None), step, 0.6, ONE, m=0.0)
    rare.every = 3
    start = made.flat.theta.detach().clone()
    made.flat.grad.zero_()
    for learner_, penalty, steps in ((made, rare, 3), (other, often, 1)):
        learner_.flat.grad.zero_()
        for i in range(steps):
            assert i == 0 or learner_.flat.theta.equal(start)
            penalty.move(learner_)
    assert not made.flat.theta.equal(start)
    torch.testing.assert_close(made.flat.theta, other.flat.theta)
    twice, last, _ = case(Fisher("exact", None), "implicit", 0.4, ONE, m=0.0)
    twice.move(last)
    rare.steps = 0
    made.flat.grad.zero_()
    with torch.no_grad():
        made.flat.theta.copy_(start)
    for _ in range(2):
        rare.move(made)
    assert made.flat.theta.equal(start), "two of three steps"
    rare.end_task(made)
    torch.testing.assert_close(made.flat.theta, last.flat.theta)
    rare.end_task(made)
    torch.testing.assert_close(made.flat.theta, last.flat.theta)


@pytest.mark.parametrize(("estimate", "merging"), CASES)
def test_both_steps_have_the_same_fixed_point(estimate: Estimator, merging: Any) -> None:
    """A loss with a constant slope and the penalty come to rest at one place."""
    ends = []
    for step in ("explicit", "implicit"):
        penalty, made, _ = case(estimate, step, 0.5, merging, lr=0.05)
        push = gradient(penalty.quadratics, made.flat.theta.detach() + 0.3).clone()
        for _ in range(4000):
            made.flat.grad.copy_(push)
            penalty.move(made)
        ends.append(0.5 * gradient(penalty.quadratics, made.flat.theta.detach()) + push)
    for end in ends:
        assert end.norm() < 0.05 * push.norm()


def test_no_strength_diverges_when_the_step_is_implicit() -> None:
    penalty, made, task = case(Fisher("exact", None), "implicit", 1e12, ONE)
    values = penalty.quadratics[0].curvature.values
    for _ in range(20):
        made.gradient(next(task.chunks(7)))
        penalty.move(made)
    away = (made.flat.theta.detach() - penalty.quadratics[0].anchor).abs()
    assert away.isfinite().all() and away[values > 1e-6].max() < 1e-3


def test_an_explicit_step_beyond_its_bound_is_refused() -> None:
    """To the digit, before the next task's first step; Adam has no such number."""
    _, made, task = case(Fisher("exact", None), "implicit", 1.0, ONE)
    found = Fisher("exact", None)(made, task)
    bound = 2 * 1.5 / (0.1 * float(found.max_eigenvalue()))

    def check(strength: float, where: Any) -> None:
        penalty = Penalty(where, ONE, strength, "explicit", 1)
        penalty.check(where)
        penalty.add(where, found, task)
        penalty.check(where)

    check(0.999 * bound, made)
    with pytest.raises(UserError, match=rf"an explicit step diverges from {bound:.4g} on"):
        check(1.001 * bound, made)
    rescaled = learner(made.net, optimizer=lambda p: torch.optim.Adam(p), transform=made.transform)
    check(1e9, rescaled)


@pytest.mark.parametrize("estimate", [Fisher("exact", None), KFAC("exact", None, "diagonal")])
def test_the_bound_of_anchors_apart_is_that_of_their_sum(estimate: Estimator) -> None:
    penalty, made, _ = case(estimate, "explicit", 0.1, one_per_task)
    matrices = [ref.dense(p.curvature.matvec, made.flat.theta.numel()) for p in penalty.quadratics]
    largest = torch.linalg.eigvalsh(torch.stack(matrices).sum(0))[-1]
    found = sharpest(penalty.quadratics, made.flat.theta.detach())
    torch.testing.assert_close(found, largest, rtol=5e-3, atol=0)


@pytest.mark.parametrize("every", [1, 2, 5, 20])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("kind", [SGD, torch.optim.SGD])
def test_the_bound_is_where_steps_begin_to_diverge(kind: Any, momentum: float, every: int) -> None:
    """On a quadratic taken at every n-th step, n-fold; for n = 1 it has a closed form."""
    for factor, diverges in ((0.98, False), (1.02, True)):
        x = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = kind([x], lr=0.1, momentum=momentum)
        curvature = factor * stability_limit(optimizer, every)
        x.grad = torch.zeros_like(x.data)
        for i in range(1, 300 * every + 1):
            x.grad.zero_()
            if i % every == 0:
                x.grad.copy_(every * curvature * x.data)
            optimizer.step()
        assert (abs(float(x.detach())) > 1) == diverges
        assert effective_lr(optimizer) == pytest.approx(0.1 / (1 - momentum))
    if every == 1:
        assert stability_limit(optimizer, 1) == pytest.approx(2 * (1 + momentum) / 0.1)


def test_kronecker_anchors_apart_have_no_common_inverse() -> None:
    from conftest import composed

    apart_with = "method=osla", "merging=apart"
    with pytest.raises(UserError, match="merging=apart: Kronecker factors"):
        check_config(composed(*apart_with))
    check_config(composed(*apart_with, "method.step=explicit"))
    check_config(composed("method=ewc", "merging=apart"))

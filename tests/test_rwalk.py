"""RWalk against plain loops over parameters and steps, in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import batch as random_batch
from conftest import blobs, learner, method_for, mlp
from torch import Tensor

from cl_bench.core.optim import SGD
from cl_bench.core.types import Batch, Task


def scaled(values: list[float]) -> list[float]:
    least, largest = min(values), max(values)
    return [(v - least) / (largest - least) for v in values]


class Slow:
    """The paper's formulas with lists of numbers; it is told each step's gradient and theta."""

    def __init__(self, size: int, every: int, alpha: float, epsilon: float) -> None:
        self.every, self.alpha, self.epsilon = every, alpha, epsilon
        self.fisher, self.score = [0.0] * size, None
        self.diagonal: list[float] = []

    def task(self, path: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        """path: the gradient of each step, and theta before and after it."""
        task_score = [0.0] * len(self.fisher)
        for first in range(0, len(path), self.every):
            part = path[first : first + self.every]
            for i in range(len(self.fisher)):
                drop = -sum(float(g[i] * (after[i] - before[i])) for g, before, after in part)
                change = float(part[-1][2][i] - part[0][1][i])
                distance = 0.5 * self.fisher[i] * change**2
                task_score[i] += max(drop, 0.0) / (distance + self.epsilon)
                latest = sum(float(g[i]) ** 2 for g, _, _ in part) / len(part)
                self.fisher[i] = self.alpha * latest + (1 - self.alpha) * self.fisher[i]
        if self.score is None:
            self.score = task_score
        else:
            self.score = [(a + b) / 2 for a, b in zip(self.score, task_score, strict=True)]
        pairs = zip(scaled(self.fisher), scaled(self.score), strict=True)
        self.diagonal = [f + s for f, s in pairs]


def steps_of(task: Task) -> list[Batch]:
    """Seven batches of four samples."""
    return [task.batch(torch.arange(i, i + 4)) for i in range(0, 28, 4)]


def trained(scenario: str, step: str) -> tuple[Any, Any, Slow]:
    """A method after three tasks of seven steps, and the slow version that watched it."""
    torch.manual_seed(0)
    stream = blobs(scenario)
    made = learner(mlp().double(), optimizer=lambda p: SGD(p, lr=0.05, momentum=0.5))
    words = "method.strength=0.3", "method.interval=3", "method.alpha=0.8", "method.epsilon=1e-4"
    method = method_for("rwalk", made, *words, f"method.step={step}")
    slow = Slow(made.flat.theta.numel(), 3, 0.8, 1e-4)
    for task in stream.tasks:
        made.begin_task(stream.live(task.id), task.t.unique(), stream.live_at_end)
        method.begin_task(task)
        path = []
        for rows in steps_of(task):
            before = made.flat.theta.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(made.loss(before, rows), before)
            method.observe(rows)
            path.append((slope, before.detach(), made.flat.theta.detach().clone()))
        method.end_task(task)
        slow.task(path)
        values = method.penalty.quadratics[0].curvature.values
        torch.testing.assert_close(values, torch.tensor(slow.diagonal, dtype=torch.float64))
        assert method.penalty.quadratics[0].anchor.equal(made.flat.theta.detach())
    return method, made, slow


@pytest.mark.parametrize("step", ["explicit", "implicit"])
@pytest.mark.parametrize("scenario", ["class", "task", "data"])
def test_rwalk_equals_its_formulas(scenario: str, step: str) -> None:
    """Fisher, scores and the penalty's diagonal after each of three tasks of 3 + 3 + 1 steps."""
    method, _, slow = trained(scenario, step)
    assert slow.score is not None and len(method.penalty.quadratics) == 1
    double = torch.float64
    torch.testing.assert_close(method.fisher, torch.tensor(slow.fisher, dtype=double))
    torch.testing.assert_close(method.score, torch.tensor(slow.score, dtype=double))


def test_an_explicit_step_descends_on_loss_and_penalty() -> None:
    """theta moves along the gradient of the loss plus strength/2 sum (F + s) (theta - anchor)^2."""
    method, made, slow = trained("data", "explicit")
    anchor = made.flat.theta.detach().clone()
    made.restart_optimizer(made.flat.theta)  # without momentum from the steps before
    made.flat.theta.detach().add_(torch.linspace(-0.1, 0.1, len(anchor), dtype=torch.float64))
    theta = made.flat.theta.detach().clone().requires_grad_()
    rows = blobs("data").tasks[0].batch(torch.arange(5))
    total = made.loss(theta, rows)
    for i, weight in enumerate(slow.diagonal):
        total = total + 0.3 / 2 * weight * (theta[i] - anchor[i]) ** 2
    (slope,) = torch.autograd.grad(total, theta)
    method.observe(rows)
    torch.testing.assert_close(made.flat.theta.detach(), theta.detach() - 0.05 * slope)


def test_parameters_that_never_moved_have_no_penalty() -> None:
    """Rows of the head for classes of later tasks: no gradient, no score, no penalty."""
    torch.manual_seed(0)
    stream, made = blobs("class"), learner(mlp())
    method = method_for("rwalk", made)
    made.begin_task(stream.live(0), torch.tensor([0]), stream.live_at_end)
    method.begin_task(stream.tasks[0])
    for rows in steps_of(stream.tasks[0]):
        method.observe(rows)
    method.end_task(stream.tasks[0])
    values = method.penalty.quadratics[0].curvature.values
    assert values.min() == 0 and 1 <= values.max() <= 2
    assert made.heads.rows_of(values)[2:].eq(0).all()


def test_a_task_without_gradients_has_no_penalty_and_no_nan() -> None:
    """Where all values are equal, they are scaled to 0."""
    made = learner(mlp())
    method = method_for("rwalk", made)
    task = blobs("data").tasks[0]
    method.begin_task(task)
    method.end_task(task)
    assert method.penalty.quadratics[0].curvature.values.eq(0).all()
    method.observe(random_batch(4))
    assert made.flat.theta.isfinite().all()

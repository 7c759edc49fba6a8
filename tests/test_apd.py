"""APD against its objective by autograd, and what it promises of the past."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import blobs, identity, learner, mlp
from scipy.optimize import minimize_scalar
from test_halrp import SMALL, adam, fresh, learned, seeded
from torch import Generator, Tensor, nn

from cl_bench.core.learner import Learner
from cl_bench.core.optim import SGD, step_sizes
from cl_bench.core.types import Batch, Stream
from cl_bench.data.stream import sequential
from cl_bench.methods.shared.low_rank import layers_of
from cl_bench.methods.shared.proximal import PiecewiseLinear, soft_threshold
from cl_bench.models.convnet import ConvNet


def places(made: Learner) -> Tensor:
    """(P,): to which layer output each weight leads; -1 for what is no shared weight."""
    found, at = torch.full_like(made.flat.theta, -1, dtype=torch.long), 0
    views = made.flat.views(found)
    for name, (outputs, _) in layers_of(made.flat, made.net.head):
        for output in range(outputs):
            views[name][output] = at + output
        at += outputs
    return found


def begun(method: Any, made: Learner, stream: Stream, index: int) -> Batch:
    """At the start of a task: a batch of it."""
    task = stream.tasks[index]
    made.begin_task(stream.live(index), task.t.unique(), stream.live_at_end)
    made.task = task
    made.train(False)
    method.begin_task(task)
    return next(iter(task.batches(10, seeded())))


def networks(method: Any) -> list[Tensor]:
    return [method.network(task).theta for task in method.learned]


def test_it_starts_as_the_network_it_was_given() -> None:
    made, stream = fresh(), blobs("task")
    before = made.flat.theta.detach().clone()
    method, _ = learned(made, sequential(stream, 1), "apd", epochs=0)
    assert made.flat.theta.equal(before) and networks(method)[0].equal(before)


def middle(kind: str, *options: str) -> tuple[Learner, Any, Batch]:
    """Two tasks learned, some steps into the third."""
    made, stream = fresh(), blobs("task")
    if kind == "convolutions":
        torch.manual_seed(3)
        made = learner(ConvNet((1, 8, 8), 6, **SMALL), optimizer=adam(), transform=identity())
        larger = [replace(task, x=task.x.repeat(1, 1, 2, 2)) for task in stream.tasks]
        stream = replace(stream, tasks=larger, tests=larger)
    method, _ = learned(made, sequential(stream, 2), "apd", *options)
    rows = begun(method, made, stream, 2)
    for _ in range(3):
        method.observe(rows)
    return made, method, rows


@pytest.mark.parametrize("kind", ["perceptron", "convolutions"])
def test_gradients_are_the_losses(kind: str) -> None:
    made, method, rows = middle(kind)
    phi, at = made.optimized.detach().clone().requires_grad_(), places(made)
    sigma, tau, v = phi.split([len(at), len(at), len(phi) - 2 * len(at)])
    masked = torch.where(at >= 0, v.sigmoid()[at.clamp(min=0)] * sigma, 0.0)
    (expected,) = torch.autograd.grad(made.loss(masked + tau, rows), phi)
    made.gradient(rows)
    method._pull()
    assert made.optimized.grad is not None
    torch.testing.assert_close(made.optimized.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_proximal_steps_are_minima(tasks: int) -> None:
    """Of each entry, by a numerical minimiser: the function is convex."""
    rng = Generator().manual_seed(tasks)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng, dtype=torch.float64)

    start, x, stride_ = drawn(60), 3 * drawn(60) - 1, 2 * drawn(60)
    taus = (drawn(tasks, 60) - 0.5) * (drawn(tasks, 60) < 0.4)
    masks = drawn(tasks, 60) + 0.1
    made = PiecewiseLinear.of(start, 0.3, list(taus), list(masks))
    assert 0 < len(made.some) < 60
    found, held = made.step(x, stride_), 0

    def worth(p: int, y: float) -> float:
        breakpoints = 0.3 * (taus[:, p] + masks[:, p] * (start[p] - y)).abs().sum()
        return float(breakpoints + (y - x[p]) ** 2 / (2 * stride_[p]))

    for p in range(60):
        best: Any = minimize_scalar(lambda y, p=p: worth(p, y), bracket=(-1, 2), tol=1e-12)
        assert worth(p, float(found[p])) <= worth(p, best.x) + 1e-12
        held += bool(((taus[:, p] + masks[:, p] * (start[p] - found[p])).abs() < 1e-12).any())
    assert held > 5, "some minima lie at a kink"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_proximal_step_goes_as_far_as_the_optimizers(momentum: float) -> None:
    """1/2 |x - c|^2 + l1 |x| has its minimum at soft_threshold(c, l1): 0.5 of 1, 0 of 0.3."""
    theta, c = nn.Parameter(torch.zeros(2)), torch.tensor([1.0, 0.3])
    optimizer = SGD([theta], 0.01, momentum)
    for _ in range(3000):
        theta.grad = theta.detach() - c
        optimizer.step()
        theta.data.copy_(soft_threshold(theta.detach(), 0.5 * step_sizes(optimizer, theta)))
    torch.testing.assert_close(theta.detach(), torch.tensor([0.5, 0.0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_tau_is_sparse_while_it_is_learned(optimizer: str) -> None:
    torch.manual_seed(2)
    made, stream = learner(mlp(), optimizer=adam() if optimizer == "adam" else None), blobs("task")
    method, _ = learned(made, sequential(stream, 1), "apd", "method.l1=0.02")
    begun(method, made, stream, 1)
    for rows in stream.tasks[1].batches(10, seeded(), epochs=3):
        method.observe(rows)
    shared, size = places(made) >= 0, len(method.price)
    sigma, tau = (
        made.optimized.detach()[:size][shared],
        made.optimized.detach()[size : 2 * size][shared],
    )
    for values in (tau, sigma - method.sigma[shared]):
        assert 0.05 < (values == 0).float().mean() < 0.999


@pytest.mark.parametrize(("l1", "l2", "threshold"), [(1e-3, 0.1, 1e-4), (1e-4, 100.0, 1e-3)])
def test_how_far_the_past_moves(l1: float, l2: float, threshold: float) -> None:
    """Each weight by l1 / (2 l2) and the threshold at most in a task; nothing else at all."""
    made, stream = fresh(), blobs("task")
    options = (f"method.l1={l1}", f"method.l2={l2}", f"method.threshold={threshold}")
    method, _ = learned(made, sequential(stream, 2), "apd", *options)
    before, sigma = networks(method), method.sigma.clone()
    rows = begun(method, made, stream, 2)
    for _ in range(20):
        method.observe(rows)
        assert all(a.equal(b) for a, b in zip(networks(method), before, strict=True))
    method.end_task(stream.tasks[2])
    shared, most = places(made) >= 0, l1 / (2 * l2) + threshold
    assert (method.sigma - sigma)[shared].abs().max() > 2 * most, "what is shared went further"
    for new, old in zip(networks(method)[:2], before, strict=True):
        assert (new - old)[shared].abs().max() <= most * (1 + 1e-3) + 1e-7
        assert new[~shared].equal(old[~shared])
    for mine in method.learned.values():
        values = mine.tau[shared].abs()
        assert not ((values > 0) & (values <= threshold)).any() and (values == 0).any()


def test_capacity_by_hand() -> None:
    made, stream = fresh(), blobs("task")
    method, _ = learned(made, stream, "apd")
    shared = places(made) >= 0
    outputs = int(places(made).max()) + 1
    alive = sum(int((mine.tau[shared] != 0).sum()) for mine in method.learned.values())
    head: Any = made.net.head
    own = sum(b.numel() for n, b in made.net.named_parameters() if n.endswith("bias"))
    own += -head.bias.numel() + 2 * (head.in_features + 1)  # two classes a task
    expected = int(shared.sum()) + alive + 3 * (own + outputs)
    assert method.capacity()["capacity"] == expected
    single = int(shared.sum()) + own
    assert method.capacity()["growth"] == pytest.approx(expected / single - 1)

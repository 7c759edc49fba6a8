"""GEM's quadratic program against another solver, its optimality conditions, and A-GEM."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import DEVICES, blobs, composed, learner, machine, method_for, mlp
from scipy.optimize import lsq_linear, nnls
from test_methods import moved
from torch import Generator, Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.config.check import check_config
from cl_bench.core.gradient_matrix import DenseGradients, FactoredGradients, gradients
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch
from cl_bench.methods.agem import project
from cl_bench.methods.gem import multipliers, nonnegative


def correction(past: Tensor, g: Tensor, margin: float, ridge: float) -> Tensor:
    """G'v."""
    out = torch.empty_like(g)
    rows = DenseGradients(torch.cat([past, g.unsqueeze(0)]), out)
    products = rows.products().cpu()
    v = multipliers(products[:-1, :-1], products[:-1, -1], margin, ridge)
    rows.write(torch.cat([v, torch.zeros(1)]))
    return out


CASES = [(tasks, seed) for tasks in (1, 2, 5, 19) for seed in range(5)]


def drawn(*shape: int, seed: int, device: str = "cpu") -> Tensor:
    g = Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(device)


@pytest.mark.parametrize(("tasks", "seed"), CASES)
def test_nonnegative_equals_scipys(tasks: int, seed: int) -> None:
    rows = drawn(tasks, 30, seed=seed)
    A, b = rows @ rows.T, 3 * drawn(tasks, seed=100 + seed)
    x = nonnegative(A, b)
    root = torch.linalg.cholesky(A)
    expected, _ = nnls(root.T.numpy(), -torch.linalg.solve(root, b).numpy())
    torch.testing.assert_close(x, torch.from_numpy(expected), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("tasks", "seed"), CASES)
def test_nonnegative_is_optimal(tasks: int, seed: int) -> None:
    """x >= 0, slope >= 0, one of them 0 everywhere; of dependent rows too (rank 3)."""
    rows = drawn(tasks, 3, seed=seed)
    A, b = rows @ rows.T, rows @ drawn(3, seed=50 + seed)
    x = nonnegative(A, b)
    slope = A @ x + b
    assert (x >= 0).all() and (slope >= -1e-8).all() and (x * slope).abs().max() < 1e-8


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("tasks", "seed"), CASES)
def test_projection_is_the_nearest_allowed_gradient(tasks: int, seed: int, device: str) -> None:
    """eq. 7 and 8: no past loss rises, and no other such gradient is nearer."""
    past, g = drawn(tasks, 40, seed=seed, device=device), drawn(40, seed=9 + seed, device=device)
    found = g + correction(past, g, 0.0, 0.0)
    assert (past @ found >= -1e-8).all()
    away = found - g
    assert abs(away @ found) < 1e-8, "complementary slackness: what was added is orthogonal to it"
    for other in drawn(200, 40, seed=seed + 1, device=device):
        if (past @ other >= 0).all():
            assert (other - g) @ (found - g) >= away @ away - 1e-8, "a convex set's projection"
    content = past.sum(0) * 10 if tasks == 1 else found
    assert correction(past, content, 0.0, 0.0).abs().max() < 1e-7


@pytest.mark.parametrize("seed", range(5))
def test_margin_and_ridge_are_the_authors(seed: int) -> None:
    """min 1/2 v'(GG' + eps I)v + (Gg)'v over v >= margin, by another solver."""
    past, g = drawn(6, 40, seed=seed), drawn(40, seed=9 + seed)
    A = past @ past.T + 0.1 * torch.eye(6, dtype=torch.float64)
    root = torch.linalg.cholesky(A)
    target = -torch.linalg.solve(root, past @ g)
    v = lsq_linear(root.T.numpy(), target.numpy(), bounds=(0.5, 1e9), tol=1e-14).x
    expected = torch.from_numpy(v) @ past
    torch.testing.assert_close(correction(past, g, 0.5, 0.1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_one_past_task_is_agem(seed: int) -> None:
    past, g = drawn(1, 40, seed=seed), drawn(40, seed=9 + seed)
    for gradient in (g, -g):
        expected = gradient.clone()
        project(expected, past[0])
        torch.testing.assert_close(gradient + correction(past, gradient, 0.0, 0.0), expected)


def test_gem_raises_no_past_loss() -> None:
    """To first order, on each past task's whole memory, under its own head."""
    made, stream = learner(mlp().double()), blobs("task")
    method = method_for("gem", made, "buffer.per_task=4", "method.margin=0", "method.ridge=0")
    held = 0
    for task in stream.tasks:
        made.begin_task(stream.live(task.id), task.t.unique(), stream.live_at_end)
        method.begin_task(task)
        for rows in task.batches(10, Generator().manual_seed(0), epochs=4):
            past = slopes(made, method.memory.by_task() if task.id else [])
            assert len(past) == task.id
            step = moved(method, rows)
            if len(past):
                assert (past @ step >= -1e-7).all()
                held += int((past @ step < 1e-9).any())
        method.end_task(task)
    assert held, "some step was changed"


def slopes(made: Learner, parts: list[Batch]) -> Tensor:
    """(n, P): the mean losses' gradients, one by one, by autograd."""
    leaf = made.flat.theta.detach().clone().requires_grad_()
    found = [torch.autograd.grad(made.loss(leaf, part), leaf)[0] for part in parts]
    return torch.stack(found) if found else leaf.new_zeros(0, len(leaf))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scenario", ["task", "data"])
@pytest.mark.parametrize(
    ("sizes", "kind"), [((4, 7, 1), FactoredGradients), ((30, 25, 10), DenseGradients)]
)
def test_a_perceptrons_rows_come_of_one_pass(
    sizes: tuple[int, ...], kind: type, scenario: str, device: str
) -> None:
    """Written out or not, whichever costs less: products, sums and loss as of the rows alone."""
    made, stream = learner(mlp().double(), machine(device)), blobs(scenario)
    parts = [
        Batch(*(f[:size].to(device) for f in (task.x, task.y, task.t)))
        for task, size in zip(stream.tasks, sizes, strict=True)
    ]
    made.begin_task(stream.live(2).to(device), torch.tensor([2]), stream.live_at_end)
    expected, weights = slopes(made, parts), torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    ends = []
    for found in (kind, DenseGradients):
        before = made.sample_gradients
        rows, loss = gradients(made, parts)
        assert type(rows) is found and made.sample_gradients - before == sum(sizes)
        torch.testing.assert_close(rows.products(), expected @ expected.T, rtol=1e-12, atol=1e-14)
        rows.write(weights)
        torch.testing.assert_close(made.flat.grad, weights.to(device) @ expected)
        ends.append(loss)
        made.direct = None
    torch.testing.assert_close(*ends)


def test_products_of_single_precision_are_taken_in_double() -> None:
    """As of the rows, written out in float64 from the same factors."""
    made, stream = learner(mlp()), blobs("data")
    parts = [Batch(task.x[:4], task.y[:4], task.t[:4]) for task in stream.tasks]
    found, _ = gradients(made, parts)
    assert isinstance(found, FactoredGradients)
    rows = []
    for k in range(3):
        cut = slice(4 * k, 4 * k + 4)
        layers = [(s[cut].double().T, a[cut].double()) for s, a in found.factors]
        rows.append(torch.cat([p for s, a in layers for p in ((s @ a).flatten(), s.sum(1))]))
    expected = torch.stack(rows) @ torch.stack(rows).T
    torch.testing.assert_close(found.products(), expected, rtol=1e-12, atol=1e-14)


def test_agems_reference_over_tasks() -> None:
    made, stream = learner(mlp().double()), blobs("data")
    method = method_for("agem", made, "buffer.per_task=4", "method.reference=tasks")
    for task in stream.tasks[:2]:
        method.begin_task(task)
        method.memory.add(Batch(task.x, task.y, task.t))
        method.end_task(task)
    parts = []
    for part in method.memory.by_task():
        assert len(part.y) == 4
        made.gradient(part)
        parts.append(made.flat.grad.clone())
    torch.testing.assert_close(method._reference(), (parts[0] + parts[1]) / 2)


def past_and_new(*overrides: str) -> tuple[Learner, Any, Batch, list[Tensor]]:
    """A method after two tasks, a batch of the third, and the gradients on parts and batch."""
    made, stream = learner(mlp().double()), blobs("data")
    method = method_for(overrides[0], made, "buffer.per_task=4", *overrides[1:])
    for task in stream.tasks[:2]:
        method.begin_task(task)
        method.memory.add(Batch(task.x, task.y, task.t))
        method.end_task(task)
    rows = Batch(*(part[:5] for part in (stream.tasks[2].x, stream.tasks[2].y, stream.tasks[2].t)))
    found = []
    for part in [*method.memory.by_task(), rows]:
        made.gradient(part)
        found.append(made.flat.grad.clone())
    return made, method, rows, found


def cut(g: Tensor, most: float) -> Tensor:
    return g * min(1.0, most / float(g.norm()))


AS_IN_LA_MAML = "method.reference=tasks", "method.clip=0.1", "method.passes=2"


@pytest.mark.parametrize("compat", [False, True])
def test_agems_reference_as_in_la_mamls_code(compat: bool) -> None:
    """The mean of the clipped gradients of past tasks, without the first one with compat."""
    name = f"method.reference_compat={str(compat).lower()}"
    _, method, _, slopes = past_and_new("agem", *AS_IN_LA_MAML, name)
    assert all(float(g.norm()) > 0.1 for g in slopes)
    protected = [cut(g, 0.1) for g in (slopes[1:2] if compat else slopes[:2])]
    torch.testing.assert_close(method._reference(), torch.stack(protected).mean(0))


@pytest.mark.parametrize("against", [False, True])
def test_agem_takes_clipped_steps(against: bool) -> None:
    """Two steps on a batch, each by the clipped gradient, projected where it is in the way."""
    made, method, rows, _ = past_and_new("agem", *AS_IN_LA_MAML)
    if against:  # images of the past, with the label that is most in its way
        first, second = method.memory.by_task()
        both, reference = first.cat(second), method._reference()
        choices = [both._replace(y=torch.full_like(both.y, label)) for label in range(6)]
        rows = min(choices, key=lambda some: float(slope_at(made, some) @ reference))
    start, theta = made.flat.theta.detach().clone(), made.flat.theta.detach().clone()
    projected = []
    for _ in range(2):
        made.flat.theta.data.copy_(theta)
        step, reference = cut(slope_at(made, rows), 0.1), method._reference()
        projected.append(bool(step @ reference < 0))
        project(step, reference)
        theta = theta - made.lr * step
    assert any(projected) == against
    made.flat.theta.data.copy_(start)
    before = made.sample_gradients
    method.observe(rows)
    torch.testing.assert_close(made.flat.theta.detach(), theta)
    assert made.sample_gradients - before == 2 * (len(rows.y) + 8)
    assert method.memory.seen == len(rows.y), "a batch is stored once"


def slope_at(made: Learner, rows: Batch) -> Tensor:
    leaf = made.flat.theta.detach().clone().requires_grad_()
    return torch.autograd.grad(made.loss(leaf, rows), leaf)[0]


def test_the_first_task_alone_is_not_protected_in_la_mamls_code() -> None:
    made, stream = learner(mlp().double()), blobs("data")
    given = "method.reference=tasks", "method.reference_compat=true", "buffer.per_task=4"
    method, task = method_for("agem", made, *given), stream.tasks[0]
    method.begin_task(task)
    method.memory.add(Batch(task.x, task.y, task.t))
    method.end_task(task)
    assert len(method.memory) == 4 and method._reference() is None


@pytest.mark.parametrize("factored", [True, False])
def test_gem_clips_every_gradient(factored: bool) -> None:
    """Two steps on a batch, as GEM on gradients that were scaled to the norm before."""
    made, method, rows, slopes = past_and_new("gem", "method.clip=0.1", "method.passes=2")
    made.direct = made.direct if factored else None
    start, theta = made.flat.theta.detach().clone(), made.flat.theta.detach().clone()
    for _ in range(2):
        made.flat.theta.data.copy_(theta)
        slopes = [cut(slope_at(made, part), 0.1) for part in [*method.memory.by_task(), rows]]
        past, g = torch.stack(slopes[:2]), slopes[2]
        assert bool((past @ g < 0).any()), "a past task is in the way"
        theta = theta - made.lr * (g + correction(past, g, method.margin, method.ridge))
    made.flat.theta.data.copy_(start)
    before = made.sample_gradients
    method.observe(rows)
    torch.testing.assert_close(made.flat.theta.detach(), theta)
    assert made.sample_gradients - before == 2 * (5 + 8)
    assert method.memory.seen == 5, "a batch is stored once"


def test_gem_clips_before_there_is_a_past() -> None:
    made, rows = learner(mlp().double()), blobs("data").tasks[0]
    method = method_for("gem", made, "method.clip=0.01")
    theta = made.flat.theta.detach().clone()
    method.observe(Batch(rows.x, rows.y, rows.t))
    moved_by = (theta - made.flat.theta.detach()).norm()
    assert float(moved_by) == pytest.approx(0.01 * made.lr)


def test_the_oversight_needs_a_memory_of_all_tasks() -> None:
    given = "method=agem", "method.reference=tasks", "method.reference_compat=true"
    check_config(composed(*given))
    with pytest.raises(UserError, match=r"method\.reference_compat=true: .* use buffer=ring"):
        check_config(composed(*given, "buffer=reservoir"))
    check_config(composed("method=agem", "method.reference_compat=true", "buffer=reservoir"))

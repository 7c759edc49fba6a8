"""Loss, gradient and step against plain autograd; eager against compiled."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import (
    CPU,
    DEVICES,
    batch,
    compiles,
    learner,
    machine,
    mlp,
    scheduled,
    two_blocks,
)
from torch import Tensor

from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Task
from cl_bench.data.augment import Transform

LIVE = torch.tensor(
    [[True] * 2 + [False] * 4, [False] * 2 + [True] * 2 + [False] * 2, [False] * 4 + [True] * 2]
)


def on(device: str) -> Batch:
    rows = batch()
    y = 2 * rows.t + rows.y % 2  # a class that is live for the sample's task
    return Batch(rows.x.to(device), y.to(device), rows.t.to(device))


@pytest.mark.parametrize("device", DEVICES)
def test_masked_loss_is_the_loss_on_slices(device: str) -> None:
    made, rows = learner(mlp(), machine(device)), on(device)
    made.begin_task(LIVE.to(device), torch.tensor([0]), None)
    logits = made.logits(made.flat.theta, rows)
    each = [
        F.cross_entropy(logits[i : i + 1, 2 * t : 2 * t + 2], rows.y[i : i + 1] - 2 * t)
        for i, t in enumerate(rows.t.tolist())
    ]
    torch.testing.assert_close(made.losses(made.flat.theta, rows), torch.stack(each))
    made.gradient(rows)
    expected = torch.autograd.grad(torch.stack(each).mean(), list(made.net.parameters()))
    flat = torch.cat([g.flatten() for g in expected])
    torch.testing.assert_close(made.flat.grad, flat, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fresh", [True, False])
def test_the_state_of_the_optimizer_at_a_new_task(fresh: bool) -> None:
    """The steps are those of one Adam of PyTorch in all tasks, or of one in each."""
    torch.manual_seed(0)
    made = learner(mlp(), optimizer=lambda p: torch.optim.Adam(p, lr=0.1))
    theta, rows, optimizer = made.flat.theta.detach().clone(), on("cpu"), None
    for task in range(3):
        made.begin_task(LIVE, torch.tensor([task]), None, fresh)
        made.anneal(0.5)  # which the next task undoes
        if fresh or optimizer is None:
            optimizer = torch.optim.Adam([theta], lr=0.05)
        for _ in range(2):
            made.gradient(rows)
            theta.grad = made.flat.grad.clone()
            made.step()
            optimizer.step()
        assert made.flat.theta.detach().equal(theta)
    made.begin_task(LIVE, torch.tensor([0]), None, fresh)
    assert made.lr == 0.1 and bool(made.optimizer.state_dict()["state"]) != fresh


def test_a_head_that_is_not_live_stays_as_it_was() -> None:
    torch.manual_seed(0)
    net: Any = mlp()
    made = learner(net, optimizer=lambda p: torch.optim.Adam(p, lr=0.1), weight_decay=0.1)
    rows = on("cpu")
    head = net.head.weight.detach().clone()
    body = net.features[1].weight.detach().clone()
    for task in range(3):
        own = rows.rows(rows.t == task)
        made.begin_task(LIVE, torch.tensor([task]), None)
        before = net.head.weight.detach().clone()
        for _ in range(3):
            made.descend(own)
        others = [k for k in range(6) if k // 2 != task]
        torch.testing.assert_close(net.head.weight[others], before[others], rtol=0, atol=0)
        assert not net.head.weight[2 * task].equal(head[2 * task])
    assert not net.features[1].weight.equal(body)


def test_weight_decay_is_torchs() -> None:
    torch.manual_seed(0)
    plain = mlp()
    torch.manual_seed(0)
    made = learner(mlp(), weight_decay=0.05)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, weight_decay=0.05)
    rows = batch()
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(plain(rows.x / 255), rows.y).backward()
        optimizer.step()
        made.descend(rows)
    flat = torch.cat([p.flatten() for p in plain.parameters()])
    torch.testing.assert_close(made.flat.theta, flat, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_any_vector_will_do(device: str) -> None:
    """At another theta the loss is that of a network with those weights; the net stays put."""
    made, rows = learner(mlp(), machine(device)), on(device)
    other = mlp().to(device)
    theta = torch.cat([p.detach().flatten() for p in other.parameters()])
    before = made.flat.theta.detach().clone()
    expected = F.cross_entropy(other(rows.x / 255), rows.y)
    torch.testing.assert_close(made.loss(theta, rows), expected)
    torch.testing.assert_close(made.flat.theta.detach(), before, rtol=0, atol=0)


def pulled(made: Learner, anchor: Tensor) -> float:
    def objective(theta: Tensor, rows: Batch) -> Tensor:
        return made.loss(theta, rows) + (theta - anchor).square().sum()

    return float(made.gradient_of(objective, batch()))


def test_an_objective_may_use_theta_directly() -> None:
    made = learner(mlp())
    anchor = torch.zeros_like(made.flat.grad)
    made.gradient(batch())
    plain = made.flat.grad.clone()
    pulled(made, anchor)
    torch.testing.assert_close(made.flat.grad, plain + 2 * made.flat.theta.data)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_compiled_agrees_with_eager(kind: str, device: str) -> None:
    def run(compiled: bool) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(0)
        rt = machine(device)
        if compiled:
            compiles(rt)
        shape = (1, 4, 4) if kind == "mlp" else (3, 8, 8)
        made = learner(mlp() if kind == "mlp" else two_blocks(), rt)
        live = torch.ones(3, 6, dtype=torch.bool, device=device)
        live[0, 5] = False
        made.begin_task(live, torch.tensor([0]), None)
        rows = Batch(*(part.to(device) for part in batch(8, classes=5, shape=shape)[:3]))
        for _ in range(3):
            made.descend(rows)
        return made.flat.theta.detach(), [b.clone() for b in made.net.buffers()]

    (eager, stats), (compiled, others) = run(False), run(True)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(others, stats, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_which_networks_couple_the_samples_of_a_batch() -> None:
    """Batch norm in training does; frozen, folded, or in evaluation it does not."""
    made = learner(two_blocks())
    assert made.couples_samples and not learner(mlp()).couples_samples
    with made.evaluating():
        assert not made.couples_samples
    made.train(frozen=True)
    assert not made.couples_samples
    made.train(frozen=False)
    made.fold_batch_norm(Task(0, *batch(4, shape=(3, 8, 8))[:3]))
    made.train(frozen=True)
    assert not made.couples_samples
    bare = torch.nn.BatchNorm2d(1, track_running_stats=False)
    own = torch.nn.Sequential(bare, torch.nn.Flatten(), torch.nn.Linear(16, 6))
    own.head = own[2]
    own = learner(own)
    with own.evaluating():
        assert own.couples_samples, "it has no running statistics"


def test_gradients_see_augmented_pixels_and_logits_do_not() -> None:
    transform = Transform([0.0], [1.0], 4, 2, True, None, 0.0, "anew", CPU)
    made, rows = learner(mlp(), transform=transform), batch()
    seen = made.augmented(rows).x
    assert not seen.equal(rows.x) and seen.shape == rows.x.shape
    first = made.logits(made.flat.theta, rows)
    torch.testing.assert_close(first, made.logits(made.flat.theta, rows), rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_is_for_the_network_alone(device: str) -> None:
    made = learner(mlp(), machine(device, precision="bf16"))
    rows = Batch(*(part.to(device) for part in batch()[:3]))
    assert made.logits(made.flat.theta, rows).dtype == torch.bfloat16
    assert made.loss(made.flat.theta, rows).dtype == torch.float32
    made.descend(rows)
    assert made.flat.grad.dtype == torch.float32
    with made.evaluating(full_precision=True):
        assert made.logits(made.flat.theta, rows).dtype == torch.float32


def task_of(rows: int, number: int = 0) -> Task:
    made = batch(rows)
    return Task(number, made.x, made.y, torch.full_like(made.t, number))


def test_annealing() -> None:
    """Cosine: all of the rate at first, half of it half way, none left after the last step."""
    cosine, plain, task = scheduled(annealing="cosine"), scheduled(), task_of(64)
    assert [cosine.factor(step, task) for step in (0, 4, 8)] == pytest.approx([1, 0.5, 0])
    assert {plain.factor(step, task) for step in range(8)} == {1.0}
    stairs = scheduled(epochs=2, annealing="milestones", milestones=[0.5, 0.75], decay=0.1)
    found = [stairs.factor(step, task) for step in range(16)]
    assert found == pytest.approx([1.0] * 8 + [0.1] * 4 + [0.01] * 4)
    steep = scheduled(epochs=2, annealing="exponential")
    assert [steep.factor(step, task) for step in (0, 8, 16)] == pytest.approx([1, 0.5, 0.25])
    ramped = scheduled(epochs=2, ramp=0.5)
    found = [ramped.factor(step, task) for step in range(16)]
    assert found == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 13)


def test_epochs_of_the_first_and_of_later_tasks() -> None:
    schedule = scheduled(epochs=[5, 2])
    assert [schedule.steps(task_of(20, number)) for number in range(4)] == [15, 6, 6, 6]
    assert scheduled(epochs=[5, 2], annealing="cosine").factor(3, task_of(20, 1)) == pytest.approx(
        0.5
    )


def test_the_gradient_of_a_step_is_clipped_as_in_pytorch() -> None:
    """Before weight decay; and a gradient that is short enough is left as it is."""
    rows = batch(6)
    for limit in (0.05, 1e6):
        made = learner(mlp(), weight_decay=0.1)
        net = deepcopy(made.net)
        optimizer = torch.optim.SGD(net.parameters(), 0.1, weight_decay=0.1)
        made.clip = limit
        made.descend(rows)
        made.criterion(net(rows.x / 255), rows.y, None).mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), limit)
        assert (norm > limit) == (limit < 1)
        optimizer.step()
        for own, other in zip(made.net.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(own.detach(), other.detach())


def test_the_rate_of_a_step() -> None:
    made = learner(mlp())
    for factor in (0.5, 0.25):
        made.anneal(factor)
        assert made.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * factor)

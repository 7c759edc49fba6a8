"""What each method does to a gradient, against the formula written out."""

from __future__ import annotations

import pytest
import torch
from conftest import DEVICES, batch, blobs, learner, machine, method_for, mlp
from torch import Generator

from cl_bench.methods.agem import project
from cl_bench.types import Batch


def moved(method: object, rows: Batch) -> torch.Tensor:
    """How far one step goes, divided by minus the learning rate: the gradient that was used."""
    theta = method.learner.flat.theta  # type: ignore[attr-defined]
    before = theta.detach().clone()
    method.observe(rows)  # type: ignore[attr-defined]
    return (before - theta.detach()) / 0.1


def test_finetune_follows_the_gradient() -> None:
    made = learner(mlp())
    method = method_for("finetune", made)
    rows = batch()
    made.gradient(made.loss, rows)
    expected = made.flat.grad.clone()
    torch.testing.assert_close(moved(method, rows), expected, rtol=1e-3, atol=1e-6)


def test_er_is_one_mean_over_new_and_old() -> None:
    made = learner(mlp())
    method = method_for("er", made, "method.capacity=6", "method.replay=4")
    first, second = batch(6), batch(10).rows(slice(6, 10))
    moved(method, first)
    draws = torch.randperm(6, generator=_copy(made.rng))[:4]
    union = second.cat(method.memory.rows.rows(draws))
    made.gradient(made.loss, union)
    expected = made.flat.grad.clone()
    torch.testing.assert_close(moved(method, second), expected, rtol=1e-3, atol=1e-6)


def test_ewc_adds_the_penaltys_gradient() -> None:
    """Against autograd of loss + strength / 2 sum F (theta - anchor)^2, over three tasks."""
    made, stream = learner(mlp()), blobs("data")
    method = method_for("ewc", made, "method.strength=5.0", "method.decay=0.5")
    rows = Batch(*(getattr(stream.tasks[0], f)[:8] for f in "xyt"))
    fishers = []
    for task in stream.tasks:
        for _ in range(3):
            method.observe(rows)
        fishers.append(method.estimate(made, task).values)
        method.end_task(task)
    weight = fishers[2] + 0.5 * (fishers[1] + 0.5 * fishers[0])
    anchor = made.flat.theta.detach().clone()
    torch.testing.assert_close(method.past[0].values, weight)
    method.observe(rows)

    def objective(theta: torch.Tensor, rows: Batch) -> torch.Tensor:
        return made.loss(theta, rows) + 2.5 * (weight * (theta - anchor).square()).sum()

    made.gradient(objective, rows)
    expected = made.flat.grad.clone()
    torch.testing.assert_close(moved(method, rows), expected, rtol=1e-3, atol=1e-5)


def test_ewc_at_strength_zero_is_finetune() -> None:
    def run(name: str, *overrides: str) -> torch.Tensor:
        rt = machine()
        torch.manual_seed(3)
        made, stream = learner(mlp(), rt), blobs("data")
        method = method_for(name, made, *overrides)
        for task in stream.tasks:
            for rows in task.batches(10, Generator().manual_seed(0)):
                method.observe(rows)
            method.end_task(task)
        return made.flat.theta.detach()

    torch.testing.assert_close(run("ewc", "method.strength=0.0"), run("finetune"))


@pytest.mark.parametrize("device", DEVICES)
def test_projection(device: str) -> None:
    g = torch.randn(1000, generator=Generator().manual_seed(0)).to(device)
    against = -g + 0.3 * torch.randn(1000, generator=Generator().manual_seed(1)).to(device)
    found = g.clone()
    project(found, against)
    assert abs(found @ against) < 1e-3 * (g @ g) and found.norm() <= g.norm()
    residual = g - found
    along = residual @ against / (residual.norm() * against.norm())
    assert abs(along) == pytest.approx(1, abs=1e-4), "what is taken away lies along r"
    agreeing = g.clone()
    project(agreeing, g + 0.1)
    assert agreeing.equal(g)
    project(agreeing, torch.zeros_like(g))
    assert agreeing.equal(g), "a reference of zero forbids nothing"


def test_agem_never_raises_the_loss_on_memory_to_first_order() -> None:
    made, stream = learner(mlp()), blobs("data")
    method = method_for("agem", made, "method.per_task=10", "method.replay=10")
    for task in stream.tasks:
        for rows in task.batches(10, Generator().manual_seed(0), epochs=5):
            if len(method.memory):
                drawn = torch.randperm(len(method.memory), generator=_copy(made.rng))[:10]
                made.gradient(made.loss, method.memory.rows.rows(drawn))
                reference = made.flat.grad.clone()
                step = moved(method, rows)
                assert step @ reference >= -1e-3 * step.norm() * reference.norm()
            else:
                method.observe(rows)
        method.end_task(task)
    assert len(method.memory) == 30


def test_agem_memory_is_of_past_tasks_alone() -> None:
    made, stream = learner(mlp()), blobs("task")
    method = method_for("agem", made, "method.per_task=5")
    for task in stream.tasks[:2]:
        for rows in task.batches(10, Generator().manual_seed(0)):
            method.observe(rows)
            if len(method.memory):
                assert method.memory.sample(99).t.lt(task.id).all()
        method.end_task(task)


def _copy(rng: Generator) -> Generator:
    twin = Generator()
    twin.set_state(rng.get_state())
    return twin

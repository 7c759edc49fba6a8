"""The diagonal empirical Fisher against a loop of autograd, one sample at a time."""

from __future__ import annotations

import pytest
import torch
from conftest import batch, learner, mlp, resnet
from torch import Tensor, nn

from cl_bench.curvature import capture
from cl_bench.curvature.diagonal import Diagonal, empirical_fisher, per_sample_gradients
from cl_bench.learner import Learner
from cl_bench.types import Batch, Task


def looped(made: Learner, task: Task) -> Tensor:
    """The slow obvious version: backward once a sample, square, mean."""
    total = torch.zeros_like(made.flat.grad)
    made.net.eval()
    for single in Batch(task.x, task.y, task.t).singles():
        made.flat.grad.zero_()
        made.loss(made.flat.theta, single).backward()
        total += made.flat.grad.square()
    made.net.train()
    return total / len(task)


def case(kind: str) -> tuple[Learner, Task]:
    torch.manual_seed(0)
    shape = (1, 4, 4) if kind == "mlp" else (3, 8, 8)
    made = learner(mlp() if kind == "mlp" else resnet())
    for module in made.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    rows = batch(9, shape=shape)
    return made, Task(0, rows.x, rows.y, rows.t)


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_fisher_equals_loop(kind: str) -> None:
    made, task = case(kind)
    assert capture.covers(made.net)
    torch.testing.assert_close(
        empirical_fisher(made, task).values, looped(made, task), rtol=1e-4, atol=1e-7
    )
    assert made.net.training


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_dense_path_equals_loop(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, task = case(kind)
    monkeypatch.setattr("cl_bench.curvature.diagonal.covers", lambda net: False)
    found = empirical_fisher(made, task).values
    torch.testing.assert_close(found, looped(made, task), rtol=1e-4, atol=1e-7)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    made, task = case("mlp")
    whole = empirical_fisher(made, task).values
    monkeypatch.setattr("cl_bench.curvature.diagonal.CHUNK", 2)
    torch.testing.assert_close(empirical_fisher(made, task).values, whole)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.Conv2d(3, 5, 1, stride=2, bias=False),
        nn.Conv2d(3, 5, 5, padding=2),
    ],
)
def test_squares_of_any_convolution(layer: nn.Conv2d) -> None:
    a = torch.randn(4, 3, 7, 8, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(layer)
    with capture.captured(net) as sites:
        out = net(a)
    found = dict(capture.squared_gradients(sites, out.square().sum((1, 2, 3))))
    for name, parameter in layer.named_parameters():
        looped = torch.zeros_like(parameter)
        for i in range(4):
            (g,) = torch.autograd.grad(layer(a[i : i + 1]).square().sum(), parameter)
            looped += g.square()
        torch.testing.assert_close(found[f"0.{name}"], looped, rtol=1e-4, atol=1e-3)


def test_grouped_convolutions_take_the_dense_path() -> None:
    assert not capture.covers(nn.Conv2d(4, 4, 3, groups=2))
    assert not capture.covers(nn.Conv2d(4, 4, 3, padding="same"))
    assert not capture.covers(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    assert not capture.covers(nn.PReLU())


def test_per_sample_gradients_average_to_the_gradient() -> None:
    made, task = case("mlp")
    rows = Batch(task.x, task.y, task.t)
    each = per_sample_gradients(made.losses, made.flat.theta.detach(), rows)
    made.gradient(made.loss, rows)
    torch.testing.assert_close(each.mean(0), made.flat.grad)


def test_fisher_respects_the_mask() -> None:
    made, task = case("mlp")
    live = torch.zeros(3, 6, dtype=torch.bool)
    live[:, :2] = True
    made.begin_task(live, torch.tensor([0]))
    values = empirical_fisher(made, Task(0, task.x, task.y % 2, task.t)).values
    head = made.flat.views(values)["head.weight"]
    assert head[2:].eq(0).all() and head[:2].gt(0).any()


def test_diagonal_is_its_dense_matrix() -> None:
    g = torch.Generator().manual_seed(0)
    a, b, v = (torch.rand(7, generator=g, dtype=torch.float64) for _ in range(3))
    dense_a, dense_b = a.diag(), b.diag()
    one, two = Diagonal(a), Diagonal(b)
    torch.testing.assert_close(one.matvec(v), dense_a @ v)
    torch.testing.assert_close(one.quadratic(v), v @ dense_a @ v)
    solved = torch.linalg.solve(dense_a + 0.3 * torch.eye(7, dtype=torch.float64), v)
    torch.testing.assert_close(one.solve(v, 0.3), solved)
    merged = one.merge(two, 2.0, 0.5)
    torch.testing.assert_close(merged.matvec(v), (2 * dense_a + 0.5 * dense_b) @ v)

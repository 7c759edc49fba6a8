"""A perceptron's gradient by hand against autograd's, and what counts as a gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import DEVICES, batch, blobs, identity, learner, machine, method_for, mlp, resnet
from torch import Tensor

from cl_bench.core.conv_gradient import ConvGradient, conv_gradient
from cl_bench.core.criteria import CrossEntropy, Live, ScaledMSE
from cl_bench.core.flat import FlatParams
from cl_bench.core.learner import Learner
from cl_bench.core.mlp_gradient import mlp_gradient
from cl_bench.core.optim import SGD
from cl_bench.core.types import Batch, Task
from cl_bench.models.linearized import Linearized
from cl_bench.models.prepare import prepare_network
from cl_bench.models.strided import StridedConvNet

LIVE = torch.tensor(
    [[True] * 2 + [False] * 4, [False] * 2 + [True] * 2 + [False] * 2, [False] * 4 + [True] * 2]
)


def case(device: str, criterion: Any, live: Live, **model: Any) -> tuple[Learner, Batch]:
    torch.manual_seed(0)
    made = learner(mlp(**model).double(), machine(device))
    made.criterion = criterion
    rows = batch(12)
    if live is not None:
        rows = rows._replace(y=2 * rows.t + rows.y % 2)
        made.begin_task(live.to(device), torch.tensor([0]), None)
    return made, Batch(*(part.to(device) for part in rows[:3]))


def slow(made: Learner, rows: Batch) -> tuple[Tensor, Tensor]:
    """Loss and gradient by autograd."""
    theta = made.flat.theta.detach().clone().requires_grad_()
    loss = made.loss(theta, rows)
    return loss.detach(), torch.autograd.grad(loss, theta)[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("live", [None, LIVE], ids=["all", "masked"])
@pytest.mark.parametrize("criterion", [CrossEntropy(), ScaledMSE(3.0)], ids=["ce", "mse"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("hidden", [[], [16], [16, 8]], ids=str)
def test_equals_autograd(
    hidden: list[int], activation: str, criterion: Any, live: Live, device: str
) -> None:
    made, rows = case(device, criterion, live, hidden=hidden, activation=activation)
    for some in (rows, rows.rows(slice(3, 4))):
        loss, expected = slow(made, some)
        torch.testing.assert_close(made.gradient(some), loss)
        torch.testing.assert_close(made.flat.grad, expected, rtol=1e-10, atol=1e-12)
        before = made.flat.theta.detach().clone()
        torch.testing.assert_close(made.inner.descend(some, 0.3), loss)
        torch.testing.assert_close(made.flat.theta.detach(), before - 0.3 * expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("live", [None, LIVE], ids=["all", "masked"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("hidden", [[], [7]], ids=str)
def test_convolutions_equal_autograd(
    hidden: list[int], activation: str, live: Live, channels_last: bool, device: str
) -> None:
    torch.manual_seed(0)
    net = strided(activation, hidden).double()
    rt = machine(device, channels_last=channels_last)
    made = learner(net, rt, transform=identity(rt.device, channels=3))
    assert made.direct is not None and isinstance(made.direct.passes, ConvGradient)
    rows = batch(6, shape=(3, 9, 8))
    if live is not None:
        rows = rows._replace(y=2 * rows.t + rows.y % 2)
        made.begin_task(live.to(device), torch.tensor([0]), None)
    rows = Batch(*(part.to(device) for part in rows[:3]))
    for some in (rows, rows.rows(slice(3, 4))):
        loss, expected = slow(made, some)
        made.flat.grad.fill_(9)
        torch.testing.assert_close(made.gradient(some), loss)
        torch.testing.assert_close(made.flat.grad, expected, rtol=1e-10, atol=1e-12)
        before = made.flat.theta.detach().clone()
        torch.testing.assert_close(made.inner.descend(some, 0.3), loss)
        torch.testing.assert_close(made.flat.theta.detach(), before - 0.3 * expected)


@pytest.mark.parametrize("net", ["mlp", "strided"])
def test_a_loss_of_the_logits(net: str) -> None:
    """Its gradient, value and logits, as by autograd; and the logits of a teacher."""
    torch.manual_seed(0)
    spatial = net == "strided"
    made = learner((strided() if spatial else mlp()).double())
    rows, scale = batch(5, shape=(3, 9, 8) if spatial else (1, 4, 4)), torch.tensor(0.3)
    loss = lambda z, part, scale: scale * z.square().sum() + z[part.t == 0].exp().mean()  # noqa: E731
    found = []
    for direct in (made.direct, None):
        made.direct = direct
        made.flat.grad.fill_(9)
        value, logits = made.differentiate_logits(loss, rows, scale)
        teacher = made.snapshot()
        teacher.theta.mul_(0.5)
        found.append((value, logits, made.flat.grad.clone(), made.snapshot_logits(teacher, rows)))
    assert made.sample_gradients == 10
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("net", ["mlp", "strided"])
def test_steps_of_plain_sgd_need_no_gradient_vector(net: str, momentum: float) -> None:
    """Three steps equal gradients and steps of torch.optim.SGD; with momentum it is used."""
    ends = []
    for own in (True, False):
        torch.manual_seed(0)
        kind: Any = SGD if own else torch.optim.SGD
        make = lambda params, kind=kind: kind(params, lr=0.1, momentum=momentum)  # noqa: E731
        made = learner((strided() if net == "strided" else mlp()).double(), optimizer=make)
        made.flat.grad.fill_(9)
        rows = batch(5, shape=(3, 9, 8) if net == "strided" else (1, 4, 4))
        losses = [made.descend(rows) for _ in range(3)]
        assert bool((made.flat.grad == 9).all()) == (own and not momentum)
        ends.append((made.flat.theta.detach(), torch.stack(losses)))
    for one, two in zip(*ends, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("change", ["clip", "decay", "precondition"])
def test_steps_that_change_the_gradient_use_its_vector(change: str) -> None:
    made = learner(mlp(), weight_decay=0.5 if change == "decay" else 0.0)
    made.clip = 1e-3 if change == "clip" else None
    made.precondition = torch.zeros_like if change == "precondition" else None
    before = made.flat.theta.detach().clone()
    made.gradient(batch(5))
    slope = made.flat.grad.clone()
    made.descend(batch(5))
    moved = (before - made.flat.theta.detach()) / 0.1
    expected = {
        "clip": slope * 1e-3 / slope.norm(),
        "decay": slope + 0.5 * before,
        "precondition": torch.zeros_like(slope),
    }
    torch.testing.assert_close(moved, expected[change], rtol=1e-3, atol=1e-4)


def strided(activation: Any = "relu", hidden: Any = (7,)) -> StridedConvNet:
    return StridedConvNet((3, 9, 8), 6, [4, 5], list(hidden), activation, "kaiming", "same")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("emcl_replay", ("method.replay=3", "method.scale=3")),
        ("mer", ("method.batches=2", "method.replay=3")),
        ("lamaml", ("method.passes=2", "method.slice_size=2", "method.order=second")),
        ("lamaml", ("method.passes=1", "method.order=first")),
        ("gem", ("buffer.per_task=4", "method.clip=0.5")),
        ("agem", ("buffer.per_task=4", "method.replay=3")),
    ],
)
def test_methods_are_the_same_without_autograd(name: str, options: tuple[str, ...]) -> None:
    """Two tasks with heads apart, on a convolutional network."""
    live, ends = LIVE, []
    for by_autograd in (False, True):
        torch.manual_seed(0)
        made = learner(strided().double(), transform=identity(channels=3))
        assert made.direct is not None and isinstance(made.direct.passes, ConvGradient)
        made.direct = None if by_autograd else made.direct
        method = method_for(name, made, *options)
        for t in range(2):
            rows = batch(8, shape=(3, 9, 8))
            task = Task(t, rows.x, 2 * t + rows.y % 2, torch.full((8,), t))
            made.begin_task(live, torch.tensor([t]), None)
            method.begin_task(task)
            for part in task.batches(4, torch.Generator().manual_seed(t), epochs=2):
                method.observe(part)
            method.end_task(task)
        ends.append((made.flat.theta.detach().clone(), torch.tensor(made.sample_gradients)))
    for one, two in zip(*ends, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


def test_an_objective_of_a_methods_own_goes_by_autograd() -> None:
    made, rows = case("cpu", CrossEntropy(), None)

    def doubled(theta: Tensor, rows: Batch) -> Tensor:
        return 2 * made.loss(theta, rows)

    made.gradient_of(doubled, rows)
    torch.testing.assert_close(made.flat.grad, 2 * slow(made, rows)[1])


def test_other_networks_are_no_chains() -> None:
    def found(net: Any) -> Any:
        return mlp_gradient(net, FlatParams(net, False))

    assert found(mlp()) is not None
    assert (
        found(mlp(activation="gelu")) is None
        and found(mlp(hidden=[4, 4], activation="elu")) is None
    )
    assert found(mlp(signed_features=True)) is None
    assert found(resnet()) is None and found(Linearized(mlp(), "bilinear")) is None
    options: Any = {"pretrained": None, "norm": "batch", "linearize": False}
    fixed = prepare_network(
        mlp(), torch.zeros(1, 1, 4, 4), head_mode="head_only", with_head=False, **options
    )
    assert found(fixed) is None
    FlatParams(plain := strided(), False)
    assert conv_gradient(plain) is not None and conv_gradient(resnet()) is None
    signed = StridedConvNet((1, 4, 4), 6, [4, 6], [8], "relu", "kaiming", "same", True)
    FlatParams(signed, False)
    assert conv_gradient(signed) is None
    FlatParams(smooth := strided("gelu"), False)
    assert conv_gradient(smooth) is None
    plain.head.weight.requires_grad_(False)
    plain.head.weight.grad = None
    assert conv_gradient(plain) is None


def test_a_plain_step_of_any_network() -> None:
    torch.manual_seed(0)
    made = learner(resnet(norm="folded"), transform=identity(channels=3), weight_decay=0.1)
    rows = batch(3, shape=(3, 8, 8))
    loss, expected = slow(made, rows)
    before = made.flat.theta.detach().clone()
    torch.testing.assert_close(made.inner.descend(rows, 0.3), loss)
    torch.testing.assert_close(made.flat.theta.detach(), before - 0.3 * expected)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("finetune", (), 60),
        (
            "er",
            ("method.replay=5", "method.combine=sum"),
            60 + 11 * 5,
        ),  # at the first of 12 steps nothing is stored
        ("agem", ("method.replay=5",), 60 + 6 * 5),  # in the second task
        ("der", ("method.replay=5", "method.beta=1.0"), 60 + 11 * 10),
        ("der", ("method.replay=5",), 60 + 11 * 5),
        ("gem", ("buffer.per_task=4",), 60 + 6 * 4),
        ("emcl", (), 60 + 60),
        ("lwf", (), 60),  # a teacher is asked, not differentiated
        ("ewc", ("curvature.labels=sampled",), 60 + 60),
        ("ewc", ("curvature.labels=exact", "curvature.samples=10"), 60 + 2 * 6 * 10),
        ("ewc", ("curvature=diag_hessian", "curvature.probes=3"), 60 + 60 * 3 * 2),
        ("osla", ("curvature.samples=10",), 60 + 2 * 10),
    ],
)
def test_gradients_are_counted(name: str, options: tuple[str, ...], expected: int) -> None:
    """Each backward pass once for each sample in it, a double one twice."""
    made, stream = learner(mlp()), blobs("data", tasks=2)
    method = method_for(name, made, *options)
    for task in stream.tasks:
        method.begin_task(task)
        for rows in task.batches(5, torch.Generator().manual_seed(0)):
            method.observe(rows)
        method.end_task(task)
    assert made.sample_gradients == expected

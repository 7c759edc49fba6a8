"""HAT against slow versions of its parts, and that it forgets nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import blobs, composed, identity, learner, machine, method_for, mlp, resnet, scheduled
from test_class_incremental import revealed, rows_of
from test_contract import stopped_and_continued
from test_halrp import SMALL
from torch import Tensor, nn

from cl_bench.base.exceptions import UserError
from cl_bench.config.check import check_config
from cl_bench.core.learner import Learner
from cl_bench.core.optim import SGD
from cl_bench.core.types import Batch, Stream
from cl_bench.data.augment import Transform
from cl_bench.models.conv5 import Conv5
from cl_bench.models.convnet import ConvNet
from cl_bench.models.fold import fold
from cl_bench.models.linearized import Linearized
from cl_bench.models.strided import StridedConvNet

S_MAX, C = 400.0, 0.75  # of conf/method/hat.yaml


def lenet(**changes: Any) -> nn.Module:
    """Two convolutions and a linear layer; a 4x4 image becomes 6 channels of 2x2 positions."""
    net = ConvNet((1, 4, 4), 6, **{**SMALL, "kernels": [5, 4], **changes})
    return fold(net, torch.zeros(1, 1, 4, 4))


def perceptron(**changes: Any) -> nn.Module:
    return mlp(hidden=[20, 12], **changes)


def strided(**changes: Any) -> nn.Module:
    options: dict[str, Any] = {"activation": "leaky_relu", "init": "kaiming", "head_init": "same"}
    return StridedConvNet((1, 4, 4), 6, [4, 6], [8], **{**options, **changes})


def conv5(**changes: Any) -> nn.Module:
    options: dict[str, Any] = {"activation": "relu", "init": "torch", "head_init": "same"}
    net = Conv5((1, 4, 4), 6, [4, 6], "same", [8], **{**options, **changes})
    return fold(net, torch.zeros(1, 1, 4, 4))


NETWORKS = {"mlp": perceptron, "lenet": lenet, "strided": strided, "conv5": conv5}
OPTIMIZERS = {
    "sgd": partial(SGD, lr=0.05, momentum=0.0),
    "momentum": partial(SGD, lr=0.02, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.01),
}


def made_for(net: nn.Module, optimizer: Any = None, rt: Any = None) -> tuple[Any, Stream]:
    """HAT on a learner, and a stream."""
    made = learner(net, rt, optimizer, transform=identity())
    return method_for("hat", made), blobs("task")


def begun(method: Any, stream: Stream, now: int) -> Batch:
    """At the start of a task; the first batch of 8."""
    revealed(method.learner, stream, now)
    method.learner.task = stream.tasks[now]
    method.begin_task(stream.tasks[now])
    return rows_of(stream.tasks[now], 8)


def learned(method: Any, stream: Stream, now: int, epochs: int = 4) -> None:
    begun(method, stream, now)
    for _ in range(epochs):
        for rows in stream.tasks[now].chunks(8):
            method.observe(rows)
    method.end_task(stream.tasks[now])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_nothing_is_forgotten(kind: str, optimizer: str) -> None:
    """The logits of each task's classes are the same bit for bit after all tasks."""
    torch.manual_seed(0)
    method, stream = made_for(NETWORKS[kind](), OPTIMIZERS[optimizer])
    found, used = [], []
    for test in stream.tests:
        learned(method, stream, test.id)
        found.append(method.predict(rows_of(test, 20)))
        used.append(method.capacity()["used"])
    assert 0 < used[0] < used[-1] <= 1
    for test, logits in zip(stream.tests, found, strict=True):
        own = slice(2 * test.id, 2 * test.id + 2)
        assert method.predict(rows_of(test, 20))[:, own].equal(logits[:, own])


def gated_logits(net: Any, theta: dict[str, Tensor], gates: Tensor, x: Tensor) -> Tensor:
    """The forward pass in which each hidden layer's activations are multiplied by its gates."""
    at, waiting = 0, None
    for name, module in net.named_modules():
        if name == "head" or any(module.children()):
            continue
        if isinstance(module, nn.Linear | nn.Conv2d):
            weight, bias = (theta[f"{name}.{key}"] for key in ("weight", "bias"))
            if isinstance(module, nn.Linear):
                x = F.linear(x, weight, bias)
            else:
                x = F.conv2d(x, weight, bias, module.stride, module.padding)  # type: ignore[arg-type]
            waiting = gates[at : at + len(weight)]
            at += len(weight)
        else:
            x = module(x)
        if isinstance(module, nn.ReLU | nn.LeakyReLU):
            assert waiting is not None
            x = x * waiting.view(1, -1, *[1] * (x.dim() - 2))
    return F.linear(x, theta["head.weight"], theta["head.bias"])


def compensation(e: Tensor, s: float) -> Tensor:
    """By hyperbolic cosines, as in the paper."""
    return S_MAX / s * ((s * e).clamp(-50, 50).cosh() + 1) / (e.cosh() + 1)


@pytest.mark.parametrize("past", [0, 1])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_are_those_of_gated_activations(kind: str, layout: str, past: int) -> None:
    """Through the gates by autograd, then masked and compensated by their formulas."""
    torch.manual_seed(1)
    rt = machine(channels_last=layout == "channels_last")
    method, stream = made_for(NETWORKS[kind]().double(), rt=rt)
    if past:
        learned(method, stream, 0)
    rows = begun(method, stream, past)
    made, used = method.learner, method.used
    assert used.sum() > 0 if past else used.sum() == 0
    phi = made.optimized.detach().clone().requires_grad_()
    shared, e = phi[: len(made.flat.theta)], phi[len(made.flat.theta) :]
    s = 0.5  # at which no slope of a gate vanishes
    method._scale = lambda: torch.tensor(s, dtype=torch.float64)
    gates = torch.sigmoid(s * e)
    images = made.transform.view(rows.x).double()
    logits = gated_logits(made.net, made.flat.views(shared), gates, images)
    loss = made.criterion(logits, rows.y, made.heads.competing(rows)).mean()
    penalty = C * (gates * (1 - used)).sum() / (1 - used).sum()
    (expected,) = torch.autograd.grad(loss + penalty, phi)
    expected[len(shared) :] *= compensation(e.detach(), s)
    expected[: len(shared)] *= 1 - smaller_by_loops(made, used)
    assert method.observe(rows).item() == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(made.optimized.grad, expected, rtol=1e-9, atol=1e-12)
    others = ~stream.live(past)[past]
    assert not made.heads.rows_of(made.optimized.grad[: len(shared)])[others].any()


def smaller_by_loops(made: Learner, values: Tensor) -> Tensor:
    """(P,): for each weight of the features the smaller value of its two units, one at a time."""
    found = torch.zeros_like(made.flat.grad)
    views, at, before = made.flat.views(found), 0, None
    for name, view in views.items():
        if name.startswith("head"):
            continue
        count, out = len(view), values[at : at + len(view)]
        for i in range(count):
            if view.dim() == 1:
                view[i] = out[i]
                continue
            each = view.shape[1] // len(before) if before is not None else 0
            for j in range(view.shape[1]):
                into = 1.0 if before is None else float(before[j // each])
                view[i, j] = min(float(out[i]), into)
        if name.endswith("bias"):  # the last parameter of its layer
            at, before = at + count, out
    return found


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_factor_of_a_weight_is_by_its_two_units(kind: str) -> None:
    method, _ = made_for(NETWORKS[kind]())
    values = torch.rand(method.units.count)
    assert method.units.smaller(values).equal(smaller_by_loops(method.learner, values))


def test_a_channel_gates_all_of_its_positions() -> None:
    """6 channels of 2x2 positions feed 10 units: closing a channel equals deleting 4 columns."""
    torch.manual_seed(0)
    method, stream = made_for(lenet())
    made, rows = method.learner, rows_of(stream.tests[0], 20)
    theta = made.flat.theta.detach().clone()
    closed = torch.ones(method.units.count)
    closed[4 + 2] = 0  # the third channel of the second convolution
    cut = theta.clone()
    weight = made.flat.views(cut)["features.9.weight"]
    assert weight.shape == (10, 6)
    weight[:, 2] = 0
    torch.testing.assert_close(
        made.logits(theta * method.units.spread(closed), rows), made.logits(cut, rows)
    )


def test_used_weights_stay_and_free_ones_move() -> None:
    """Even by Adam, whose steps do not shrink with the gradient."""
    torch.manual_seed(0)
    method, stream = made_for(perceptron(), OPTIMIZERS["adam"])
    learned(method, stream, 0)
    before, held = method.shared.clone(), method.units.smaller(method.used) == 1
    learned(method, stream, 1)
    moved = method.shared != before
    assert held.any() and not moved[held].any()
    body = method.learner.flat.views(moved & ~held)
    assert all(body[f"features.{i}.weight"].any() for i in (1, 3))


def test_annealing() -> None:
    """From 1/s_max to s_max in each epoch of 30 images: four batches of 8, the last one of 6."""
    method, stream = made_for(perceptron())
    begun(method, stream, 0)
    found, scale = [], method._scale
    method._scale = lambda: found.append(float(scale())) or scale()
    for _ in range(2):
        for rows in stream.tasks[0].chunks(8):
            method.observe(rows)
    expected = [1 / S_MAX + (S_MAX - 1 / S_MAX) * b / 3 for b in range(4)]
    assert found == pytest.approx(expected * 2, rel=1e-6)
    begun(method, stream, 1)
    method.observe(rows_of(stream.tasks[1], 30))
    assert found[-1] == S_MAX, "an epoch of one batch"


def test_penalty_and_compensation() -> None:
    """Of gates alone, with a gradient of 0 in theta, at each s; used units have no price."""
    method, stream = made_for(perceptron().double())
    begun(method, stream, 0)
    method.used[:5] = 1
    method.begin_task(stream.tasks[0])
    made, count = method.learner, method.units.count
    e = torch.linspace(-6, 6, count, dtype=torch.float64)
    made.optimized.data[-count:] = e
    made.flat.grad.zero_()
    for s in (1 / S_MAX, 1.0, 7.0, 30.0, S_MAX):
        method._pull(torch.tensor(s, dtype=torch.float64), torch.ones_like(made.flat.grad))
        a = e.clone().requires_grad_()
        (1 / (1 + torch.exp(-s * a))).mul(1 - method.used).sum().mul(C / (count - 5)).backward()
        assert a.grad is not None
        expected = a.grad * compensation(e, s)
        near = (s * e).abs() < 30  # where 1 - a is exact
        torch.testing.assert_close(made.optimized.grad[-count:][near], expected[near])
        assert not made.optimized.grad[-count:][:5].any()
        if s == S_MAX:
            far = made.optimized.grad[-count:][(s * e).abs() > 200]
            assert (far.abs() < 1e-50).all(), "clipped"


def test_when_all_units_are_used_the_rest_is_the_head() -> None:
    method, stream = made_for(perceptron())
    method.used.fill_(1)
    method.shared = method.learner.flat.theta.detach().clone()
    learned(method, stream, 0)
    head = method.learner.heads.in_use(torch.zeros(6, dtype=torch.bool)) == 0
    moved = method.shared != made_for(perceptron())[0].learner.flat.theta
    assert method.shared.isfinite().all() and moved[head].any()


def test_embeddings_stay_within_their_limit() -> None:
    method, stream = made_for(perceptron(), partial(SGD, lr=1e3, momentum=0.0))
    method.observe(begun(method, stream, 0))
    assert method.learner.optimized[-method.units.count :].abs().max() == 6


def test_theta_is_the_network_of_the_present_task() -> None:
    """With binary gates, as after the task: tests within a task see it."""
    method, stream = made_for(perceptron())
    method.observe(begun(method, stream, 0))
    present = method.learner.flat.theta.detach().clone()
    method.end_task(stream.tasks[0])
    assert method.network(0).theta.equal(present) and method.network(1) is None


@pytest.mark.parametrize("kind", ["lenet", "strided"])
def test_a_run_comes_back_within_a_task(kind: str, tmp_path: Path) -> None:
    """With Adam's moments, dropout, and the draws of the augmentation; an early end of a task."""

    def on(rt: Any) -> Learner:
        transform = Transform([0.2], [0.5], 4, 1, True, None, 0.0, "anew", rt.device)
        net = lenet(dropout=[0.2, 0.2, 0.5]) if kind == "lenet" else strided()
        return learner(net, rt, OPTIMIZERS["adam"], transform=transform)

    options: dict[str, Any] = {"name": "hat", "scenario": "task", "learner": on}
    stopped_and_continued(tmp_path, [3, 7, 4], **options, schedule=scheduled(epochs=2))


LINEAR = partial(Linearized, head_mode="bilinear")
REFUSED: dict[str, Any] = {
    "model.linearize=true: .* use model.linearize=false": lambda: LINEAR(perceptron()),
    "model: .* ResNet18 is none; use model=mlp, pc_cnn, or": lambda: resnet(shape=(1, 4, 4)),
    "model.norm=batch: .* use model.norm=folded": lambda: ConvNet((1, 8, 8), 6, **SMALL),
    "model.activation=tanh: .* use relu or leaky_relu": lambda: perceptron(activation="tanh"),
    "model.activation=relu6: .* use relu or leaky_relu": lambda: perceptron(activation="relu6"),
    r"model.hidden=\[\]: .* one layer more": lambda: mlp(hidden=[]),
    "model.head_mode=head_only .* use model.head_mode=bilinear": lambda: fixed("features"),
    "or model.fixed: .* and model.fixed=null": lambda: fixed("convs", conv5()),
}


def fixed(part: str, net: nn.Module | None = None) -> nn.Module:
    net = net or perceptron()
    net.get_submodule(part).requires_grad_(False)
    return net


@pytest.mark.parametrize("message", REFUSED)
def test_networks_without_gates_are_refused(message: str) -> None:
    with pytest.raises(UserError, match=message):
        made_for(REFUSED[message]())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("scenario=class",), "scenario=class: HAT can be used with scenario=task"),
        (("optimizer.weight_decay=0.1",), "optimizer.weight_decay=0.1: the method has penalties"),
        (("schedule.clip=1.0",), "schedule.clip=1.0: the method makes steps of its own"),
        *(
            (
                (f"method={name}", "schedule.fresh_optimizer=false"),
                "trains new weights on each task",
            )
            for name in ("hat", "packnet", "independent", "apd", "halrp")
        ),
        (("method.s_max=0.5",), "method.s_max=0.5"),
    ],
)
def test_options_that_do_not_go_with_it(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(composed("method=hat", "dataset=seqmnist5k", *words))

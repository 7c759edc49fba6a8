"""Parameters as views of one vector: the same arithmetic as without, and views that stay whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICES, batch, learner, machine, mlp, resnet
from torch.func import functional_call

from cl_bench.core.flat import FlatParams
from cl_bench.core.optim import SGD
from cl_bench.models.resnet import ResNet18
from cl_bench.testing.contract import is_whole


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equals_plain_sgd(channels_last: bool, momentum: float) -> None:
    rt = machine(channels_last=channels_last)
    torch.manual_seed(1)
    plain = resnet()
    torch.manual_seed(1)
    made = learner(resnet(), rt, lambda p: SGD(p, lr=0.01, momentum=momentum))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=momentum)
    rows = batch(16, shape=(3, 16, 16))
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(plain(made.transform.view(rows.x)), rows.y).backward()
        optimizer.step()
        made.descend(rows)
    for mine, theirs in zip(made.net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-5)
    assert is_whole(made.flat, made.net)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_views_are_the_parameters(channels_last: bool, device: str) -> None:
    net = resnet().to(device)
    before = {k: p.detach().clone() for k, p in net.named_parameters()}
    flat = FlatParams(net, channels_last)
    for name, view in flat.views(flat.theta.data).items():
        torch.testing.assert_close(view, before[name], rtol=0, atol=0)
        assert view.data_ptr() == dict(net.named_parameters())[name].data_ptr()
    assert sum(part.stop - part.start for part in flat.slices.values()) == flat.theta.numel()
    conv = dict(net.named_parameters())["blocks.0.conv1.weight"]
    assert conv.is_contiguous(memory_format=torch.channels_last) or not channels_last


def test_load_state_dict_stays_in_place() -> None:
    made, other = learner(mlp()), mlp()
    made.net.load_state_dict(other.state_dict())
    assert is_whole(made.flat, made.net)
    flat = torch.cat([p.flatten() for p in other.parameters()])
    torch.testing.assert_close(made.flat.theta, flat, rtol=0, atol=0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_views_differentiate_twice(channels_last: bool) -> None:
    torch.manual_seed(0)
    net = ResNet18((3, 8, 8), 6, 4, "tanh", "torch", "same").double().eval()
    flat = FlatParams(net, channels_last)
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    theta = flat.theta.detach().clone().requires_grad_()

    def value(vector: torch.Tensor) -> torch.Tensor:
        return functional_call(net, flat.views(vector), (x,)).square().sum()

    (first,) = torch.autograd.grad(value(theta), theta, create_graph=True)
    direction = torch.randn_like(theta)
    (second,) = torch.autograd.grad(first @ direction, theta)
    step = 1e-5
    ahead, behind = theta.detach() + step * direction, theta.detach() - step * direction
    slope = (value(ahead) - value(behind)) / (2 * step)
    torch.testing.assert_close(first @ direction, slope, rtol=1e-4, atol=1e-6)
    assert second.isfinite().all() and second.abs().sum() > 0


def test_frozen_parameters_stay_out() -> None:
    net: Any = mlp()
    net.features[1].weight.requires_grad_(False)
    flat = FlatParams(net, False)
    assert "features.1.weight" not in flat.slices
    assert flat.theta.numel() == sum(p.numel() for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_channels_last_where_it_is_faster(device: str, precision: str) -> None:
    """auto: on a CPU, and in bf16; otherwise what was said."""
    made = machine(device, precision=precision, channels_last="auto")
    assert made.channels_last == (device == "cpu" or precision == "bf16")
    assert not machine(device, precision=precision).channels_last

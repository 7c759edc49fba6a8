"""Layers that are added to a network: low-rank changes (LoRA), and random features before the head.

lora             Hu et al. 2022, "LoRA: low-rank adaptation of large language models",
                 arXiv:2106.09685
random features  McDonnell et al. 2023, "RanPAC: random projections and pre-trained models for
                 continual learning", arXiv:2307.02251
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench.base.exceptions import UserError
from cl_bench.models.head import head_name, head_of
from cl_bench.models.layers import replace_module


class Added(nn.Module):
    """A network (`body`) to which layers were added.

    Its class differs from the network's own, so that the formulas for the gradients of `MLP` and
    others are not used for it.
    """

    def __init__(self, body: nn.Module, head: str) -> None:
        super().__init__()
        self.body = body
        self.head_name = f"body.{head}"

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return self.body(x)


class LowRank(nn.Module):
    """A linear layer W with a change of low rank: x -> W x + b + up down x.

    W (out, in) and b stay as they are; down (rank, in) and up (out, rank) are trained, and up is 0
    at first, so that the network starts as it was. The paper multiplies the change by alpha / rank;
    here the factor is 1.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        device, dtype = base.weight.device, base.weight.dtype
        self.down = nn.Linear(base.in_features, rank, False, device, dtype)
        self.up = nn.Linear(rank, base.out_features, False, device, dtype)
        nn.init.zeros_(self.up.weight)

    @property
    def weight(self) -> Tensor:
        """(out, in): the weight of the whole layer, for networks that read it."""
        return self.base.weight + self.up.weight @ self.down.weight

    @property
    def bias(self) -> Tensor | None:
        """(out,): the bias of the layer."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class RandomFeatures(nn.Module):
    """ReLU of a fixed random projection: (B, d) -> (B, count), with normal entries."""

    def __init__(self, size: int, count: int) -> None:
        super().__init__()
        self.register_buffer("projection", torch.randn(count, size))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.linear(x, self.get_buffer("projection")))


def with_lora(net: nn.Module, rank: int) -> nn.Module:
    """The network in which the head and a `LowRank` part of each other linear layer are trained.

    Raises UserError where it has no other linear layer, or one that is smaller than the rank.
    """
    head = head_of(net)
    linear = [n for n, m in net.named_modules() if isinstance(m, nn.Linear) and m is not head]
    if not linear:
        raise UserError(
            f"model.lora={rank}: changes linear layers before the head, and this network has none; "
            "use a vision transformer, mlp or conv5"
        )
    net.requires_grad_(False)
    head.requires_grad_(True)
    for name in linear:
        layer = net.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        if rank > min(layer.weight.shape):
            raise UserError(
                f"model.lora={rank}: the rank of a change of layer {name}, whose weight is "
                f"{layer.out_features} x {layer.in_features}, is at most {min(layer.weight.shape)}"
            )
        replace_module(net, name, LowRank(layer, rank))
    return Added(net, head_name(net))


def with_random_features(net: nn.Module, count: int) -> nn.Module:
    """The network with `count` random features in place of its own, and a new head on them.

    The new head is 0 where the old one is (model.head_init=zero), else as PyTorch initialises it.
    """
    name, old = head_name(net), head_of(net)
    device, dtype = old.weight.device, old.weight.dtype
    head = nn.Linear(count, old.out_features, old.bias is not None, device, dtype)
    if device.type != "meta" and not bool(old.weight.any()):
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
    with torch.device(device):
        features = RandomFeatures(old.in_features, count).to(dtype)
    parts = OrderedDict[str, nn.Module](random=features, head=head)
    replace_module(net, name, nn.Sequential(parts))
    return Added(net, f"{name}.head")

"""Batch norm merged into the convolutions before it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cl_bench.models.layers import put


@torch.no_grad()
def fold(net: nn.Module, x: Tensor) -> nn.Module:
    """In place: W' = gamma / sqrt(var + eps) W, b' = beta + (b - mean) gamma / sqrt(var + eps).

    `x` (B, C, H, W) is any input: one forward pass shows which convolution feeds which norm. The
    network computes what it computed in evaluation mode, and has no statistics any more.
    """
    pairs = _pairs(net, x)
    training = net.training
    net.eval()
    for conv, norm in pairs:
        convolution, scaled = net.get_submodule(conv), net.get_submodule(norm)
        assert isinstance(convolution, nn.Conv2d) and isinstance(scaled, nn.BatchNorm2d)
        fused = fuse_conv_bn_eval(convolution, scaled)
        put(net, conv, fused.requires_grad_())  # torch leaves a bias that is new untrained
        put(net, norm, nn.Identity())
    left = [n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert not left, f"no convolution feeds {left} alone"
    return net.train(training)


def _pairs(net: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """(convolution, batch norm): the norm's input is the very output of the convolution."""
    made: dict[int, str] = {}
    kept: list[Tensor] = []  # so that no address is used twice
    pairs: list[tuple[str, str]] = []

    def watch(name: str) -> Callable:
        def see(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            if isinstance(layer, nn.Conv2d):
                made[id(out)] = name
                kept.append(out)
            elif id(args[0]) in made:
                pairs.append((made[id(args[0])], name))

        return see

    kinds = nn.Conv2d | nn.BatchNorm2d
    hooks = [
        m.register_forward_hook(watch(n)) for n, m in net.named_modules() if isinstance(m, kinds)
    ]
    training = net.training
    net.eval()(x)
    net.train(training)
    for hook in hooks:
        hook.remove()
    return pairs

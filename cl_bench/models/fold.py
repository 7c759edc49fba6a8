"""Batch norm merged into the layers before it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from cl_bench.models.layers import put

FUSED: dict[type[nn.Module], Callable] = {
    nn.Conv2d: fuse_conv_bn_eval,
    nn.Linear: fuse_linear_bn_eval,
}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@torch.no_grad()
def fold(net: nn.Module, x: Tensor) -> nn.Module:
    """In place: W' = gamma / sqrt(var + eps) W, b' = beta + (b - mean) gamma / sqrt(var + eps).

    `x` (B, C, H, W) is any input: one forward pass shows which layer feeds which norm. The
    network computes what it computed in evaluation mode, and has no statistics any more.
    """
    pairs = _pairs(net, x)
    training = net.training
    net.eval()
    for conv, norm in pairs:
        before, scaled = net.get_submodule(conv), net.get_submodule(norm)
        fused = FUSED[type(before)](before, scaled)
        put(net, conv, fused.requires_grad_())  # torch leaves a bias that is new untrained
        put(net, norm, nn.Identity())
    left = [n for n, m in net.named_modules() if isinstance(m, NORMS)]
    assert not left, f"no layer feeds {left} alone"
    return net.train(training)


def _pairs(net: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """(layer, batch norm): the norm's input is the very output of the layer."""
    made: dict[int, str] = {}
    kept: list[Tensor] = []  # so that no address is used twice
    pairs: list[tuple[str, str]] = []

    def watch(name: str) -> Callable:
        def see(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            if type(layer) in FUSED:
                made[id(out)] = name
                kept.append(out)
            elif id(args[0]) in made:
                pairs.append((made[id(args[0])], name))

        return see

    kinds = (*FUSED, *NORMS)
    hooks = [
        m.register_forward_hook(watch(n)) for n, m in net.named_modules() if isinstance(m, kinds)
    ]
    training = net.training
    net.eval()(x)
    net.train(training)
    for hook in hooks:
        hook.remove()
    return pairs

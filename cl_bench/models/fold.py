"""Batch norm folded into the linear or convolutional layer before it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from cl_bench.models.layers import replace_module

FUSED: dict[type[nn.Module], Callable] = {
    nn.Conv2d: fuse_conv_bn_eval,
    nn.Linear: fuse_linear_bn_eval,
}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@torch.no_grad()
def fold(net: nn.Module, x: Tensor) -> nn.Module:
    """Replace each batch norm by the identity, its scale and shift moved into the layer before it.

    W' = gamma / sqrt(var + eps) W and b' = beta + (b - mean) gamma / sqrt(var + eps), in place. The
    network computes what it computed in evaluation mode, and has no running statistics any more.
    `x` (B, C, H, W) is any input: one forward pass shows which layer feeds which batch norm.
    """
    pairs = _pairs(net, x)
    training = net.training
    net.eval()
    for conv, norm in pairs:
        before, scaled = net.get_submodule(conv), net.get_submodule(norm)
        fused = FUSED[type(before)](before, scaled)
        replace_module(net, conv, fused.requires_grad_())  # PyTorch freezes a bias that it adds
        replace_module(net, norm, nn.Identity())
    left = [n for n, m in net.named_modules() if isinstance(m, NORMS)]
    assert not left, f"no layer feeds {left} alone"
    return net.train(training)


@torch.no_grad()
def fold_in_place(net: nn.Module, x: Tensor) -> None:
    """Move each batch norm's scale and shift into the layer before it and into its own bias.

    W <- gamma / sqrt(var + eps) W, beta <- beta - mean gamma / sqrt(var + eps), and of the batch
    norm itself mean 0, variance 1 and a gamma with which it adds its bias alone. All parameters
    keep their places, and in evaluation mode the network computes what it did.
    """
    pairs = _pairs(net, x)
    for layer, norm in ((net.get_submodule(a), net.get_submodule(b)) for a, b in pairs):
        assert isinstance(norm, NORMS) and isinstance(layer, nn.Conv2d | nn.Linear)
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        norm.bias.sub_(norm.running_mean * scale)
        layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        if layer.bias is not None:
            layer.bias.mul_(scale)
        norm.running_mean.zero_()
        norm.running_var.fill_(1)
        norm.weight.fill_((1 + norm.eps) ** 0.5)
    folded = {norm for _, norm in pairs}
    left = [n for n, m in net.named_modules() if isinstance(m, NORMS) and n not in folded]
    assert not left, f"no layer feeds {left} alone"


def _pairs(net: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Names (layer, batch norm) where the input of the batch norm is the output of the layer."""
    producers: dict[int, str] = {}  # the layer that made a tensor, by the tensor's id
    kept: list[Tensor] = []  # keeps tensors alive, so that no id is used twice
    pairs: list[tuple[str, str]] = []

    def hook_for(name: str) -> Callable:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            if type(layer) in FUSED:
                producers[id(out)] = name
                kept.append(out)
            elif id(args[0]) in producers:
                pairs.append((producers[id(args[0])], name))

        return hook

    kinds = (*FUSED, *NORMS)
    hooks = [
        m.register_forward_hook(hook_for(n)) for n, m in net.named_modules() if isinstance(m, kinds)
    ]
    training = net.training
    net.eval()(x)
    net.train(training)
    for hook in hooks:
        hook.remove()
    return pairs

"""Per-layer inputs and output gradients of one batch, and the squared per-sample gradients.

For a layer with input a and output gradient s, a sample's weight gradient is s a' (summed over
places in a convolution): products of what one forward and one backward pass have already seen.
Samples must not see each other: evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Site:
    """One use of a layer in a forward pass."""

    name: str
    layer: nn.Module
    input: Tensor
    output: Tensor


@contextmanager
def captured(net: nn.Module) -> Iterator[list[Site]]:
    """The layers with parameters that a forward pass inside goes through, in its order."""
    sites: list[Site] = []

    def watch(name: str) -> Callable:
        return lambda layer, args, out: sites.append(Site(name, layer, args[0].detach(), out))

    layers = [(name, m) for name, m in net.named_modules() if m._parameters]
    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers]
    try:
        yield sites
    finally:
        for hook in hooks:
            hook.remove()


def covers(net: nn.Module) -> bool:
    """Whether every layer with parameters is of a kind in `SQUARES`."""
    layers = [module for module in net.modules() if module._parameters]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    zeros = all(c.groups == 1 and c.padding_mode == "zeros" for c in convolutions)
    numbers = all(isinstance(c.padding, tuple) for c in convolutions)
    return zeros and numbers and all(type(layer) in SQUARES for layer in layers)


def squared_gradients(sites: list[Site], losses: Tensor) -> Iterator[tuple[str, Tensor]]:
    """For each parameter its name and the sum over samples of its squared gradient."""
    gradients = torch.autograd.grad(losses.sum(), [site.output for site in sites])
    for site, s in zip(sites, gradients, strict=True):
        squares = SQUARES[type(site.layer)](site.layer, site.input, s)
        for (name, parameter), square in zip(site.layer.named_parameters(), squares, strict=True):
            yield f"{site.name}.{name}", square.view_as(parameter)


def _linear(layer: nn.Linear, a: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    """sum_b (s_b a_b')^2 = (s^2)' (a^2): no per-sample matrix is built."""
    weight = s.square().T @ a.square()
    return (weight,) if layer.bias is None else (weight, s.square().sum(0))


def _conv(layer: nn.Conv2d, a: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    """Sum over places first, then the square; one place of the kernel at a time: no patches."""
    assert isinstance(layer.padding, tuple)
    (high, wide), (down, right) = layer.padding, layer.stride
    a, flat = F.pad(a, (wide, wide, high, high)), s.flatten(2)
    squares = []
    for i, j in product(*map(range, layer.kernel_size)):
        top, left = i * layer.dilation[0], j * layer.dilation[1]
        rows = slice(top, top + down * (s.shape[2] - 1) + 1, down)
        columns = slice(left, left + right * (s.shape[3] - 1) + 1, right)
        seen = a[:, :, rows, columns].flatten(2)
        squares.append((flat @ seen.transpose(1, 2)).square().sum(0))
    weight = torch.stack(squares, -1)
    return (weight,) if layer.bias is None else (weight, s.sum((2, 3)).square().sum(0))


def _norm(layer: nn.BatchNorm2d, a: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    """The running statistics are constants."""
    assert layer.running_mean is not None and layer.running_var is not None
    centred = a - layer.running_mean.view(-1, 1, 1)
    scaled = centred * (layer.running_var + layer.eps).rsqrt().view(-1, 1, 1)
    return (s * scaled).sum((2, 3)).square().sum(0), s.sum((2, 3)).square().sum(0)


SQUARES: dict[type[nn.Module], Callable[..., tuple[Tensor, ...]]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _norm,
}

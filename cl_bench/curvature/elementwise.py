"""Per-sample gradients of a layer, and sums over samples of a function of each of their entries.

Shapes: B samples, R roots, L places of a convolution, g groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench.curvature.capture import FLOATS, PATCHES, Site


def elementwise(
    site: Site, s: Tensor, power: Callable[..., Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """For each parameter, the sum over roots and samples of power(gradient).

    power is torch.square or torch.abs: it takes `out`, and power(x y) = power(x) power(y).
    """
    if site.parameter is not None:
        name = site.parameter
        yield site.key(name), power(s).sum((0, 1)).view_as(site.layer.get_parameter(name))
        return
    found = ELEMENTWISE[type(site.layer)](site.layer, site.input, s, power)
    for (name, parameter), value in zip(site.layer.named_parameters(), found, strict=True):
        yield site.key(name), value.view_as(parameter)


def kernel_gradients(layer: nn.Conv2d, a: Tensor, s: Tensor) -> Iterator[Tensor]:
    """The per-sample gradients (R, B, out, in / g) of the weights at each place of the kernel.

    a (B, in, H, W) is the layer's input, s (R, B, out, H', W') the gradient at its output.
    """
    assert isinstance(layer.padding, tuple)
    (high, wide), (down, right), g = layer.padding, layer.stride, layer.groups
    a, flat = F.pad(a, (wide, wide, high, high)), s.flatten(3)
    for i, j in product(*map(range, layer.kernel_size)):
        top, left = i * layer.dilation[0], j * layer.dilation[1]
        rows = slice(top, top + down * (s.shape[3] - 1) + 1, down)
        columns = slice(left, left + right * (s.shape[4] - 1) + 1, right)
        seen = a[:, :, rows, columns].flatten(2)
        if g == 1:
            yield flat @ seen.transpose(1, 2)
        elif g == layer.in_channels == layer.out_channels:
            yield (flat * seen).sum(-1, keepdim=True)
        else:
            yield (flat.unflatten(2, (g, -1)) @ seen.unflatten(1, (g, -1)).mT).flatten(2, 3)


def windows(layer: nn.Conv2d, a: Tensor) -> Tensor:
    """(B, C, H, W) -> (C, kernel height, kernel width, B, H', W'), the inputs of each place."""
    assert isinstance(layer.padding, tuple)
    (high, wide), spans = layer.padding, zip(layer.kernel_size, layer.dilation, strict=True)
    seen = F.pad(a, (wide, wide, high, high)).transpose(0, 1)
    for dim, ((kernel, dilation), stride) in enumerate(zip(spans, layer.stride, strict=True), 2):
        seen = seen.unfold(dim, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    return seen.permute(0, 4, 5, 1, 2, 3)


def _linear(layer: nn.Linear, a: Tensor, s: Tensor, power: Callable) -> tuple[Tensor, ...]:
    """sum_b power(s_b a_b') = power(s)' power(a): no per-sample matrix is built.

    With tokens, s (R, B, out, L) and a (B, in, L), there is no such formula.
    """
    if s.dim() > 3:
        return _of_tokens(layer, a, s, power)
    by_sample = power(s).sum(0)
    weight = by_sample.T @ power(a)
    return (weight,) if layer.bias is None else (weight, by_sample.sum(0))


def _of_tokens(layer: nn.Linear, a: Tensor, s: Tensor, power: Callable) -> tuple[Tensor, ...]:
    """sum_b power(sum_l s_bl a_bl'), of as many samples at once as fit."""
    weight = torch.zeros_like(layer.weight)
    size = max(1, FLOATS // (len(s) * weight.numel()))
    for inputs, outputs in zip(a.split(size), s.split(size, 1), strict=True):
        weight.add_(power(outputs @ inputs.mT).sum((0, 1)))
    return (weight,) if layer.bias is None else (weight, power(s.sum(-1)).sum((0, 1)))


def _layer_norm(layer: nn.LayerNorm, a: Tensor, s: Tensor, power: Callable) -> tuple[Tensor, ...]:
    """a (B, ..., d) and s (R, B, ..., d), summed over the places in between."""
    places = tuple(range(2, s.dim() - len(layer.normalized_shape)))
    scaled = F.layer_norm(a, layer.normalized_shape, None, None, layer.eps)
    slopes = (s * scaled, s) if layer.bias is not None else (s * scaled,)
    return tuple(power(v.sum(places) if places else v).sum((0, 1)) for v in slopes)


def _conv(layer: nn.Conv2d, a: Tensor, s: Tensor, power: Callable) -> tuple[Tensor, ...]:
    """Sum over places, then take the power, for a part of the kernel at a time."""
    if layer.groups == 1:
        weight = _of_rows(layer, a, s, power)
    else:
        powers = [power(gradient).sum((0, 1)) for gradient in kernel_gradients(layer, a, s)]
        weight = torch.stack(powers, -1)
    return (weight,) if layer.bias is None else (weight, power(s.flatten(3).sum(3)).sum((0, 1)))


def _of_rows(layer: nn.Conv2d, a: Tensor, s: Tensor, power: Callable) -> Tensor:
    """(out, in, kernel height, kernel width): the sum over roots and samples, row by row.

    For each place of a row of the kernel, the input is copied once; the rows of the kernel see the
    same copies, moved. So a matrix product makes the gradients of a whole row.
    """
    assert isinstance(layer.padding, tuple)
    (high, wide), (down, right), (rows, columns) = layer.padding, layer.stride, layer.kernel_size
    height, width = s.shape[3:]
    copied = layer.in_channels * columns * (a.shape[2] + 2 * high) * width  # floats of a sample
    floats = max(copied, len(s) * layer.out_channels * layer.in_channels * columns)
    part = min(len(a), max(1, PATCHES.get(a.device.type, FLOATS) // floats))
    total = a.new_zeros(layer.out_channels, rows, columns * layer.in_channels)
    # the gradients (B, R out, kernel width x in) of a part; memory that is used again costs less
    room = a.new_empty(part, len(s) * layer.out_channels, total.shape[2])
    for inputs, slopes in zip(a.split(part), s.split(part, 1), strict=True):
        padded = F.pad(inputs.movedim(1, -1), (0, 0, wide, wide, high, high))
        starts = range(0, columns * layer.dilation[1], layer.dilation[1])
        span = right * (width - 1) + 1
        beside = torch.cat([padded[:, :, at : at + span : right] for at in starts], -1)
        flat = slopes.flatten(3).transpose(0, 1).flatten(1, 2)  # (B, R out, L)
        for row in range(rows):
            top = row * layer.dilation[0]
            seen = beside[:, top : top + down * (height - 1) + 1 : down].flatten(1, 2)
            gradients = torch.bmm(flat, seen, out=room[: len(flat)])
            powers = power(gradients, out=gradients).unflatten(1, (len(s), -1))
            total[:, row].add_(powers.sum((0, 1)))
    return total.unflatten(2, (columns, -1)).movedim(3, 1)


def _norm(
    layer: nn.BatchNorm1d | nn.BatchNorm2d, a: Tensor, s: Tensor, power: Callable
) -> tuple[Tensor, ...]:
    """The statistics are the running ones, taken as constants."""
    assert layer.running_mean is not None and layer.running_var is not None
    a, s = a.reshape(*a.shape[:2], -1), s.reshape(*s.shape[:3], -1)  # (B, C, L) and (R, B, C, L)
    part = max(1, PATCHES.get(a.device.type, FLOATS) // s[:, 0].numel())
    pairs = zip(a.split(part), s.split(part, 1), strict=True)
    centred = [(slopes * (x - layer.running_mean[:, None])).sum(3) for x, slopes in pairs]
    weight = torch.cat(centred, 1) * (layer.running_var + layer.eps).rsqrt()
    scaled = power(weight).sum((0, 1))
    return (scaled,) if layer.bias is None else (scaled, power(s.sum(3)).sum((0, 1)))


ELEMENTWISE: dict[type[nn.Module], Callable[..., tuple[Tensor, ...]]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.LayerNorm: _layer_norm,
}

"""Records the input of each layer and the gradients at its output, of which curvatures are made.

For a layer with input a and output gradient s, the weight gradient of a sample is s a' (in a
convolution, summed over places). One forward pass and one backward pass for each root of the output
Hessian therefore give all that is needed. The network is in evaluation mode, in which samples do
not interact through batch norm. In a linearized network, a is the input in the fixed network and s
the gradient at the output of the layer's tangent; there s a' is the gradient as well.

A linear layer that is applied to each token of a sequence is one with as many places as there are
tokens: its input (B, T, in) and gradient (.., T, out) are turned to (B, in, T) and (.., out, T).
A parameter of a module that is neither linear nor a normalisation, such as a class token (1, 1, d),
is given to each sample as a copy of its own, if its first dimension is 1: then the gradient at the
copy is that of the sample.

Shapes: B samples, R roots, L places of a convolution or tokens, d = inputs of a unit (channels x
kernel).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from cl_bench.base.exceptions import UserError

SERVED = (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
# the name of an attribute, set on a network that changes what its layers wrote in place
IN_PLACE = "_changes_outputs_in_place"
FLOATS = 2**25  # of intermediate results held at once: 128 MiB of float32
PATCHES = {"cpu": 2**20}  # floats of what a layer makes of a part at once: 4 MiB stay in the cache


@dataclass
class Site:
    """A layer with parameters, in one forward pass: its input and output.

    With `parameter` it is the parameter of this name of a module, whose copies (B, ...) for each
    sample are the output.
    """

    name: str
    layer: nn.Module
    input: Tensor  # (B, ...)
    output: Tensor  # (B, ...), in the graph
    versions: tuple[int, int]  # of input and output, to notice a write in place
    parameter: str | None = None

    def key(self, parameter: str) -> str:
        """The parameter's name in the network."""
        return f"{self.name}.{parameter}" if self.name else parameter

    @property
    def tokens(self) -> bool:
        """Whether this is a linear layer that is applied to each token of a sequence."""
        return isinstance(self.layer, nn.Linear) and self.output.dim() > 2

    @property
    def places(self) -> int:
        """L: the places of a convolution, the tokens of a linear layer, or 1."""
        if isinstance(self.layer, nn.Linear):
            return self.input[0, 0].numel()
        return self.output[0, 0].numel()

    def turned(self, s: Tensor) -> Tensor:
        """Gradients (R, B, ...) at the output, with tokens as places: (R, B, out, T)."""
        return s.flatten(2, -2).mT if self.tokens else s


@contextmanager
def captured(net: nn.Module) -> Iterator[list[Site]]:
    """Record the layers with parameters that forward passes inside the block use, in order."""
    sites: list[Site] = []
    copied = getattr(net, IN_PLACE, False)

    def watch(name: str) -> Callable:
        def keep(
            layer: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], out: Tensor
        ) -> Tensor | None:
            a = forward_ad.unpack_dual(_first(args, named)).primal.detach()
            moved = forward_ad.unpack_dual(out).tangent  # of a linearized network
            kept = out if moved is None else moved
            if isinstance(layer, nn.Linear) and a.dim() > 2:
                a = a.flatten(1, -2).mT
            sites.append(Site(name, layer, a, kept, (a._version, kept._version)))
            return out.clone() if copied else None

        return keep

    with ExitStack() as stack:
        for name, layer in layers(net):
            if type(layer) in SERVED:
                hook = layer.register_forward_hook(watch(name), with_kwargs=True)
                stack.callback(hook.remove)
                if _has_fixed_statistics(layer):
                    stack.enter_context(_as_scaling(layer))
            else:
                stack.enter_context(_copied_parameters(name, layer, sites))
        yield sites
    _once(sites)


def _has_fixed_statistics(layer: nn.Module) -> TypeGuard[nn.BatchNorm1d | nn.BatchNorm2d]:
    """Whether it is batch norm, in evaluation mode, with a weight and a bias."""
    if not isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) or layer.training:
        return False
    parts = layer.weight, layer.bias, layer.running_mean, layer.running_var
    return all(part is not None for part in parts)


@contextmanager
def _as_scaling(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> Iterator[None]:
    """Inside the block, compute batch norm with fixed statistics as scale * x + shift.

    PyTorch's own backward pass sums over the batch, for gradients that are not needed here, and
    takes several times as long. Afterwards the layer has the `forward` that it had before, which
    may be one of its own (`accept_single_samples`, `parallel.prepare`).
    """

    def forward(input: Tensor) -> Tensor:
        assert layer.running_mean is not None and layer.running_var is not None
        scale = layer.weight * (layer.running_var + layer.eps).rsqrt()
        shift = layer.bias - layer.running_mean * scale
        shape = -1, *[1] * (input.dim() - 2)
        return torch.addcmul(shift.view(shape), input, scale.view(shape))

    own = vars(layer).get("forward")
    layer.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del layer.forward
        if own is not None:
            layer.forward = own


@contextmanager
def _copied_parameters(name: str, module: nn.Module, sites: list[Site]) -> Iterator[None]:
    """Give each sample a copy of a module's own parameters, whose gradients are recorded."""
    names = [key for key, value in module.named_parameters(recurse=False) if _trained(value)]
    own: dict[str, nn.Parameter | None] = {}

    def before(module: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        x = _first(args, named)
        own.update({key: module._parameters[key] for key in names})
        for key, value in own.items():
            assert value is not None
            copies = value.expand(len(x), *value.shape[1:])
            moved = forward_ad.unpack_dual(copies).tangent  # of a linearized network
            kept = copies if moved is None else moved
            sites.append(Site(name, module, x.detach(), kept, (0, 0), key))
            module._parameters[key] = copies  # type: ignore[assignment]

    def after(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        module._parameters.update(own)

    hooks = (
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _first(args: tuple[Tensor, ...], named: dict[str, Tensor]) -> Tensor:
    """The first argument of a layer, which may be given by its name."""
    return args[0] if args else next(iter(named.values()))


def layers(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules with trained parameters of their own."""
    return [(name, m) for name, m in net.named_modules() if any(map(_trained, m.parameters(False)))]


def _trained(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad


def _once(sites: list[Site]) -> None:
    names = [(site.name, site.parameter) for site in sites]
    for site in sites:
        if names.count((site.name, site.parameter)) > 1:
            raise UserError(
                f"curvature: layer {site.name} is used twice in one forward pass; use "
                "curvature=diag_fisher"
            )
        versions = site.input._version, site.output._version
        if site.parameter is None and versions != site.versions:
            raise UserError(
                f"curvature: what layer {site.name} read or wrote is changed in place; "
                "use activations and sums that are not in place, or curvature=diag_fisher"
            )


def coupled(net: nn.Module) -> str | None:
    """Name a layer in which samples interact even in evaluation mode; None: there is none."""
    for name, layer in net.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
            return name
    return None


def unserved(net: nn.Module) -> str | None:
    """Name a layer of a class that has no formula here; None where all have one."""
    for name, layer in layers(net):
        name = f"layer {name}" if name else "the network"
        uncopied = _without_copies(layer)
        if type(layer) not in SERVED and uncopied:
            key, shape = uncopied[0]
            return (
                f"{name}: {type(layer).__name__} is none of "
                f"{', '.join(k.__name__ for k in SERVED)}, and its parameter {key} has the shape "
                f"{shape}; each sample can get a copy only of parameters of two or more "
                "dimensions, the first one of size 1, such as (1, 16, 1, 1)"
            )
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            return f"{name}: a convolution padded by {layer.padding_mode}"
        if isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, tuple):
            return f"{name}: a convolution with padding={layer.padding}"
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_mean is None:
            return f"{name}: batch norm without running statistics"
    return None


def _without_copies(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """The module's own parameters of which no sample can have a copy, with their shapes."""
    own = [(key, p) for key, p in module.named_parameters(recurse=False) if _trained(p)]
    return [(key, tuple(p.shape)) for key, p in own if p.dim() < 2 or p.shape[0] != 1]

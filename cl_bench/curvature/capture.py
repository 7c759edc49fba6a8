"""Records the input of each layer and the gradients at its output, of which curvatures are made.

For a layer with input a and output gradient s, the weight gradient of a sample is s a' (in a
convolution, summed over places). One forward pass and one backward pass for each root of the output
Hessian therefore give all that is needed. The network is in evaluation mode, in which samples do
not interact through batch norm. In a linearized network, a is the input in the fixed network and s
the gradient at the output of the layer's tangent; there s a' is the gradient as well.

Shapes: B samples, R roots, L places of a convolution, d = inputs of a unit (channels x kernel).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.autograd import forward_ad

from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Task

Labels = Literal["exact", "sampled", "empirical"]
RootFn = Callable[[Learner, Batch, Tensor], Tensor]  # (., ., logits (B, K)) -> (R, B, K)

SERVED = (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)
FLOATS = 2**25  # of intermediate results held at once: 128 MiB of float32
CHUNK = 512  # samples at once
IMAGES = {"cpu": 32, "cuda": 256}  # through convolutions: on a CPU what they see stays in the cache
PIXELS = 64 * 64  # of an image; of larger ones fewer are taken at once


@dataclass
class Site:
    """A layer with parameters, in one forward pass: its input and output."""

    name: str
    layer: nn.Module
    input: Tensor  # (B, ...)
    output: Tensor  # (B, ...), in the graph
    versions: tuple[int, int]  # of input and output, to notice a write in place

    def key(self, parameter: str) -> str:
        """The parameter's name in the network."""
        return f"{self.name}.{parameter}" if self.name else parameter


@contextmanager
def captured(net: nn.Module) -> Iterator[list[Site]]:
    """Record the layers with parameters that forward passes inside the block use, in order."""
    sites: list[Site] = []

    def watch(name: str) -> Callable:
        def keep(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            a = forward_ad.unpack_dual(args[0]).primal.detach()
            moved = forward_ad.unpack_dual(out).tangent  # of a linearized network
            out = out if moved is None else moved
            sites.append(Site(name, layer, a, out, (a._version, out._version)))

        return keep

    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers(net)]
    try:
        yield sites
    finally:
        for hook in hooks:
            hook.remove()
    _once(sites)


def layers(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules with trained parameters of their own."""
    return [(name, m) for name, m in net.named_modules() if any(map(_trained, m.parameters(False)))]


def _trained(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad


def _once(sites: list[Site]) -> None:
    names = [site.name for site in sites]
    for site in sites:
        if names.count(site.name) > 1:
            raise UserError(f"curvature: layer {site.name} is used twice in one forward pass")
        if (site.input._version, site.output._version) != site.versions:
            raise UserError(
                f"curvature: what layer {site.name} read or wrote is changed in place; "
                "use activations and sums that are not in place"
            )


def check_hooks(learner: Learner, task: Task) -> None:
    """Raise UserError where hooks cannot record the layers; tried on one sample."""
    with learner.evaluating(full_precision=True), captured(learner.net), torch.no_grad():
        learner.logits(learner.flat.theta, next(task.chunks(1)))


def coupled(net: nn.Module) -> str | None:
    """Name a layer in which samples interact even in evaluation mode; None: there is none."""
    for name, layer in net.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
            return name
    return None


def unserved(net: nn.Module) -> str | None:
    """Name a layer of a class that has no formula here; None where all have one."""
    for name, layer in layers(net):
        if type(layer) not in SERVED:
            return (
                f"{name}: {type(layer).__name__} is none of {', '.join(k.__name__ for k in SERVED)}"
            )
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            return f"{name}: a convolution padded by {layer.padding_mode}"
        if isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, tuple):
            return f"{name}: a convolution with padding={layer.padding}"
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_mean is None:
            return f"{name}: batch norm without running statistics"
    return None


def chunk(learner: Learner, task: Task) -> int:
    """The number of samples in one pass; the result does not depend on it, up to rounding."""
    if not any(isinstance(layer, nn.Conv2d) for _, layer in layers(learner.net)):
        return CHUNK
    images = IMAGES.get(learner.flat.theta.device.type, 32)
    pixels = learner.transform.view(task.x[:1])[0, 0].numel()
    return max(1, images * PIXELS // max(pixels, PIXELS))


def streamed(
    learner: Learner, task: Task, roots: RootFn, at_head: RootFn | None = None
) -> Iterator[tuple[list[Site], Iterator[list[Tensor]]]]:
    """For each part of the task: its sites, and the gradients at them for groups of roots.

    A gradient is (R, B, ...) for the R roots of its group, in the order of the sites. At the head
    these are the roots themselves; `at_head` replaces them, all with the first group.
    """
    with learner.evaluating(full_precision=True):
        for batch in task.chunks(chunk(learner, task)):
            with captured(learner.net) as sites:
                logits = learner.logits(learner.flat.theta, batch)
            seeds = roots(learner, batch, logits.detach())
            learner.sample_gradients += len(seeds) * len(batch.y)
            groups = _backward(sites, logits, seeds)
            if at_head is not None:
                own = at_head(learner, batch, logits.detach())
                groups = _replaced(groups, [s.layer is learner.net.head for s in sites], own)
            yield sites, groups


def visits(
    learner: Learner, task: Task, roots: RootFn, at_head: RootFn | None = None
) -> Iterator[tuple[Site, Tensor]]:
    """Yield each site of each part with the gradient (R, B, ...) of each group of roots."""
    for sites, gradients in streamed(learner, task, roots, at_head):
        for group in gradients:
            yield from zip(sites, group, strict=True)


def _backward(sites: list[Site], logits: Tensor, roots: Tensor) -> Iterator[list[Tensor]]:
    """Make one backward pass for as many roots as fit into memory."""
    outputs = [site.output for site in sites]
    size = max(1, FLOATS // sum(out.numel() for out in outputs))
    for group in roots.split(size) if len(roots) else ():
        kept = {"retain_graph": True, "is_grads_batched": len(group) > 1}
        seed = group if len(group) > 1 else group[0]
        found = torch.autograd.grad(logits, outputs, seed, **kept)
        yield [s if len(group) > 1 else s.unsqueeze(0) for s in found]


def _replaced(
    groups: Iterator[list[Tensor]], heads: list[bool], own: Tensor
) -> Iterator[list[Tensor]]:
    for group in groups:
        yield [own if is_head else s for is_head, s in zip(heads, group, strict=True)]
        own = own[:0]


def output_hessian_factor(labels: Labels, rng: Generator) -> RootFn:
    """The roots of the output Hessian: exact, sampled (by `rng`), or the true label's gradient."""

    def hessian(learner: Learner, batch: Batch, logits: Tensor) -> Tensor:
        drawn = rng if labels == "sampled" else None
        found = output_roots(learner, batch, logits, drawn)
        return found[found.flatten(1).any(1)]  # without classes that no sample's task has

    return gradient if labels == "empirical" else hessian


def output_roots(learner: Learner, batch: Batch, logits: Tensor, rng: Generator | None) -> Tensor:
    """(R, B, K): vectors whose outer products sum to the criterion's Hessian in the logits.

    It is taken over the classes that compete now; for the squared loss, also over those that will.
    """
    found = learner.criterion.hessian_root(logits, learner.heads.competing(batch), rng)
    ever = learner.heads.reachable(batch)
    return found if ever is None else found * ever


def gradient(learner: Learner, batch: Batch, logits: Tensor) -> Tensor:
    """(1, B, K): the gradient of each sample's loss at its true label."""
    return learner.criterion.losses_and_gradients(logits, batch.y, learner.heads.competing(batch))[
        1
    ].unsqueeze(0)

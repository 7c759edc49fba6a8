"""Passes over a task: for each part its sites, and the gradients at them for the roots.

Shapes: B samples, R roots.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Task
from cl_bench.curvature.capture import FLOATS, Site, captured, layers
from cl_bench.curvature.roots import RootFn

CHUNK = 512  # samples at once
IMAGES = {"cpu": 64, "cuda": 256}  # through convolutions: on a CPU what they see stays in the cache
TIMES = {"cuda": 8}  # so many times FLOATS fit into a backward pass: 1 GiB of float32
PIXELS = 64 * 64  # of an image; of larger ones fewer are taken at once


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
    these are the roots themselves; `at_head` replaces them, all with the first group. Of several
    processes, each has its own parts.
    """
    with learner.evaluating(full_precision=True):
        for batch in own_parts(learner, task, roots, at_head):
            with captured(learner.net) as sites:
                logits = learner.logits(learner.flat.theta, batch)
            seeds = roots(learner, batch, logits.detach())
            learner.sample_gradients += len(seeds) * len(batch.y)
            groups = gradients_at(sites, logits, seeds)
            if at_head is not None:
                own = at_head(learner, batch, logits.detach())
                groups = _replaced(groups, [s.layer is learner.head for s in sites], own)
            yield sites, groups


def own_parts(
    learner: Learner, task: Task, roots: RootFn, at_head: RootFn | None = None
) -> Iterator[Batch]:
    """The parts of a task: of several processes, those of this one.

    Of the others it draws and counts what the process that has them draws and counts.
    """
    for batch, own in learner.machine.processes.chunks(task, chunk(learner, task)):
        if own:
            yield batch
            continue
        zeros = learner.flat.grad.new_zeros(len(batch.y), learner.heads.live.shape[1])
        learner.sample_gradients += len(roots(learner, batch, zeros)) * len(batch.y)
        if at_head is not None:
            at_head(learner, batch, zeros)


def visits(
    learner: Learner, task: Task, roots: RootFn, at_head: RootFn | None = None
) -> Iterator[tuple[Site, Tensor]]:
    """Yield each site of each part with the gradient (R, B, ...) of each group of roots."""
    for sites, gradients in streamed(learner, task, roots, at_head):
        for group in gradients:
            yield from zip(sites, group, strict=True)


def gradients_at(sites: list[Site], logits: Tensor, roots: Tensor) -> Iterator[list[Tensor]]:
    """The gradients (R, B, ...) at the sites, by a backward pass for as many roots as fit."""
    outputs = [site.output for site in sites]
    fitting = FLOATS * TIMES.get(logits.device.type, 1)
    size = max(1, fitting // sum(out.numel() for out in outputs))
    for group in roots.split(size) if len(roots) else ():
        kept = {"retain_graph": True, "is_grads_batched": len(group) > 1}
        seed = group if len(group) > 1 else group[0]
        found = torch.autograd.grad(logits, outputs, seed, **kept)
        rooted = (s if len(group) > 1 else s.unsqueeze(0) for s in found)
        yield [site.turned(s) for site, s in zip(sites, rooted, strict=True)]


def _replaced(
    groups: Iterator[list[Tensor]], heads: list[bool], own: Tensor
) -> Iterator[list[Tensor]]:
    for group in groups:
        yield [own if is_head else s for is_head, s in zip(heads, group, strict=True)]
        own = own[:0]

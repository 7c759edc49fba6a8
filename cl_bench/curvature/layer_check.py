"""Checks that the gradients recorded at a network's layers are those of its parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_bench.base.exceptions import UserError, one_line
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Task
from cl_bench.curvature.backward import gradients_at
from cl_bench.curvature.capture import IN_PLACE, SERVED, Site, captured, layers
from cl_bench.curvature.elementwise import elementwise

CLOSE = 0.01  # of a parameter's largest squared gradient
ROUNDING = 1e-6  # of the largest squared gradient of all parameters
CHECKED = "_curvature_layers"  # the name of an attribute, set on a network that passed the check


def check_layers(learner: Learner, task: Task) -> None:
    """Raise UserError where the gradients recorded at the layers are not those of the parameters.

    A network is checked once: two samples pass through it together, and then one by one, and the
    squared gradients of one direction of the logits are compared. Where a network changes in place
    what a layer wrote, `capture` lets its layers hand on copies from now on.
    """
    modules = [(name, type(layer)) for name, layer in layers(learner.net)]
    if getattr(learner.net, CHECKED, None) != modules:
        _check_on(learner, next(task.chunks(2)))
        setattr(learner.net, CHECKED, modules)


def _check_on(learner: Learner, batch: Batch) -> None:
    """`check_layers`, on these samples."""
    with learner.evaluating(full_precision=True):
        with torch.no_grad():
            plain = learner.logits(learner.flat.theta, batch)
        sites, logits = _record(learner, batch)
        if not torch.allclose(plain, logits, rtol=1e-4, atol=1e-5):
            raise UserError(
                "curvature: a parameter of the network cannot be given to each sample as a copy; "
                "use linear layers, convolutions and normalisations, or curvature=diag_fisher"
            )
        seed = torch.arange(logits.shape[1], device=logits.device).cos().to(logits.dtype)
        found = torch.zeros_like(learner.flat.grad)
        views = learner.flat.views(found)
        for group in gradients_at(sites, logits, seed.expand(1, *logits.shape)):
            for site, s in zip(sites, group, strict=True):
                for name, value in elementwise(site, s, torch.square):
                    views[name].add_(value)
        expected = _squares_of_each(learner, batch, seed)
    if expected is not None:
        recorded = {site.name for site in sites}
        _compare(learner, found, expected, recorded)


def _record(learner: Learner, batch: Batch) -> tuple[list[Site], Tensor]:
    """The sites of a forward pass, and its logits."""
    for again in (False, True):
        try:
            with captured(learner.net) as sites:
                logits = learner.logits(learner.flat.theta, batch)
            break
        except UserError:
            if again:
                raise
            setattr(learner.net, IN_PLACE, True)
        except Exception as error:  # whatever the network raises for copies of this shape
            copied = any(type(layer) not in SERVED for _, layer in layers(learner.net))
            if not copied or "memory" in str(error):
                raise
            raise UserError(
                "curvature: a parameter that belongs to no layer cannot be given to each "
                f"sample as a copy ({one_line(error)}); give it as many dimensions as the "
                "activations that it meets, the first one of size 1, such as (1, 16, 1, 1), or "
                "use curvature=diag_fisher"
            ) from error
    return sites, logits


def _squares_of_each(learner: Learner, batch: Batch, seed: Tensor) -> Tensor | None:
    """The sum of the squared gradients of both samples, one after the other.

    None where the network takes no single sample.
    """
    total = torch.zeros_like(learner.flat.grad)
    for i in range(len(batch.y)):
        theta = learner.flat.theta.detach().clone().requires_grad_()
        try:
            logits = learner.logits(theta, batch.rows(slice(i, i + 1)))
        except (RuntimeError, ValueError, IndexError) as error:
            if "memory" in str(error):
                raise
            return None
        total += torch.autograd.grad(logits, theta, seed[None])[0].square()
    return total


def _compare(learner: Learner, found: Tensor, expected: Tensor, recorded: set[str]) -> None:
    """Raise UserError for the first parameter whose squared gradients differ.

    recorded  the layers that the forward pass called; parameters of others have no gradient
    """
    floor = ROUNDING * float(expected.max())
    views = learner.flat.views(found)
    for name, wanted in learner.flat.views(expected).items():
        called = name.rpartition(".")[0] in recorded
        allowed = CLOSE * wanted.max() + floor if called else 0.0
        if not (views[name] - wanted).abs().max() <= allowed:  # or NaN
            raise UserError(
                f"curvature: the gradient of {name} does not come from its layer alone: the "
                "network reads the parameter elsewhere too, or its samples depend on each other; "
                "use curvature=diag_fisher"
            )

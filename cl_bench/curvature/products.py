"""Products of the Hessian and of the GGN with vectors, by automatic differentiation.

They work for any network, and cost two to four passes over the data for each vector.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from cl_bench.core.learner import Learner
from cl_bench.core.types import Task
from cl_bench.curvature.backward import chunk
from cl_bench.curvature.capture import FLOATS
from cl_bench.curvature.roots import output_roots

Product = Callable[[Tensor], Tensor]  # (..., P) -> (..., P)


def hessian_product(learner: Learner, task: Task) -> Product:
    """v -> H v for the Hessian H of the mean loss at theta; v is a vector or rows of vectors."""

    def product(v: Tensor) -> Tensor:
        total, theta = torch.zeros_like(v), learner.flat.theta.detach()
        with learner.evaluating(full_precision=True):
            for batch in task.chunks(chunk(learner, task)):
                slope = grad(lambda th, b=batch: learner.losses(th, b).sum())
                pull = vjp(slope, theta)[1]
                learner.sample_gradients += 2 * len(batch.y) * (v.numel() // v.shape[-1])
                total += pull(v)[0] if v.dim() == 1 else vmap(pull)(v)[0]
        return total / len(task)

    return product


def ggn_product(learner: Learner, task: Task, at: Tensor | None = None) -> Product:
    """v -> G v for the GGN G (the exact Fisher) of the mean loss at `at` (P,); None: at theta.

    J v is the derivative of u -> (J' u)'v: reverse mode twice.
    """

    def product(v: Tensor) -> Tensor:
        total, theta = torch.zeros_like(v), learner.flat.theta.detach() if at is None else at
        with learner.evaluating(full_precision=True):
            for batch in task.chunks(chunk(learner, task)):
                found = vjp(lambda th, b=batch: learner.logits(th, b), theta)
                logits, pull = found[0], found[1]
                moved = vjp(lambda u, pull=pull: pull(u)[0], torch.zeros_like(logits))[1](v)[0]
                roots = output_roots(learner, batch, logits, None)
                seen = (roots * moved).sum(-1, keepdim=True)  # (R, B, 1)
                total += pull((roots * seen).sum(0))[0]
                learner.sample_gradients += 2 * len(batch.y)
        return total / len(task)

    return product


def hessian(learner: Learner, task: Task) -> Tensor:
    """(P, P): the Hessian of the mean loss, computed in parts of `FLOATS` entries."""
    count, like = learner.flat.theta.numel(), learner.flat.grad
    product, size = hessian_product(learner, task), max(1, FLOATS // (16 * like.numel()))
    eye = torch.eye(count, dtype=like.dtype, device=like.device)
    found = torch.cat([product(rows) for rows in eye.split(size)])
    return (found + found.T) / 2


def largest_eigenvalue(product: Product, start: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """(lambda, v) of a positive semi-definite matrix by power iteration from `start` (P,)."""
    tiny = torch.finfo(start.dtype).tiny
    v = start / start.norm().clamp(min=tiny)
    value = v.new_zeros(())
    for _ in range(iterations):
        moved = product(v)
        value = (v * moved).sum(-1)
        v = moved / moved.norm().clamp(min=tiny)
    return value, v

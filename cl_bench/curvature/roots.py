"""Roots of the output Hessian: vectors at the logits, each of which is sent backward once.

Shapes: B samples, K classes, R roots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Generator, Tensor

from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch

Labels = Literal["exact", "sampled", "empirical"]
RootFn = Callable[[Learner, Batch, Tensor], Tensor]  # (., ., logits (B, K)) -> (R, B, K)


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

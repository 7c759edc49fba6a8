"""Masked losses and the square roots of their Hessians in the logits."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from cl_bench.base.bounds import Positive
from cl_bench.core.types import to_device_of

Live = Tensor | None  # (B, K) bool: classes that compete; None: all of them


class Criterion(Protocol):
    """A loss per sample, and R vectors a sample whose outer products sum to its Hessian."""

    squared: ClassVar[bool]  # whether its gradient is a residual: as the fit improves it vanishes

    def __call__(self, logits: Tensor, y: Tensor, live: Live) -> Tensor:
        """(B, K), (B,), (B, K) -> (B,)."""
        ...

    def with_slope(self, logits: Tensor, y: Tensor, live: Live) -> tuple[Tensor, Tensor]:
        """(B, K), (B,), (B, K) -> the losses (B,), and each one's gradient in its logits (B, K)."""
        ...

    def hessian_root(self, logits: Tensor, live: Live, rng: Generator | None) -> Tensor:
        """(R, B, K): R = K exact without `rng`; R = 1 drawn with it, right in expectation.

        `rng` is a generator on the CPU, so that every device draws the same.
        """
        ...


class CrossEntropy:
    """-log softmax over the live classes; Hessian diag(p) - pp' = sum_k p_k (e_k - p)(e_k - p)'."""

    squared: ClassVar[bool] = False

    def __call__(self, logits: Tensor, y: Tensor, live: Live) -> Tensor:
        return F.cross_entropy(_masked(_full(logits), live), y, reduction="none")

    def with_slope(self, logits: Tensor, y: Tensor, live: Live) -> tuple[Tensor, Tensor]:
        log_p = _masked(_full(logits), live).log_softmax(-1)
        own = y.unsqueeze(-1) == torch.arange(logits.shape[-1], device=y.device)
        return -log_p.where(own, 0.0).sum(-1), log_p.exp() - own.to(log_p.dtype)

    def hessian_root(self, logits: Tensor, live: Live, rng: Generator | None) -> Tensor:
        p = _masked(logits, live).softmax(-1)
        eye = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
        if rng is None:
            return p.T.sqrt().unsqueeze(-1) * (eye.unsqueeze(1) - p)
        waiting = -torch.rand(p.shape, generator=rng, dtype=p.dtype).log()  # exponential, above 0
        drawn = (p / to_device_of(waiting, p)).argmax(
            -1
        )  # the first to come; never one of probability 0
        return (eye[drawn] - p).unsqueeze(0)


class ScaledMSE:
    """1/2 ||scale e_y - f||^2 over the live classes (DLCFT eq. 5); Hessian I over all classes.

    The root covers classes that are not live yet, so that the curvature for a head that is
    revealed later is already there (house.md D4).
    """

    squared: ClassVar[bool] = True

    def __init__(self, scale: Positive) -> None:
        self.scale = scale

    def __call__(self, logits: Tensor, y: Tensor, live: Live) -> Tensor:
        return self.with_slope(logits, y, live)[0]

    def with_slope(self, logits: Tensor, y: Tensor, live: Live) -> tuple[Tensor, Tensor]:
        target = y.unsqueeze(-1) == torch.arange(logits.shape[-1], device=y.device)
        residual = _full(logits) - self.scale * target
        if live is not None:
            residual = residual * live
        return 0.5 * residual.square().sum(-1), residual

    def hessian_root(self, logits: Tensor, live: Live, rng: Generator | None) -> Tensor:
        if rng is None:
            eye = torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device)
            return eye.unsqueeze(1).expand(-1, *logits.shape)
        probe = torch.randn((1, *logits.shape), generator=rng, dtype=logits.dtype)
        return to_device_of(probe, logits)


def _full(logits: Tensor) -> Tensor:
    """At least float32: a loss is never taken in bfloat16."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _masked(logits: Tensor, live: Live) -> Tensor:
    return logits if live is None else logits.masked_fill(~live, -torch.inf)

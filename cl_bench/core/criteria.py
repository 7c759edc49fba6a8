"""Losses over the classes that compete, and factors of their Hessians in the logits."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from cl_bench.base.bounds import Positive
from cl_bench.core.types import at_least_float32, to_device_of

Live = Tensor | None  # (B, K) bool: classes that compete; None: all of them


class Criterion(Protocol):
    """A loss of each sample, its gradient in the logits, and a factor of its Hessian in them."""

    squared: ClassVar[bool]  # a squared loss: its gradient vanishes as the fit improves

    def __call__(self, logits: Tensor, y: Tensor, live: Live) -> Tensor:
        """The losses (B,) of logits (B, K) and class ids (B,)."""
        ...

    def losses_and_gradients(self, logits: Tensor, y: Tensor, live: Live) -> tuple[Tensor, Tensor]:
        """The losses (B,), and their gradients in the logits (B, K)."""
        ...

    def hessian_root(self, logits: Tensor, live: Live, rng: Generator | None) -> Tensor:
        """(R, B, K): vectors s_r of each sample with sum_r s_r s_r' = Hessian in its logits.

        Without `rng`, R = K and the sum is exact. With `rng`, a CPU generator, R = 1 vector is
        drawn, and s s' is the Hessian in expectation. Every device draws the same.
        """
        ...


class CrossEntropy:
    """-log softmax over the classes that compete.

    Its Hessian is diag(p) - pp' = sum_k p_k (e_k - p)(e_k - p)', p the softmax.
    """

    squared: ClassVar[bool] = False

    def __call__(self, logits: Tensor, y: Tensor, live: Live) -> Tensor:
        return F.cross_entropy(masked(at_least_float32(logits), live), y, reduction="none")

    def losses_and_gradients(self, logits: Tensor, y: Tensor, live: Live) -> tuple[Tensor, Tensor]:
        log_p = masked(at_least_float32(logits), live).log_softmax(-1)
        own = y.unsqueeze(-1) == torch.arange(logits.shape[-1], device=y.device)
        return -log_p.where(own, 0.0).sum(-1), log_p.exp() - own.to(log_p.dtype)

    def hessian_root(self, logits: Tensor, live: Live, rng: Generator | None) -> Tensor:
        p = masked(logits, live).softmax(-1)
        eye = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
        if rng is None:
            return p.T.sqrt().unsqueeze(-1) * (eye.unsqueeze(1) - p)
        # classes k ~ p as the argmax of p_k / E_k, E_k exponential: never one of probability 0
        exponential = -torch.rand(p.shape, generator=rng, dtype=p.dtype).log()
        drawn = (p / to_device_of(exponential, p)).argmax(-1)
        return (eye[drawn] - p).unsqueeze(0)


class ScaledMSE:
    """1/2 ||scale e_y - f||^2 over the classes that compete (DLCFT eq. 5).

    `hessian_root` is a root of the identity over all classes, those that do not compete yet
    included: DLCFT needs the curvature of their head rows before it learns them (section 3.3).
    """

    squared: ClassVar[bool] = True

    def __init__(self, scale: Positive) -> None:
        self.scale = scale

    def __call__(self, logits: Tensor, y: Tensor, live: Live) -> Tensor:
        return self.losses_and_gradients(logits, y, live)[0]

    def losses_and_gradients(self, logits: Tensor, y: Tensor, live: Live) -> tuple[Tensor, Tensor]:
        target = y.unsqueeze(-1) == torch.arange(logits.shape[-1], device=y.device)
        residual = at_least_float32(logits) - self.scale * target
        if live is not None:
            residual = residual * live
        return 0.5 * residual.square().sum(-1), residual

    def hessian_root(self, logits: Tensor, live: Live, rng: Generator | None) -> Tensor:
        if rng is None:
            eye = torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device)
            return eye.unsqueeze(1).expand(-1, *logits.shape)
        probe = torch.randn((1, *logits.shape), generator=rng, dtype=logits.dtype)
        return to_device_of(probe, logits)


def masked(logits: Tensor, live: Live) -> Tensor:
    """The logits (B, K), -inf for classes that do not compete for a sample; None: all do."""
    return logits if live is None else logits.masked_fill(~live, -torch.inf)

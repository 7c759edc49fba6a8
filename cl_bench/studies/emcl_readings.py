"""Other readings of EMCL's text, for `experiment=emcl/readings`: none of them did better.

eta and r of equations 7 and 8 are not printed, eq. 8 as it stands diverges, and where eq. 8 and
eq. 10 take the same h, it cancels. What came out is in docs/notes/emcl.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, NonNegative, Positive, Share, ZeroOrMore
from cl_bench.core.inner_loop import By
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch
from cl_bench.methods.emcl import EMCL, mean, refuse_idle_replay

Rule = Literal["literal", "bounded", "base", "relative", "constant"]


class EMCLReadings(EMCL):
    """EMCL with an option for each thing that the paper leaves open.

    meta    theta_0 <- theta_0 - alpha * d, d = theta_0 - theta_k (reptile), or
            strength * h * (theta_0 - theta_k) (closed_form, eq. 10)
    at      g of the importance: the batch's at theta_0 (batch), the first slice's (first), or the
            mean of the slices' along the way (mean)
    start   h begins at zero, at one, or at each parameter's first Omega (first)
    unit    of h: 1 (one), or its mean; from `floor` up (not with rule=literal)
    rule    of alpha, from alpha_0 = optimizer.lr
      literal     alpha <- (scale / h) alpha, batch after batch (eq. 8): it diverges
      bounded     the same, alpha from floor to 1
      base        (scale / h) alpha_0
      relative    alpha_0 min(scale mean(h) / h, 1)
      constant    alpha_0
    rates   the meta step takes alpha after this batch (new), or before it (old)

    A parameter at 0 has a Taylor importance of 0, and eq. 10 hardly moves what has none: with
    meta=closed_form, biases that start at 0 move with rule=base alone, whose h cancels. No entry of
    theta_0 goes beyond theta_k, but with rule=literal.
    """

    def __init__(
        self,
        learner: Learner,
        inner: Literal["proximal", "gradient", "plain", "modulated"],
        inner_lr: NonNegative,
        prox: NonNegative,
        strength: NonNegative,
        importance: Literal["taylor", "si", "none"],
        decay: Share,
        scale: NonNegative,
        passes: Count,
        slice_size: Count,
        batch_norm: By,
        buffer: Callable[..., Buffer],
        replay: ZeroOrMore,
        replay_in: Literal["inner", "importance", "both"],
        meta: Literal["closed_form", "reptile"],
        at: Literal["batch", "first", "mean"],
        start: Literal["first", "zero", "one"],
        unit: Literal["one", "mean"],
        rule: Rule,
        floor: Positive,
        rates: Literal["new", "old"],
    ) -> None:
        self.meta, self.at, self.start, self.unit = meta, at, start, unit
        self.rule, self.floor, self.rates = rule, floor, rates
        own: dict[str, Any] = {
            "inner": inner,
            "inner_lr": inner_lr,
            "prox": prox,
            "strength": strength,
        }
        own |= {"importance": importance, "decay": decay, "scale": scale, "passes": passes}
        own |= {"slice_size": slice_size, "batch_norm": batch_norm}
        own |= {"buffer": buffer, "replay": replay, "replay_in": replay_in}
        super().__init__(learner, **own)
        self.h = torch.ones_like(self.h) * (start == "one" or importance == "none")

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        own = config["method"]
        refuse_idle_replay(own, own["importance"] == "none" or own["at"] != "batch")

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        own = config["method"]
        held, closed = own["inner"] in ("proximal", "gradient"), own["meta"] == "closed_form"
        constant, none = own["rule"] == "constant", own["importance"] == "none"
        weighted = held or closed or own["rule"] in ("literal", "bounded", "base")  # h in its unit
        keys = {
            "inner_lr": own["inner"] == "modulated",
            "prox": own["inner"] != "proximal",
            "strength": not held and not closed,
            "at": none,
            **dict.fromkeys(("decay", "start"), none or not (weighted or not constant)),
            "unit": none or not weighted,
            "floor": own["rule"] == "literal" or not weighted,
            **dict.fromkeys(("scale", "rates"), constant),
            "buffer": not own["replay"],
            "replay_in": not own["replay"] or none or own["at"] != "batch",
        }
        return {f"method.{key}" for key, idle in keys.items() if idle}

    def _parts(self, seen: Batch, new: int) -> tuple[Batch, Batch]:
        """With at=first and at=mean, importance is made of the gradients of inner steps."""
        inner, measured = super()._parts(seen, new)
        return inner, measured if self.at == "batch" else inner

    def _gradient_at_start(self, batch: Batch) -> Tensor | None:
        """With at=first and at=mean zeros, to which the inner steps add."""
        if self.at == "batch" or self.importance == "none":
            return super()._gradient_at_start(batch)
        return torch.zeros_like(self.h)

    def _inner_loop(self, batch: Batch, theta_0: Tensor, g: Tensor | None) -> Tensor:
        if self.at == "batch" or g is None:
            return super()._inner_loop(batch, theta_0, g)

        def add(i: int, gradient: Tensor, share: float) -> None:
            if self.at == "mean" or i == 0:
                g.add_(gradient, alpha=share if self.at == "mean" else 1)

        return self._single_steps(batch, theta_0, add)

    def _meta_step(
        self,
        theta_0: Tensor,
        theta_k: Tensor,
        g: Tensor | None,
        step: Tensor,
        h: Tensor,
        alpha: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        way, after = theta_0 - theta_k, h
        if g is not None:
            omega = (g * (way if self.importance == "si" else theta_0)).abs()
            after = self._averaged(omega, h)
        new = self._ruled(after, alpha)
        share = alpha if self.rates == "old" else new
        share = share * self.strength * self._weights(h) if self.meta == "closed_form" else share
        share = share if self.rule == "literal" else share.clamp(max=1)
        return theta_0 - step * share * way, after, new

    def _weights(self, h: Tensor) -> Tensor:
        h = h / mean(h) if self.unit == "mean" else h
        return h if self.rule == "literal" else h.clamp(min=self.floor)

    def _averaged(self, omega: Tensor, h: Tensor) -> Tensor:
        if self.start == "first":
            return super()._averaged(omega, h)
        return torch.lerp(omega, h, self.decay)

    def _ruled(self, h: Tensor, alpha: Tensor) -> Tensor:
        """Eq. 8, as `rule` reads it."""
        if self.rule == "constant":
            return alpha
        if self.rule == "relative":
            return self._rates(h)
        share = self.scale / self._weights(h)
        if self.rule == "literal":
            return share * alpha
        return (
            share * self.first_alpha
            if self.rule == "base"
            else (share * alpha).clamp(self.floor, 1)
        )

"""EMCL: efficient meta-learning by importance (Zou & Lin 2022; equations are its own).

The paper leaves much open: eta and r of eq. 7 and 8 are not printed, eq. 8 as it stands diverges,
and where eq. 8 and eq. 10 take the same h, it cancels. Each reading is an option here.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, NonNegative, Positive, Share
from cl_bench.core.inner_loop import By
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Task
from cl_bench.methods.base import Method

Rule = Literal["literal", "bounded", "base", "relative", "constant"]


class EMCL(Method):
    """Single-sample steps held near theta_0 by an importance h; then theta_0 moves towards them.

    inner       theta <- theta - inner_lr g (eq. 16), and then, or with it:
      proximal    theta <- (theta + c theta_0) / (1 + c), c = prox * strength * h (eq. 17, 21)
      gradient    the gradient of eq. 6's penalty, at the same rate
      plain       nothing; modulated: nothing, and the rate is alpha (table IV)
    steps       separate: inner_lr in eq. 16, prox in eq. 21 | tied: prox in both, as printed there
    meta        theta_0 <- theta_0 - alpha * d: d = strength * h * (theta_0 - theta_k) (closed_form,
                eq. 10) | theta_0 - theta_k (reptile)
    importance  Omega = |g * theta_0| (taylor, eq. 13) | |g * (theta_k - theta_0)| (si) | 1 (none)
    at          g is the batch's gradient at theta_0 (batch), the first slice's (first), or the
                mean of the samples' along the way (mean)
    h           <- decay h + (1 - decay) Omega (eq. 7), from 0, from 1, or (start=first) from each
                parameter's first Omega; its unit is 1, or its mean; from `floor` up (not literal).
                The one before this batch holds it (eq. 6, 10, 17), the one after it gives alpha
    rule        of alpha, from alpha_0 = optimizer.lr
      literal     alpha <- (scale / h) alpha, batch after batch (eq. 8): it diverges
      bounded     the same, alpha from floor to 1
      base        (scale / h) alpha_0: "inversely proportional"
      relative    alpha_0 min(scale mean(h) / h, 1): inversely proportional, whatever h's unit
      constant    alpha_0
    rates       alpha after this batch (new), or before it (old: algorithm 1, line 9). Heads that
                are not in use keep theirs, and their h

    A parameter at 0 has a Taylor importance of 0, and eq. 10 hardly moves what has none: with
    meta=closed_form, biases that start at 0 move by way of rule=base alone, whose h cancels.
    No entry of theta_0 goes beyond theta_k, but with rule=literal. A batch is gone through
    `passes` times, an inner step on `slice_size` samples: 1, as in the paper, or more where batch
    norm needs them; `batch_norm`: how it sees them (`InnerLoop.batch_norm_mode`). Which options a
    reading leaves idle: `unused`.
    """

    requires_plain_sgd = True

    def __init__(
        self,
        learner: Learner,
        inner: Literal["proximal", "gradient", "plain", "modulated"],
        inner_lr: NonNegative,
        prox: NonNegative,
        steps: Literal["separate", "tied"],
        strength: NonNegative,
        meta: Literal["closed_form", "reptile"],
        importance: Literal["taylor", "si", "none"],
        at: Literal["batch", "first", "mean"],
        decay: Share,
        start: Literal["first", "zero", "one"],
        unit: Literal["one", "mean"],
        rule: Rule,
        scale: NonNegative,
        floor: Positive,
        rates: Literal["new", "old"],
        passes: Count,
        slice_size: Count,
        batch_norm: By,
    ) -> None:
        super().__init__(learner)
        self.inner, self.prox, self.strength, self.meta = inner, prox, strength, meta
        self.inner_lr = prox if steps == "tied" else inner_lr
        self.importance, self.at, self.decay = importance, at, decay
        self.start, self.unit = start, unit
        self.rule, self.scale, self.floor, self.rates = rule, scale, floor, rates
        self.passes, self.slice_size, self.size = passes, slice_size, 0  # of the usual batch
        self.batch_norm: By = batch_norm
        ones = torch.ones_like(learner.flat.grad)
        self.h = ones * (start == "one" or importance == "none")
        self.first, self.alpha, self.used = learner.lr, ones * learner.lr, ones
        compiler = learner.machine.compiler or (lambda f: f)
        self._shrunk, self._settled = compiler(self._shrink), compiler(self._settle)

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        own = config["method"]
        held, far = own["inner"] in ("proximal", "gradient"), own["meta"] == "closed_form"
        constant, none = own["rule"] == "constant", own["importance"] == "none"
        weighted = held or far or own["rule"] in ("literal", "bounded", "base")  # h in its unit
        keys = {
            "inner_lr": own["inner"] == "modulated" or own["steps"] == "tied",
            "prox": own["inner"] == "modulated"
            or (own["inner"] != "proximal" and own["steps"] != "tied"),
            "strength": not held and not far,
            "steps": own["inner"] == "modulated",
            "at": none,
            **dict.fromkeys(("decay", "start"), none or not (weighted or not constant)),
            "unit": none or not weighted,
            "floor": own["rule"] == "literal" or not weighted,
            **dict.fromkeys(("scale", "rates"), constant),
        }
        return {f"method.{key}" for key, idle in keys.items() if idle}

    def begin_task(self, task: Task) -> None:
        self.size = 0
        self.used = self.learner.heads.in_use(self.learner.heads.competing_in(task))

    def observe(self, batch: Batch) -> Tensor:
        self.size = self.size or len(batch.y)
        losses = []
        for _ in range(self.passes):
            fresh = self.learner.augmented(batch)
            with self.learner.inner.batch_norm_mode(self.batch_norm, fresh):
                losses.append(self._look(fresh))
        return losses[0]

    def _look(self, batch: Batch) -> Tensor:
        learner, theta = self.learner, self.learner.flat.theta.detach()
        theta_0, g = theta.clone(), None
        if self.importance != "none" and self.at == "batch":
            learner.loss_gradient(batch)
            g = learner.flat.grad.clone()
        loss, along = self._walk(batch, theta_0)
        step = theta.new_full((), learner.lr_factor)
        state = self.h, self.alpha, self.used
        found, self.h, self.alpha = self._settled(
            theta_0, theta, along if g is None else g, step, *state
        )
        theta.copy_(found)
        return loss

    def _walk(self, batch: Batch, theta_0: Tensor) -> tuple[Tensor, Tensor | None]:
        """Eq. 16, 17 and 21 for each sample; the mean loss, and the gradient that `at` asks for."""
        learner, rate = self.learner, self.inner_lr * self.learner.lr_factor
        shrink = self._shrunk(self.h) if self.inner == "proximal" else None
        watched = self.importance != "none" and self.at != "batch"
        if not watched and self.inner in ("proximal", "plain"):
            usual = len(batch.y) == self.size
            return learner.inner.sgd_sequence(batch, rate, shrink, usual, self.slice_size), None
        theta, along, losses = learner.flat.theta.detach(), torch.zeros_like(theta_0), []
        pull = self.strength * self._weights(self.h) if self.inner == "gradient" else None
        for i, some in enumerate(batch.slices(self.slice_size)):
            part = len(some.y) / len(batch.y)
            losses.append(part * learner.loss_gradient(some))
            g = learner.flat.grad
            if watched and (self.at == "mean" or i == 0):
                along.add_(g, alpha=part if self.at == "mean" else 1)
            if pull is not None:
                g = g + pull * (theta - theta_0)
            theta.sub_(g * (self.alpha * learner.lr_factor if self.inner == "modulated" else rate))
            if shrink is not None:
                torch.lerp(theta_0, theta, shrink, out=theta)
        return torch.stack(losses).sum(), along if watched else None

    def _shrink(self, h: Tensor) -> Tensor:
        """How much of the way from theta_0 eq. 21 leaves."""
        return 1 / (1 + self.prox * self.strength * self._weights(h))

    def _settle(
        self,
        theta_0: Tensor,
        theta: Tensor,
        g: Tensor | None,
        step: Tensor,
        h: Tensor,
        alpha: Tensor,
        used: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """After the inner loop: theta_0's next value, h and alpha."""
        moved, before, after = theta_0 - theta, alpha, h
        if g is not None:
            omega = (g * (moved if self.importance == "si" else theta_0)).abs()
            after = self._remembered(omega, h, used)
        alpha = torch.where(used > 0, self._renewed(after, alpha), alpha)
        share = before if self.rates == "old" else alpha
        share = share * self.strength * self._weights(h) if self.meta == "closed_form" else share
        share = share if self.rule == "literal" else share.clamp(max=1)
        return theta_0 - step * share * moved, after, alpha

    def _weights(self, h: Tensor) -> Tensor:
        """h in its unit; from floor up, but for rule=literal."""
        h = h / _mean(h) if self.unit == "mean" else h
        return h if self.rule == "literal" else h.clamp(min=self.floor)

    def _remembered(self, omega: Tensor, h: Tensor, used: Tensor) -> Tensor:
        """Eq. 7, for the parameters in use."""
        after = torch.lerp(omega, h, self.decay)
        if self.start == "first":
            after = torch.where(h == 0, omega, after)
        return torch.where(used > 0, after, h)

    def _renewed(self, h: Tensor, alpha: Tensor) -> Tensor:
        """Eq. 8, as `rule` reads it."""
        if self.rule == "constant":
            return alpha
        if self.rule == "relative":
            tiny = torch.finfo(h.dtype).tiny
            return self.first * (self.scale * _mean(h) / h.clamp(min=tiny)).clamp(max=1)
        h = self._weights(h)
        if self.rule == "literal":
            return self.scale / h * alpha
        if self.rule == "base":
            return self.scale / h * self.first
        return (self.scale / h * alpha).clamp(self.floor, 1)


def _mean(h: Tensor) -> Tensor:
    return h.mean().clamp(min=torch.finfo(h.dtype).tiny)

"""EMCL: efficient meta-learning by importance (Zou & Lin 2022; equation numbers are the paper's).

The paper leaves several things open: the values of eta (eq. 7) and r (eq. 8) are not printed, and
eq. 8 as printed diverges. Here is the reading that works; `cl_bench/studies/emcl_readings.py` adds
the others, the printed one among them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, NonNegative, Share, ZeroOrMore
from cl_bench.base.exceptions import UserError
from cl_bench.core.inner_loop import By
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch, Task
from cl_bench.methods.base import Rehearsal

# called with a slice's number, its gradient (P,) and its share of the batch
Watch = Callable[[int, Tensor, float], None]
LEAST = 1e-8  # importance that a parameter has at least, in units of the mean


class EMCL(Rehearsal):
    """Steps on single samples, held near theta_0 by an importance h; then theta_0 follows them.

    For each batch, with h (P,) the importance so far in units of its mean:

    inner       the steps from theta_0 to theta_k: theta <- theta - inner_lr g (eq. 16), and
      proximal    theta <- (theta + c theta_0) / (1 + c), c = prox * strength * h (eq. 17, 21)
      gradient    the gradient of eq. 6's penalty, strength * h * (theta - theta_0), added to g
      plain       nothing: h does not hold the steps
      modulated   nothing, with the learning rates alpha in place of inner_lr (table IV)
    meta step   theta_0 <- theta_0 + min(alpha, 1) (theta_k - theta_0), with rates alpha (P,) from
                the h before the batch (algorithm 1, line 9), "inversely proportional" (eq. 8):
                alpha = optimizer.lr * min(scale * mean(h) / h, 1)
    importance  h <- decay h + (1 - decay) Omega (eq. 7), from each parameter's first Omega on:
      taylor      |g * theta_0|, g the gradient of the batch at theta_0 (eq. 13)
      si          |g * (theta_k - theta_0)|
      none        h = 1

    The paper's text denies a memory, but L_t in eq. 1, 5 and 11 is over all tasks, which needs one.
    With `replay` above 0 that many stored samples are drawn for each batch. They follow the new
    ones in the inner steps (replay_in=inner), or belong to the batch of g, the gradient that
    importance is made of (importance), or both.

    A batch is gone through `passes` times, an inner step on `slice_size` samples: 1, as in the
    paper, or more where batch norm needs them; `batch_norm`: how it sees them
    (`InnerLoop.batch_norm_mode`). Heads of classes that do not compete for a sample of g's batch
    keep their h and alpha.
    """

    requires_plain_sgd = True
    task_free = True

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
    ) -> None:
        super().__init__(learner, buffer)
        self.inner, self.inner_lr, self.prox, self.strength = inner, inner_lr, prox, strength
        self.importance, self.decay, self.scale = importance, decay, scale
        self.passes, self.slice_size = passes, slice_size
        self.batch_norm: By = batch_norm
        self.replay, self.replay_in = replay, replay_in
        ones = torch.ones_like(learner.flat.grad)
        self.h = ones * (importance == "none")
        self.first_alpha, self.alpha = learner.lr, ones * learner.lr
        self.batch_size = 0  # of this task's batches but the last
        compiler = learner.machine.compiler or (lambda f: f)
        self._kept, self._meta = compiler(self._share_kept), compiler(self._meta_step)

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        refuse_idle_replay(config["method"], config["method"]["importance"] == "none")

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        inner = config["method"]["inner"]
        keys = {
            "inner_lr": inner == "modulated",
            "prox": inner != "proximal",
            "strength": inner not in ("proximal", "gradient"),
            "decay": config["method"]["importance"] == "none",
            "buffer": not config["method"]["replay"],
            "replay_in": not config["method"]["replay"] or config["method"]["importance"] == "none",
        }
        return {f"method.{key}" for key, idle in keys.items() if idle}

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.batch_size = 0

    def observe(self, batch: Batch) -> Tensor:
        self.batch_size = self.batch_size or len(batch.y)
        losses = []
        for _ in range(self.passes):
            seen = self.learner.augmented(self.with_old(batch, self.replay))
            with self.learner.inner.batch_norm_mode(self.batch_norm, seen):
                losses.append(self._pass(*self._parts(seen, len(batch.y))))
        if self.replay:
            self.memory.add(batch)
        return losses[0]

    def _parts(self, seen: Batch, new: int) -> tuple[Batch, Batch]:
        """The samples of the inner steps, and those whose gradient importance is made of."""
        fresh = seen.rows(slice(0, new))
        inner = fresh if self.replay_in == "importance" else seen
        return inner, fresh if self.replay_in == "inner" else seen

    def _pass(self, inner: Batch, measured: Batch) -> Tensor:
        """Algorithm 1 for one batch; returns the mean loss of the inner steps."""
        learner, theta = self.learner, self.learner.flat.theta.detach()
        theta_0 = theta.clone()
        g = self._gradient_at_start(measured)
        loss = self._inner_loop(inner, theta_0, g)
        step = theta.new_full((), learner.lr_factor)
        moved, h, alpha = self._meta(theta_0, theta, g, step, self.h, self.alpha)
        learner.heads.keep_unused_(h, self.h, measured)
        learner.heads.keep_unused_(alpha, self.alpha, measured)
        theta.copy_(moved)
        self.h, self.alpha = h, alpha
        return loss

    def _gradient_at_start(self, batch: Batch) -> Tensor | None:
        """The batch's gradient at theta_0 (P,), of which importance is made; None: not needed."""
        if self.importance == "none":
            return None
        self.learner.loss_gradient(batch)
        return self.learner.flat.grad.clone()

    def _inner_loop(self, batch: Batch, theta_0: Tensor, g: Tensor | None) -> Tensor:
        """Move theta from theta_0 to theta_k; returns the mean loss along the way.

        g is the importance's gradient, to which `EMCLReadings` adds on the way.
        """
        if self.inner in ("gradient", "modulated"):
            return self._single_steps(batch, theta_0)
        rate = self.inner_lr * self.learner.lr_factor
        kept = self._kept(self.h) if self.inner == "proximal" else None
        old = 0 if self.replay_in == "importance" else self.replay
        compiled_length = len(batch.y) == self.batch_size + old
        return self.learner.inner.sgd_sequence(batch, rate, kept, compiled_length, self.slice_size)

    def _single_steps(self, batch: Batch, theta_0: Tensor, watch: Watch | None = None) -> Tensor:
        """`_inner_loop` one slice after the other, for any `inner`; `watch` sees each gradient."""
        theta, losses = self.learner.flat.theta.detach(), []
        rate = (self.alpha if self.inner == "modulated" else self.inner_lr) * self.learner.lr_factor
        pull = self.strength * self._weights(self.h) if self.inner == "gradient" else None
        kept = self._kept(self.h) if self.inner == "proximal" else None
        for i, some in enumerate(batch.slices(self.slice_size)):
            share = len(some.y) / len(batch.y)
            losses.append(self.learner.loss_gradient(some) * share)
            g = self.learner.flat.grad
            if watch is not None:
                watch(i, g, share)
            if pull is not None:
                g = g + pull * (theta - theta_0)
            theta.sub_(g * rate)
            if kept is not None:
                torch.lerp(theta_0, theta, kept, out=theta)
        return torch.stack(losses).sum()

    def _share_kept(self, h: Tensor) -> Tensor:
        """1 / (1 + c): the share of a step away from theta_0 that eq. 21 leaves."""
        return (self.prox * self.strength * self._weights(h)).add_(1).reciprocal_()

    def _meta_step(
        self,
        theta_0: Tensor,
        theta_k: Tensor,
        g: Tensor | None,
        step: Tensor,
        h: Tensor,
        alpha: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next theta_0, h and alpha; `step` is the annealed learning rate, as a share."""
        way = theta_0 - theta_k
        if g is not None:
            omega = (g * (way if self.importance == "si" else theta_0)).abs_()
            h = self._averaged(omega, h)
        moved = theta_0 - (step * alpha.clamp(max=1)).mul_(way)
        return moved, h, self._rates(h)

    def _weights(self, h: Tensor) -> Tensor:
        """h in units of its mean."""
        return (h / mean(h)).clamp_(min=LEAST)

    def _averaged(self, omega: Tensor, h: Tensor) -> Tensor:
        """Eq. 7; a parameter's first Omega is its h."""
        return torch.where(h == 0, omega, torch.lerp(omega, h, self.decay))

    def _rates(self, h: Tensor) -> Tensor:
        """Eq. 8, read as "inversely proportional", whatever the unit of h."""
        tiny = torch.finfo(h.dtype).tiny
        return (self.scale * mean(h) / h.clamp(min=tiny)).clamp_(max=1).mul_(self.first_alpha)


def refuse_idle_replay(method: dict[str, Any], idle: bool) -> None:
    """UserError for replay in the batch of an importance that has none (`idle`)."""
    if method["replay"] and method["replay_in"] == "importance" and idle:
        raise UserError(
            "method.replay_in=importance: this importance has no batch of its own, so that "
            "nothing would be replayed; use inner or both, or method.replay=0"
        )


def mean(h: Tensor) -> Tensor:
    """The mean of h, above 0."""
    return h.mean().clamp(min=torch.finfo(h.dtype).tiny)

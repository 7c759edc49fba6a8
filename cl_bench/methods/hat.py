"""HAT: hard attention to the task (Serra et al. 2018, arXiv:1801.01423, equation numbers)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cl_bench.base.bounds import AtLeastOne, NonNegative
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Snapshot, Task, to_device_of
from cl_bench.methods.base import Separate
from cl_bench.methods.shared.hidden_units import HiddenUnits

LARGEST_EMBEDDING = 6.0  # embeddings are clipped to [-6, 6]
LARGEST_PRODUCT = 50.0  # of s e in the compensation


class HAT(Separate):
    """The weights are shared; each task multiplies the U hidden units by gates a = sigmoid(s e).

    e is the task's embedding (U,), and s grows from 1/s_max to s_max over each epoch (eq. 3).
    `used` is 1 for units whose gate is open in a past task, else 0.
    - The gradient of a weight from unit j to unit i is multiplied by 1 - min(used_i, used_j)
      (eq. 2).
    - A task minimises loss + c sum_i a_i (1 - used_i) / sum_i (1 - used_i): units that a past task
      uses cost nothing.
    - The gradient in e is multiplied by s_max / s (cosh(s e) + 1) / (cosh(e) + 1), with s e clipped
      to [-50, 50], so that it does not vanish where s is large. The slope of a gate in e is
      s / (2 cosh(s e) + 2); in the product of both, which `_pull` computes, cosh(s e) cancels.

    After a task a gate is 1 where e > 0, else 0. In the paper it stays sigmoid(s_max e), which is
    nearly the same. With binary gates the weights that a past task uses do not change at all, so
    that nothing is forgotten. Heads are not gated: their rows have a gradient in their task alone.

    The optimizer moves phi (P + U,): the shared weights, and e. After each step theta (P,) is the
    network of the present task with binary gates.
    """

    forbids_weight_decay, allows_clipping = True, False

    def __init__(self, learner: Learner, c: NonNegative, s_max: AtLeastOne) -> None:
        super().__init__(learner)
        self.c, self.s_max = c, s_max
        self.units = HiddenUnits(learner.net, learner.flat, "hat")
        self.used = learner.flat.grad.new_zeros(self.units.count)  # (U,): 0 or 1
        self.price = torch.zeros_like(self.used)  # (U,): of each gate, in the objective
        self.free = torch.ones_like(learner.flat.grad)  # (P,): factors of the gradient (eq. 2)
        self.steps = self.used.new_zeros((), dtype=torch.int64)  # of this task
        self.batches = 0  # of an epoch of this task; 0 before its first batch
        self.shared: Tensor | None = None  # (P,), as the last task left them
        self.learned: dict[int, Tensor] = {}  # the gates (U,) bool of each task

    @torch.no_grad()
    def begin_task(self, task: Task) -> None:
        theta, unused = self.learner.flat.theta.detach(), 1 - self.used
        self.free = 1 - self.units.smaller(self.used)
        self.price = self.c * unused / unused.sum().clamp(min=1)
        self.steps.zero_()
        self.batches = 0
        e = to_device_of(torch.randn(self.units.count, generator=self.learner.rng), theta)
        phi = torch.cat([theta, e.to(theta.dtype)])
        self.learner.restart_optimizer(nn.Parameter(phi))

    def observe(self, batch: Batch) -> Tensor:
        task, theta = self.learner.task, self.learner.flat.theta.detach()
        assert task is not None
        if not self.batches:
            self.batches = task.batches_per_epoch(len(batch.y))
        shared, e = self._parts(self.learner.optimized.detach())
        s = self._scale()
        gates = self.units.spread((s * e).sigmoid())
        torch.mul(shared, gates, out=theta)
        loss = self.learner.gradient(batch)
        self._pull(s, gates)
        self.learner.optimizer.step()
        e.clamp_(-LARGEST_EMBEDDING, LARGEST_EMBEDDING)
        torch.mul(shared, self.units.spread((e > 0).to(e.dtype)), out=theta)
        self.steps.add_(1)
        return loss

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        shared, e = self._parts(self.learner.optimized.detach())
        self.learned[task.id] = e > 0
        self.used = torch.maximum(self.used, (e > 0).to(e.dtype))
        self.shared = shared.clone()
        self.learner.flat.theta.copy_(shared)
        self.ready.cache_clear()

    def network(self, task: int) -> Snapshot | None:
        if task not in self.learned or self.shared is None:
            return None
        gates = self.units.spread(self.learned[task].to(self.shared.dtype))
        return Snapshot(self.shared * gates, {})

    def capacity(self) -> dict[str, float]:
        """The share of the hidden units that tasks use."""
        return {"used": int(self.used.sum()) / self.units.count}

    def _scale(self) -> Tensor:
        """The present s (eq. 3), a scalar on the device; s_max where an epoch is one batch."""
        first, done = 1 / self.s_max, (self.steps % self.batches).to(self.used.dtype)
        done = done / (self.batches - 1) if self.batches > 1 else done + 1
        return first + (self.s_max - first) * done

    @torch.no_grad()
    def _pull(self, s: Tensor, gates: Tensor) -> None:
        """Turn the gradient in theta into that in phi.

        gates  (P,): those by which the shared weights were multiplied
        """
        phi, slope = self.learner.optimized, self.learner.flat.grad
        assert phi.grad is not None
        shared, e = self._parts(phi.detach())
        to_shared, to_e = self._parts(phi.grad)
        torch.mul(slope * gates, self.free, out=to_shared)
        to_gates = self.units.sums(slope * shared) + self.price
        soft = e.sigmoid()
        clipped = (LARGEST_PRODUCT - (s * e).abs()).clamp(max=0).exp()
        torch.mul(to_gates, self.s_max * soft * (1 - soft) * clipped, out=to_e)

    def _parts(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """The shared weights (P,) and e (U,): views of phi."""
        shared, e = phi.split([len(self.free), self.units.count])
        return shared, e

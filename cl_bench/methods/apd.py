"""APD: additive parameter decomposition (Yoon et al. 2020, arXiv:1902.09432; its own numbers)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cl_bench.base.bounds import NonNegative
from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.optim import KNOWN_STEP_SIZES, step_sizes
from cl_bench.core.state import stored_as
from cl_bench.core.types import Batch, Snapshot, Task
from cl_bench.methods.base import Separate
from cl_bench.methods.shared.capacity import size
from cl_bench.methods.shared.low_rank import layers_of
from cl_bench.methods.shared.proximal import PiecewiseLinear, soft


@stored_as("apd_task")
@dataclass
class APDTask:
    """What a task has of its own: tau, and at all other places of theta its parameters; M."""

    tau: Tensor  # (P,)
    mask: Tensor  # (V,): a share of each output of each layer
    buffers: dict[str, Tensor]


class APD(Separate):
    """Weights of task i: M_i * sigma + tau_i (eq. 1): shared, masked by output, and sparse ones.

    Task t moves sigma, tau_t, M_t (a sigmoid) and all tau_i of the past, down
    loss + l1 (|tau_1|_1 + ... + |tau_t|_1) + l2 sum_{i<t} |theta_i - (M_i * sigma + tau_i)|^2,
    theta_i what task i had before (eq. 3). Given sigma the best tau_i is known, soft thresholding
    by l1 / (2 l2), and what is left of it for sigma is a Huber loss. The past is put there after
    the task, and entries of tau up to `threshold` are set to 0: so no weight of the past goes
    further in a task than l1 / (2 l2) + threshold. Meanwhile sigma and tau_t follow the loss, and
    after each step the L1 terms theirs, by a proximal step in the optimizer's own metric
    (`optim.stride`), for which the Huber loss is taken without its round tip: l1 |tau_i|.

    Biases, batch norm and heads are each task's own. M_i stays as task i left it (there it may
    move on), and there is no hierarchical sharing of the tau_i: the paper's APD(1).
    """

    forbids_weight_decay = True

    def __init__(
        self, learner: Learner, l1: NonNegative, l2: NonNegative, threshold: NonNegative
    ) -> None:
        super().__init__(learner)
        self.l1, self.l2, self.threshold = l1, l2, threshold
        self.names = [name for name, _ in layers_of(learner.flat, learner.net.head)]
        if not self.names:
            raise UserError(
                "method=apd: it shares linear and convolutional layers before the head, and this "
                "model trains none; use another model"
            )
        self.sigma: Tensor | None = None  # (P,), as the last task left it; 0 beside the weights
        self.price = torch.zeros_like(learner.flat.grad)  # l1 at the weights
        self.past: PiecewiseLinear | None = None
        self.learned: dict[int, APDTask] = {}
        self.single = 0  # numbers of the first task's network

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        if config["method"]["l2"] == 0:
            raise UserError("method.l2=0: nothing would hold the past; use a number above 0")
        optimizer = config["optimizer"]["_target_"]
        if optimizer not in KNOWN_STEP_SIZES:
            raise UserError(
                f"optimizer._target_={optimizer}: method=apd must know how far a step goes; use "
                f"one of {', '.join(KNOWN_STEP_SIZES)}"
            )

    def begin_task(self, task: Task) -> None:
        learner, theta = self.learner, self.learner.flat.theta.detach()
        outputs = sum(learner.flat.shapes[name][0] for name in self.names)
        start = theta.clone()
        if self.sigma is None:
            self.single = size(learner, learner.heads.competing_in(task))
            self.sigma = torch.zeros_like(theta)
            for mine, there in zip(self._weights(self.sigma), self._weights(theta), strict=True):
                mine.copy_(2 * there)  # sigmoid(0) is a half
        for weight, price in zip(self._weights(start), self._weights(self.price), strict=True):
            weight.zero_()
            price.fill_(self.l1)
        tasks = self.learned.values()
        if tasks:
            masks = [self._wide(mine.mask) for mine in tasks]
            taus = [mine.tau.where(self.price > 0, 0.0) for mine in tasks]
            self.past = PiecewiseLinear.of(self.sigma, self.l1, taus, masks)
        phi = torch.cat([self.sigma, start, theta.new_zeros(outputs)])
        learner.restart_optimizer(nn.Parameter(phi))

    def observe(self, batch: Batch) -> Tensor:
        loss = self.learner.gradient(batch)
        self._pull()
        self.learner.optimizer.step()
        self._proximal()
        self._show()
        return loss

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        assert self.sigma is not None
        sigma, tau, v = self._parts(self.learner.optimized.detach())
        reach = self.l1 / (2 * self.l2)
        for past in self.learned.values():
            rows = map(self._weights, (past.tau, self.sigma, sigma))
            for mine, before, now, share in zip(*rows, self._shares(past.mask), strict=True):
                mine.addcmul_(before - now, share)
                self._prune(mine.sub_(mine.clamp(-reach, reach)))
        for weight in self._weights(tau):
            self._prune(weight)
        mine = APDTask(tau.clone(), v.sigmoid(), self.learner.snapshot().buffers)
        self.learned[task.id], self.sigma, self.past = mine, sigma.clone(), None
        for weight, shared in zip(
            self._weights(self.learner.flat.theta.detach()), self._weights(self.sigma), strict=True
        ):
            weight.copy_(shared / 2)  # where the next task starts
        self.ready.cache_clear()

    def network(self, task: int) -> Snapshot | None:
        if task not in self.learned or self.sigma is None:
            return None
        mine = self.learned[task]
        return Snapshot(self._sum(self.sigma, mine.tau, mine.mask), mine.buffers)

    def capacity(self) -> dict[str, float]:
        """All numbers that prediction needs, and how many more than one network's."""
        if self.sigma is None or not self.learned:
            return {}
        flat, capacity = self.learner.flat, 0
        shared = sum(flat.shapes[name].numel() for name in self.names)
        for task, mine in self.learned.items():
            alive = sum(int(weight.count_nonzero()) for weight in self._weights(mine.tau))
            own = size(self.learner, self.learner.heads.live[task]) - shared
            capacity += alive + own + len(mine.mask)
        capacity += shared
        return {"capacity": capacity, "growth": capacity / self.single - 1}

    @torch.no_grad()
    def _pull(self) -> None:
        """The gradient in sigma, tau and the mask, from the one that theta has."""
        phi, slope = self.learner.optimized, self.learner.flat.grad
        assert phi.grad is not None
        sigma, _, v = self._parts(phi.detach())
        to_sigma, to_tau, to_v = self._parts(phi.grad)
        to_tau.copy_(slope)
        to_sigma.zero_()
        mask = v.sigmoid()
        sloped = zip(self._weights(slope), self._weights(sigma), strict=True)
        through = [(g * s).flatten(1).sum(1) for g, s in sloped]
        torch.mul(torch.cat(through), mask * (1 - mask), out=to_v)
        rows = map(self._weights, (slope, to_sigma))
        for g, g_sigma, share in zip(*rows, self._shares(mask), strict=True):
            torch.mul(g, share, out=g_sigma)

    @torch.no_grad()
    def _proximal(self) -> None:
        """The steps of the L1 terms of tau, and of the past's in sigma."""
        phi, count = self.learner.optimized, len(self.price)
        step = step_sizes(self.learner.optimizer, phi)
        sigma, tau, _ = self._parts(phi.detach())
        tau.copy_(soft(tau, step[count : 2 * count] * self.price))
        if self.past is not None:
            sigma.copy_(self.past.step(sigma, step[:count]))

    def _wide(self, mask: Tensor) -> Tensor:
        """The mask (V,) over theta (P,); 0 beside the weights."""
        out = torch.zeros_like(self.price)
        for weight, share in zip(self._weights(out), self._shares(mask), strict=True):
            weight.copy_(share.expand_as(weight))
        return out

    def _prune(self, weight: Tensor) -> None:
        weight.masked_fill_(weight.abs() <= self.threshold, 0.0)

    @torch.no_grad()
    def _show(self) -> None:
        """Be the network of this task."""
        sigma, tau, v = self._parts(self.learner.optimized.detach())
        self.learner.flat.theta.copy_(self._sum(sigma, tau, v.sigmoid()))

    def _sum(self, sigma: Tensor, tau: Tensor, mask: Tensor) -> Tensor:
        theta = tau.clone()
        parts = zip(self._shares(mask), self._weights(sigma), self._weights(theta), strict=True)
        for share, shared, weight in parts:
            weight.addcmul_(shared, share)
        return theta

    def _parts(self, phi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """sigma (P,), tau (P,) and v (V,): views of phi."""
        count = len(self.price)
        sigma, tau, v = phi.split([count, count, len(phi) - 2 * count])
        return sigma, tau, v

    def _weights(self, vector: Tensor) -> list[Tensor]:
        """The layers' weights (out, in, ...) in a vector (P,): views of it."""
        views = self.learner.flat.views(vector)
        return [views[name] for name in self.names]

    def _shares(self, mask: Tensor) -> list[Tensor]:
        """The mask (V,) as (out, 1, ...) of each layer."""
        shapes = [self.learner.flat.shapes[name] for name in self.names]
        parts = mask.split([shape[0] for shape in shapes])
        return [p.view(-1, *[1] * (len(s) - 1)) for p, s in zip(parts, shapes, strict=True)]

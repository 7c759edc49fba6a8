"""APD: additive parameter decomposition (Yoon et al. 2020, arXiv:1902.09432, equation numbers)."""

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
from cl_bench.methods.shared.low_rank import required_layers
from cl_bench.methods.shared.proximal import PiecewiseLinear, soft_threshold


@stored_as("apd_task")
@dataclass
class APDTask:
    """The parameters of one learned task: tau, its biases, batch norm and head, and its mask M."""

    tau: Tensor  # (P,)
    mask: Tensor  # (V,): a share of each output of each layer
    buffers: dict[str, Tensor]


class APD(Separate):
    """The weights of linear and convolutional layers of task i are M_i * sigma + tau_i (eq. 1).

    sigma is shared by all tasks, M_i a mask with one number for each output, tau_i sparse.
    While task t is trained, sigma, tau_t, M_t (a sigmoid) and the tau_i of past tasks minimise
      loss + l1 (|tau_1|_1 + ... + |tau_t|_1) + l2 sum_{i<t} |theta_i - (M_i * sigma + tau_i)|^2,
    where theta_i are the weights of task i before (eq. 3). Given sigma, the best tau_i has a closed
    form: soft thresholding by l1 / (2 l2). What remains as a function of sigma is a Huber loss.
    - In each step, sigma, tau_t and M_t follow the gradient of the loss. Then comes a proximal step
      of the L1 terms, in the metric of the optimizer (`optim.step_sizes`). For sigma the Huber
      loss is taken without its quadratic part, as l1 |tau_i|.
    - After the task, the tau_i of past tasks are set to their best values, and entries of tau up to
      `threshold` to 0. No weight of a past task changes by more than l1 / (2 l2) + threshold.

    All parameters but those weights, such as biases, batch norm and heads, are separate for each
    task. Two differences from the paper: M_i does not change after task i, and the tau_i are not
    shared hierarchically (its APD(1)).
    """

    forbids_weight_decay, allows_clipping = True, False

    def __init__(
        self, learner: Learner, l1: NonNegative, l2: NonNegative, threshold: NonNegative
    ) -> None:
        super().__init__(learner)
        self.l1, self.l2, self.threshold = l1, l2, threshold
        self.names = required_layers(learner.flat, learner.head, "apd")
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
            masks = [self._full_mask(mine.mask) for mine in tasks]
            taus = [mine.tau.where(self.price > 0, 0.0) for mine in tasks]
            self.past = PiecewiseLinear.of(self.sigma, self.l1, taus, masks)
        phi = torch.cat([self.sigma, start, theta.new_zeros(outputs)])
        learner.restart_optimizer(nn.Parameter(phi))

    def observe(self, batch: Batch) -> Tensor:
        loss = self.learner.gradient(batch)
        self._pull()
        self.learner.optimizer.step()
        self._proximal()
        self._write_weights()
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
        """The count of numbers that prediction needs, and its excess over one network's."""
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
        """Turn the gradient in theta into those in sigma, tau and the mask, by the chain rule."""
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
        """Take the proximal steps of the L1 terms: of tau_t, and of past tasks in sigma."""
        phi, count = self.learner.optimized, len(self.price)
        step = step_sizes(self.learner.optimizer, phi)
        sigma, tau, _ = self._parts(phi.detach())
        tau.copy_(soft_threshold(tau, step[count : 2 * count] * self.price))
        if self.past is not None:
            sigma.copy_(self.past.step(sigma, step[:count]))

    def _full_mask(self, mask: Tensor) -> Tensor:
        """The mask (V,), repeated over theta (P,): 0 for all that are not weights."""
        out = torch.zeros_like(self.price)
        for weight, share in zip(self._weights(out), self._shares(mask), strict=True):
            weight.copy_(share.expand_as(weight))
        return out

    def _prune(self, weight: Tensor) -> None:
        weight.masked_fill_(weight.abs() <= self.threshold, 0.0)

    @torch.no_grad()
    def _write_weights(self) -> None:
        """Write the weights of this task into theta."""
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

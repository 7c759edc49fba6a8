"""HALRP: Hessian-aware low-rank perturbation (Li et al. 2024; numbers are the paper's).

The network of the first task is the base and does not change. A later task is trained in two parts:
- warm-up: all its weights start from the base and move freely, to find where they end up;
- then each layer's weights become W = diag(R) W0 diag(S) + U V (`shared/low_rank.py`), and R, S, U
  and V are trained. The rank of U V in each layer is chosen so that most of the loss is kept: a
  residual costs half its square times the layer's importance, which is its curvature (Theorem 1).
All other parameters, such as biases, batch norm and head, are separate for each task.
reference_compat=true also does what the authors' code does, but not their paper.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cl_bench.base.bounds import Count, Index, NonNegative, Share
from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Snapshot, Task
from cl_bench.curvature.base import Estimator
from cl_bench.curvature.layer_hessian import LayerHessian
from cl_bench.methods.base import Separate
from cl_bench.methods.shared import low_rank
from cl_bench.methods.shared.capacity import Account, HALRPProgress, HALRPTask, Pruning
from cl_bench.methods.shared.importance import Importance, check_importance, layer_importances
from cl_bench.methods.shared.low_rank import Decomposition, Layout, layers_of


class HALRP(Separate):
    """loss + l2/2 (|R - 1|^2 + |S - 1|^2 + |U|^2 + |V|^2) + l1 (|U|_1 + |V|_1).

    warm_up      epochs of warm-up, out of schedule.epochs
    importance   of a layer, from its curvature H:
      norm         |H|_F, as in Theorem 1; curvature=layer_hessian is the theorem's own Hessian
      trace        the trace of H
      mean         the mean of its diagonal; with curvature=diag_batched the authors' scalar
      none         all layers have the same importance
      flat         no estimate: all layers get the same rank
    share        fraction of the estimated loss that the ranks keep; unused with a budget
    budget       None, or the size of a task's factors, as a multiple of the base: the directions
                 that keep most loss for their size are chosen
    cap          largest rank
    rounds       of fitting R, then S
    growth       None, or the size of all that tasks add, as a multiple of the base
    pruning      how `growth` is kept:
      loss         after each task, the entries of all tasks that matter least for the loss are set
                   to 0: importance x the change of the weight (`HALRPTask.losses`)
      magnitude    the smallest entries, the same fraction of each task, as in the authors' code
      ranks        no entries: each task has a budget, its equal part of `growth`
    threshold    after a task, entries of at most this size are set to 0 as well

    reference_compat: R and S decay to 0; each layer has rank 1 at least, and exactly 1 if share is
    1; `growth` does not count what cannot be pruned. Three more things in the authors' code are not
    part of the method and are left out: samples are never shuffled, learning rates are divided by a
    constant of 50,000 samples, and batch norm uses batch statistics at test time.
    """

    forbids_weight_decay, curvature_is_penalty, allows_clipping = True, False, False

    def __init__(
        self,
        learner: Learner,
        curvature: Estimator | LayerHessian,
        warm_up: Count,
        importance: Importance,
        share: Share,
        budget: NonNegative | None,
        cap: Index,
        rounds: Count,
        l1: NonNegative,
        l2: NonNegative,
        growth: NonNegative | None,
        pruning: Pruning,
        threshold: NonNegative,
        reference_compat: bool,
    ) -> None:
        super().__init__(learner)
        self.estimate, self.warm_up = curvature, warm_up
        self.importance: Importance = importance
        self.share, self.budget, self.cap, self.rounds = share, budget, cap, rounds
        self.l1, self.l2 = l1, l2
        self.compat = reference_compat
        self.account = Account(learner, growth, pruning, threshold, reference_compat)
        self.base: Snapshot | None = None
        self.first = -1  # the task that the base has learned
        self.learned: dict[int, HALRPTask] = {}
        self.progress = HALRPProgress()

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        own, epochs = config["method"], config["schedule"]["epochs"]
        check_importance(own["importance"], own["curvature"])
        if own["warm_up"] >= (min(epochs) if isinstance(epochs, list) else epochs):
            raise UserError(
                f"method.warm_up={own['warm_up']}: of schedule.epochs={epochs} some must be left "
                "for the factors; use fewer, or more epochs"
            )
        if own["growth"] is not None and own["pruning"] == "ranks" and own["budget"] is not None:
            raise UserError(
                f"method.budget={own['budget']}: with method.pruning=ranks, ranks follow from "
                "method.growth alone; use pruning=loss or magnitude, or growth=null"
            )

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        own = config["method"]
        free, ranks = own["growth"] is None, own["pruning"] == "ranks"
        idle = {
            "curvature": (kind := own["importance"]) in ("none", "flat"),
            "share": kind == "flat" or own["budget"] is not None or (ranks and not free),
            "pruning": free,
            "threshold": free or ranks,
        }
        return {f"method.{key}" for key, yes in idle.items() if yes}

    def check_network(self, task: Task) -> None:
        if self.importance not in ("none", "flat"):
            self.estimate.check(self.learner, task)

    def begin_task(self, task: Task) -> None:
        self.progress = HALRPProgress()
        self.check_network(task)
        if self.base is None:
            self.account.start(task)

    def observe(self, batch: Batch) -> Tensor:
        task = self.learner.task
        assert task is not None
        progress, warm_up = self.progress, self.warm_up * len(task)
        if self.base is not None and progress.layout is None and progress.samples >= warm_up:
            self._perturb(self.base, task)
        loss = self.learner.gradient(batch)
        progress.samples += len(batch.y)
        if progress.layout is not None:
            self._move(progress.layout, self.learner.optimized)
        else:
            if self.base is None:
                self._decay()
            self.learner.step()
        return loss

    def end_task(self, task: Task) -> None:
        self.ready.cache_clear()
        if self.base is None:
            self.base, self.first = self.learner.snapshot(), task.id
            return
        layout, worth = self.progress.layout, self.progress.worth
        assert layout is not None and worth is not None, "warm_up leaves steps to the factors"
        phi, buffers = self.learner.optimized.detach().clone(), self.learner.snapshot().buffers
        self.learned[task.id] = HALRPTask(layout, phi, buffers, worth)
        self.learner.restore(self.base)
        self.account.prune(self.learned.values())

    def network(self, task: int) -> Snapshot | None:
        if task not in self.learned or self.base is None:
            return self.base if task == self.first else None
        mine, theta = self.learned[task], self.base.theta.clone()
        mine.layout.assemble(self.learner.flat, self.base.theta, mine.phi, theta)
        return Snapshot(theta, mine.buffers)

    def capacity(self) -> dict[str, float]:
        """The count of numbers that prediction needs, and its excess over one network's."""
        return self.account.capacity(self.learned.values())

    def _decay(self) -> None:
        """Add the gradient of l2/2 |W|^2 for the weights of the base that later tasks scale."""
        flat = self.learner.flat
        values, slopes = flat.views(flat.theta.detach()), flat.views(flat.grad)
        for name, _ in layers_of(flat, self.learner.head):
            slopes[name].add_(values[name], alpha=self.l2)

    def _perturb(self, base: Snapshot, task: Task) -> None:
        """End the warm-up: replace the free weights by scalings and low-rank factors."""
        learner, flat = self.learner, self.learner.flat
        warm = flat.theta.detach()
        if not bool(warm.isfinite().all()):
            raise UserError(
                f"task {task.id} has diverged in method.warm_up={self.warm_up}: lower optimizer.lr"
            )
        old, new = flat.views(base.theta), flat.views(warm)
        names, shapes = zip(*layers_of(flat, learner.head), strict=True)
        parts = [low_rank.decompose(old[name], new[name], self.rounds) for name in names]
        importances = self._importances(names, task)
        ranks = self._ranks(parts, shapes, importances)
        self.progress.worth = importances * importances.new_tensor([p.places for p in parts])
        apart = self.account.own(learner.heads.competing_in(task))
        layout = Layout(names, shapes, tuple(ranks), apart)
        phi = warm.new_zeros(layout.size)
        layers, own = layout.split(phi)
        for part, rank, places in zip(parts, ranks, layers, strict=True):
            for place, value in zip(places, part.factors(rank), strict=True):
                place.copy_(value)
        own.copy_(warm[layout.own])
        learner.restart_optimizer(nn.Parameter(phi))
        layout.assemble(flat, base.theta, phi, warm)
        self.progress.layout = layout

    @torch.no_grad()
    def _move(self, layout: Layout, phi: nn.Parameter) -> None:
        """Take one step of phi, the factors (Q,), by the gradient in theta."""
        assert self.base is not None and phi.grad is not None
        flat, base = self.learner.flat, self.base.theta
        layout.pull(flat, base, phi, flat.grad, phi.grad)
        ends = layout.scales, layout.scales + layout.factors
        scales, factors = slice(ends[0]), slice(*ends)
        phi.grad[scales].add_(phi[scales] if self.compat else phi[scales] - 1, alpha=self.l2)
        phi.grad[factors].add_(phi[factors], alpha=self.l2)
        phi.grad[factors].add_(phi[factors].sign(), alpha=self.l1)
        self.learner.optimizer.step()
        layout.assemble(flat, base, phi, flat.theta)

    def _ranks(
        self, parts: list[Decomposition], shapes: Iterable[tuple[int, int]], importances: Tensor
    ) -> list[int]:
        costs, limits = [sum(shape) for shape in shapes], [len(part.sigma) for part in parts]
        capped = [min(limit, self.cap) for limit in limits]
        found = low_rank.scores(parts, importances)
        room = self.account.room(self.first)
        if self.budget is not None:
            room = int(self.budget * self.account.single)
        if room is not None:
            if self.importance == "flat":
                return low_rank.equal_ranks(capped, costs, room)
            return low_rank.by_budget(
                [s[:most] for s, most in zip(found, capped, strict=True)], costs, room
            )
        if self.importance == "flat":
            return capped
        if self.compat and self.share >= 1:
            return [1] * len(parts)  # its argmax over nothing
        ranks = [max(rank, int(self.compat)) for rank in low_rank.by_share(found, self.share)]
        return [min(rank, most) for rank, most in zip(ranks, capped, strict=True)]

    def _importances(self, names: tuple[str, ...], task: Task) -> Tensor:
        """(L,): the cost of a unit of squared residual in each layer, up to a common factor."""
        flat, kind = self.learner.flat, self.importance
        if kind in ("none", "flat"):
            return flat.grad.new_ones(len(names))
        found = self.estimate(self.learner, task)
        worth = layer_importances(found, flat, names, kind)
        if not bool(worth.isfinite().all()):
            raise UserError(
                f"task {task.id}: the curvature of a layer is not finite after method.warm_up="
                f"{self.warm_up}: lower optimizer.lr, or use another curvature"
            )
        return worth

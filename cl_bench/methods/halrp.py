"""HALRP: Hessian-aware low-rank perturbation (Li et al. 2024; numbers are the paper's).

The first task's network stays as it is, the base. Each later task is learned freely for a while
from the base, in order to see where its weights want to go; then scalings and low-rank factors take
over (`lowrank`), of a rank for each layer that keeps so much of what the loss would lose by half
the layer's importance times its residual (Theorem 1), and they are trained to the end. Biases,
batch norm and head are the task's own. What the authors' code does by oversight is left out unless
reference_compat.
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
from cl_bench.methods.shared.capacity import Account, HALRPTask, Pruning
from cl_bench.methods.shared.importance import Importance, check_importance, layer_importances
from cl_bench.methods.shared.low_rank import Decomposition, Layout, layers_of


class HALRP(Separate):
    """loss + l2/2 (|R - 1|^2 + |S - 1|^2 + |U|^2 + |V|^2) + l1 (|U|_1 + |V|_1).

    warm_up      epochs in which a task's weights move freely, of those that the schedule gives it
    importance   of a layer, by its curvature: norm, |H|_F as in Theorem 1 (of layer_hessian: the
                 theorem's own); trace; mean, of the diagonal (of diag_batched: the authors'
                 scalar); none: all layers alike; flat: no estimate, the same rank everywhere
    share        of the estimated loss that ranks keep; not with a budget
    budget       None, or what a task's factors may cost, in sizes of the base: those directions
                 are kept that keep most of the loss for what they cost
    cap          the highest rank
    rounds       of fitting R, then S
    growth       None, or what all tasks together may add, in sizes of the base
    pruning      how that is kept: loss, after each task those entries of all tasks are set to 0
                 that cost it least, by importance x what the weight changes (`HALRPTask.losses`);
                 magnitude, the smallest of each task, in each the same share, as the authors'
                 code; ranks, none are: each task has a budget, its equal part of growth
    threshold    entries up to here are set to 0 then, too

    reference_compat: R and S decay to 0; a layer has a rank of 1 at least, and of 1 if share is 1;
    `growth` leaves out what cannot be pruned. Not method's, and left out: their order of samples
    (never shuffled), learning rates by a constant of 50,000 samples, batch statistics at test time.
    """

    forbids_weight_decay, curvature_is_penalty = True, False

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
        self.seen = 0  # samples of this task
        self.layout: Layout | None = None  # None: weights move freely
        self.worth = learner.flat.grad.new_ones(0)  # of this task's layers: see `HALRPTask`

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        own, epochs = config["method"], config["schedule"]["epochs"]
        check_importance(own["importance"], own["curvature"])
        if own["warm_up"] >= epochs:
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

    def begin_task(self, task: Task) -> None:
        self.seen, self.layout = 0, None
        if self.importance not in ("none", "flat"):
            self.estimate.check(self.learner, task)
        if self.base is None:
            self.account.start(task)

    def observe(self, batch: Batch) -> Tensor:
        task = self.learner.task
        assert task is not None
        free = self.seen < self.warm_up * len(task)
        if self.base is not None and self.layout is None and not free:
            self._perturb(self.base, task)
        loss = self.learner.gradient(batch)
        self.seen += len(batch.y)
        if self.layout is not None:
            self._move(self.layout, self.learner.optimized)
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
        assert self.layout is not None, "warm_up leaves steps to the factors"
        now = self.learner.snapshot()
        self.learned[task.id] = HALRPTask(
            self.layout, self.learner.optimized.detach().clone(), now.buffers, self.worth
        )
        self.learner.restore(self.base)
        self.account.prune(self.learned.values())

    def network(self, task: int) -> Snapshot | None:
        if task not in self.learned or self.base is None:
            return self.base if task == self.first else None
        mine, theta = self.learned[task], self.base.theta.clone()
        mine.layout.assemble(self.learner.flat, self.base.theta, mine.phi, theta)
        return Snapshot(theta, mine.buffers)

    def capacity(self) -> dict[str, float]:
        """Numbers that prediction needs, and how many more than one network's."""
        return self.account.capacity(self.learned.values())

    def _decay(self) -> None:
        """l2/2 |W|^2 over the weights that later tasks scale."""
        flat = self.learner.flat
        values, slopes = flat.views(flat.theta.detach()), flat.views(flat.grad)
        for name, _ in layers_of(flat, self.learner.net.head):
            slopes[name].add_(values[name], alpha=self.l2)

    def _perturb(self, base: Snapshot, task: Task) -> None:
        """From free weights to scalings and factors."""
        learner, flat = self.learner, self.learner.flat
        warm = flat.theta.detach()
        if not bool(warm.isfinite().all()):
            raise UserError(
                f"task {task.id} has diverged in method.warm_up={self.warm_up}: lower optimizer.lr"
            )
        old, new = flat.views(base.theta), flat.views(warm)
        names, shapes = zip(*layers_of(flat, learner.net.head), strict=True)
        parts = [low_rank.decompose(old[name], new[name], self.rounds) for name in names]
        importances = self._importances(names, task)
        ranks = self._ranks(parts, shapes, importances)
        self.worth = importances * importances.new_tensor([part.places for part in parts])
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
        self.layout = layout

    @torch.no_grad()
    def _move(self, layout: Layout, phi: nn.Parameter) -> None:
        """One step of phi, by the gradient that theta has."""
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
        """(L,): what a unit of squared residual costs in each layer, to a common factor."""
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

"""DLCFT: deep linear continual fine-tuning (Shon et al. 2022, ECCV; equations are the paper's).

The network is linearized (model.linearize), and the loss is squared (criterion=scaled_mse). If
features are frozen or the head is linearized too, the loss of past tasks is exactly the quadratic
of the penalty, and training in sequence equals training on all tasks at once, up to what the
curvature approximates. The paper's head (bilinear) is linear in psi and in (w, b), but not in both
together: there the quadratic is an approximation. Each of these parts is an option.

The paper's text weights the Kronecker factors of past and new tasks (t-1) : t (merging=literal).
Only (t-1)/t : 1/t gives the equality above (tests/test_dlcft.py): merging=count, the default here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, NonNegative, Positive, Share
from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.optim import PLAIN_SGD
from cl_bench.core.types import Batch, Task
from cl_bench.curvature.base import Estimator
from cl_bench.curvature.merging import Merging, path_of, running_mean
from cl_bench.curvature.penalty import Penalty, Step, check_options
from cl_bench.methods.base import Rehearsal


class DLCFT(Rehearsal):
    """loss / t + (t-1)/t (share strength/2 d' H d + (1 - share) replay), d = theta - anchor.

    This is eq. 14; without replay, where share is 1, it is eq. 11.
    memory=growing  store samples only if later tasks bring new classes into the softmax (class-IL)
    precondition    curvature: multiply the gradient of the objective with the inverse of its
                    curvature, as LQF does (Achille et al. 2021, arXiv:2012.11140): that of the new
                    task at its start, and of the penalty, merged. With plain SGD
    damping         added to the curvature, in multiples of its mean eigenvalue
    """

    allows_folding = True

    def __init__(
        self,
        learner: Learner,
        curvature: Estimator,
        merging: Merging,
        strength: NonNegative,
        step: Step,
        every: Count,
        memory: Literal["growing", "never", "always"],
        buffer: Callable[..., Buffer],
        replay: Count,
        share: Share,
        precondition: Literal["none", "curvature"],
        damping: Positive,
    ) -> None:
        super().__init__(learner, buffer)
        self.estimate, self.penalty = curvature, Penalty(learner, merging, strength, step, every)
        self.share = share
        self.policy, self.replay = memory, replay
        self.keeps = memory == "always"
        self.tasks = 0  # past ones
        self.preconditions, self.damping = precondition == "curvature", damping
        self.preconditioner: Any = None  # a Curvature, during a task
        self.mean_eigenvalue = 0.0  # of the preconditioner

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        """Raise UserError unless merging averages over tasks (eq. 11) and new heads start at 0."""
        check_options(config)
        DLCFT._check_preconditioning(config)
        if config["method"]["merging"]["_target_"] != path_of(running_mean):
            raise UserError(
                "merging: method=dlcft weights the past by (t-1)/t itself, which is right for a "
                "mean over tasks; use merging=count or literal"
            )
        head_init = config["model"].get("head_init")
        if config["scenario"]["name"] == "class" and head_init != "zero":
            raise UserError(
                f"model.head_init={head_init}: class-incremental, method=dlcft holds units that "
                "are still to come at zero; use model.head_init=zero (and "
                "model.head_mode=bilinear or head_only)"
            )

    @staticmethod
    def _check_preconditioning(config: dict[str, Any]) -> None:
        """Raise UserError where a preconditioned gradient does not go with the optimizer."""
        method, optimizer = config["method"], config["optimizer"]["_target_"]
        if method["precondition"] == "none":
            return
        if optimizer not in PLAIN_SGD:
            raise UserError(
                f"method.precondition=curvature: optimizer._target_={optimizer} rescales gradients "
                "by itself; use optimizer=sgd, or method.precondition=none"
            )
        for key, wanted in (("step", "explicit"), ("every", 1)):
            if method[key] != wanted:
                raise UserError(
                    f"method.{key}={method[key]}: with method.precondition=curvature the penalty's "
                    f"gradient is preconditioned too, in each step; use method.{key}={wanted}"
                )

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        stored = {"growing": config["scenario"]["name"] == "class", "always": True, "never": False}
        keeps = stored[config["method"]["memory"]]
        found = {"method.damping"} if config["method"]["precondition"] == "none" else set()
        if keeps:
            return found | {"method.buffer.insert"}  # a task is offered once, at its end
        return found | {f"method.{key}" for key in ("buffer", "replay", "share")}

    def check_network(self, task: Task) -> None:
        self.estimate.check(self.learner, task)

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.check_network(task)
        if self.policy == "growing" and not self.tasks:
            self.keeps = growing(self.learner)
        share = self.share if self.keeps else 1.0
        self.penalty.factor = share * self.tasks / (self.tasks + 1)
        if self.preconditions:
            self.preconditioner = self._curvature_of_objective(task)
            trace = float(self.preconditioner.trace())
            self.mean_eigenvalue = trace / self.learner.flat.theta.numel()
        else:
            self.penalty.check(self.learner)

    def _curvature_of_objective(self, task: Task) -> Any:
        """The curvature of the objective; that of replayed samples is taken for the penalty's."""
        curvature, weight = self.estimate(self.learner, task), 1 / (self.tasks + 1)
        if not self.penalty.quadratics:
            return curvature
        replayed = 1 - self.share if self.keeps else 0.0
        past = self.penalty.factor * self.penalty.strength + replayed * (1 - weight)
        return curvature.merge(self.penalty.quadratics[0].curvature, weight, past)

    def _precondition(self, gradient: Tensor) -> Tensor:
        """(H + damping I)^-1 gradient (P,), with H the curvature of the objective."""
        return self.preconditioner.solve(gradient, self.damping * self.mean_eigenvalue)

    def observe(self, batch: Batch) -> Tensor:
        if self.memory.empty:
            loss = self.learner.gradient_of(self._new, batch)
        else:
            old = self.memory.sample(self.replay)
            loss = self.learner.gradient_of(self._new_and_old, batch, old)
        self.learner.precondition = self._precondition if self.preconditions else None
        self.penalty.move(self.learner)
        return loss

    def end_task(self, task: Task) -> None:
        self.learner.precondition = self.preconditioner = None
        self.penalty.end_task(self.learner)
        self.penalty.add(self.learner, self.estimate(self.learner, task), task)
        self.tasks += len(task.t.unique())
        if self.keeps:
            self.memory.add(Batch(task.x, task.y, task.t))
            super().end_task(task)

    def _new(self, theta: Tensor, batch: Batch) -> Tensor:
        return self.learner.loss(theta, batch) / (self.tasks + 1)

    def _new_and_old(self, theta: Tensor, batch: Batch, old: Batch) -> Tensor:
        """The losses on new and old samples, by one forward pass."""
        losses = self.learner.losses(theta, batch.cat(old))
        new, before = losses.split([len(batch.y), len(old.y)])
        past = (1 - self.share) * self.tasks
        return (new.mean() + past * before.mean()) / (self.tasks + 1)


def growing(learner: Learner) -> bool:
    """Whether later tasks bring classes that do not compete yet."""
    return learner.heads.live_at_end is not None and bool(
        torch.any(learner.heads.live_at_end & ~learner.heads.live)
    )

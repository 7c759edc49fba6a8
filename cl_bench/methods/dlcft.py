"""DLCFT: deep linear continual fine-tuning (Shon et al. 2022, ECCV; equations are the paper's).

The network is linearized (model.linearize), the loss squared (criterion=scaled_mse). On frozen
features, or with a linearized head, the loss of the past is the very quadratic that the penalty
holds, and training in sequence is training on all at once, but for what the curvature leaves out.
The paper's head (bilinear) is linear in psi and in (w, b), but not in both: there the quadratic is
an approximation too. Every part is an option of its own.

Its text weights Kronecker factors by (t-1) : t; only (t-1)/t : 1/t, merging=count, gives that
equality (tests/test_dlcft.py), and is the default here; merging=literal is the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, NonNegative, Share
from cl_bench.base.exceptions import UserError
from cl_bench.core.buffer import Buffer
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Task
from cl_bench.curvature.base import Estimator
from cl_bench.curvature.merging import Merging, path_of, running_mean
from cl_bench.curvature.penalty import Penalty, Step, check_options
from cl_bench.methods.base import Rehearsal


class DLCFT(Rehearsal):
    """loss / t + (t-1)/t (share strength/2 d' H d + (1 - share) replay), d = theta - anchor.

    Eq. 11 where nothing is replayed (share is 1 then), eq. 14 where something is: memory=growing
    keeps samples if later tasks bring new competitors (class-IL).
    """

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
    ) -> None:
        super().__init__(learner, buffer)
        self.estimate, self.penalty = curvature, Penalty(learner, merging, strength, step, every)
        self.share = share
        self.policy, self.replay = memory, replay
        self.keeps = memory == "always"
        self.tasks = 0  # past ones

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        """UserError unless merging averages over tasks (eq. 11) and new heads start at 0 (3.3)."""
        check_options(config)
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
    def unused(config: dict[str, Any]) -> set[str]:
        stored = {"growing": config["scenario"]["name"] == "class", "always": True, "never": False}
        keeps = stored[config["method"]["memory"]]
        if keeps:
            return {"method.buffer.insert"}  # a task is offered once, at its end
        return {f"method.{key}" for key in ("buffer", "replay", "share")}

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.estimate.check(self.learner, task)
        if self.policy == "growing" and not self.tasks:
            self.keeps = growing(self.learner)
        share = self.share if self.keeps else 1.0
        self.penalty.factor = share * self.tasks / (self.tasks + 1)
        self.penalty.check(self.learner)

    def observe(self, batch: Batch) -> Tensor:
        if not len(self.memory):
            loss = self.learner.gradient_of(self._new, batch)
        else:
            old = self.memory.sample(self.replay)
            loss = self.learner.gradient_of(self._new_and_old, batch, old)
        self.penalty.move(self.learner)
        return loss

    def end_task(self, task: Task) -> None:
        self.penalty.end_task(self.learner)
        self.penalty.add(self.learner, self.estimate(self.learner, task), task)
        self.tasks += len(task.t.unique())
        if self.keeps:
            self.memory.add(Batch(task.x, task.y, task.t))
            super().end_task(task)

    def _new(self, theta: Tensor, batch: Batch) -> Tensor:
        return self.learner.loss(theta, batch) / (self.tasks + 1)

    def _new_and_old(self, theta: Tensor, batch: Batch, old: Batch) -> Tensor:
        """Both losses by one forward pass."""
        losses = self.learner.losses(theta, batch.cat(old))
        new, before = losses.split([len(batch.y), len(old.y)])
        past = (1 - self.share) * self.tasks
        return (new.mean() + past * before.mean()) / (self.tasks + 1)


def growing(learner: Learner) -> bool:
    """Whether classes will compete later that do not yet."""
    return learner.heads.live_at_end is not None and bool(
        torch.any(learner.heads.live_at_end & ~learner.heads.live)
    )

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

    This is eq. 14; without replay, where share is 1, it is eq. 11.
    memory=growing  store samples only if later tasks bring new classes into the softmax (class-IL)
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
        """Raise UserError unless merging averages over tasks (eq. 11) and new heads start at 0."""
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

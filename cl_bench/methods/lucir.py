"""LUCIR: learning a unified classifier by rebalancing (Hou et al. 2019, CVPR)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench.base.bounds import Count, NonNegative
from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch, Snapshot, Task
from cl_bench.methods.shared.contrast import mean_where
from cl_bench.methods.shared.exemplars import Exemplars
from cl_bench.methods.shared.head_rows import refuse_linearised

SMALL = 1e-12  # as in torch.nn.functional.normalize


class LUCIR(Exemplars):
    """A cosine classifier, features that keep their direction, and a margin for old classes.

    The logit of class k is eta c_k, where c_k is the cosine of the features and the head's row of
    k, and eta is learned (eq. 4). For new samples and `replay` exemplars the loss is, after the
    first task,

    cross-entropy of eta c
    + less_forget sqrt(old classes / new classes) (1 - cosine with the old network's features)
    + margin_weight times the mean of max(0, margin - c_y + c_k) over exemplars of old classes and
      the `rivals` new classes k of largest cosine (eq. 8)

    The rows of old classes stay as they are. The row of a class that comes for the first time
    begins in the mean direction of its images, with the mean length of the rows so far. Features
    may have either sign in the paper: model.signed_features=true.
    """

    allows_clipping = False  # the step of eta is not clipped
    scenarios: ClassVar[tuple[str, ...]] = ("task", "class")

    def __init__(
        self,
        learner: Learner,
        buffer: Callable[..., Buffer],
        replay: Count,
        less_forget: NonNegative,
        margin_weight: NonNegative,
        margin: NonNegative,
        rivals: Count,
    ) -> None:
        super().__init__(learner, buffer, replay)
        self.less_forget, self.margin_weight = less_forget, margin_weight
        self.margin, self.rivals = margin, rivals
        self.eta = torch.ones_like(learner.flat.grad[0])
        self.factor = 0.0  # of the loss on directions in this task
        self.moving = torch.ones_like(learner.flat.grad).bool()  # (P,): not the rows of old classes

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        if config["schedule"]["warm_up"] == "head":
            raise UserError(
                "schedule.warm_up=head: fits logits that are linear in the features, and those of "
                "method=lucir are cosines; use schedule.warm_up=none"
            )

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        return set() if config["method"]["margin_weight"] else {"method.margin", "method.rivals"}

    def check_network(self, task: Task) -> None:
        refuse_linearised(self.learner.net, "lucir")

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        old, new = int(self.past.sum()), int((self.now & ~self.past).sum())
        self.factor = self.less_forget * (old / new) ** 0.5
        self.moving = self.learner.heads.in_use(~self.past).bool()
        if self.teacher is not None:
            self._imprint(task)

    def observe(self, batch: Batch) -> Tensor:
        learner = self.learner
        seen = learner.augmented(self.with_old(batch, self.replay))
        old = None if self.teacher is None else learner.snapshot_features(self.teacher, seen)
        arguments = seen, old, self.past, self.now, self.eta.clone()
        loss, cosines = learner.differentiate_with(self._objective, *arguments)
        competing = learner.heads.competing(seen)
        logits = self.eta * cosines
        _, slopes = learner.criterion.losses_and_gradients(logits, seen.y, competing)
        theta = learner.flat.theta.detach()
        before = theta.clone()
        learner.step()
        theta.copy_(torch.where(self.moving, theta, before))  # nor does weight decay move them
        self.eta -= learner.lr * (slopes * cosines).sum(1).mean()
        self.memory.add(batch)
        return loss

    def networks(self) -> Iterator[tuple[str, Snapshot]]:
        snapshot = self.learner.snapshot()
        yield "", snapshot._replace(theta=self._classifier())

    def predict(self, batch: Batch) -> Tensor:
        return self.learner.logits(self._classifier(), batch)

    def _objective(
        self,
        theta: Tensor,
        seen: Batch,
        before: Tensor | None,
        past: Tensor,
        now: Tensor,
        eta: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the cosines (B, K) of all classes."""
        learner = self.learner
        features, products = learner.features_and_logits(theta, seen, F.normalize)
        cosines = products / features.norm(dim=1, keepdim=True).clamp(min=SMALL)
        competing = learner.heads.competing(seen)
        loss = learner.criterion(eta * cosines, seen.y, competing).mean()
        if before is None:
            return loss, cosines
        kept = 1 - F.cosine_similarity(features, before.to(features.dtype), dim=1)
        loss = loss + self.factor * kept.mean()
        return loss + self.margin_weight * self._ranking(cosines, seen.y, past, now), cosines

    def _ranking(self, cosines: Tensor, y: Tensor, past: Tensor, now: Tensor) -> Tensor:
        """The mean of max(0, margin - c_y + c_k) over samples of old classes and their rivals k."""
        new = cosines.masked_fill(past | ~now, -torch.inf)
        rivals = new.topk(min(self.rivals, new.shape[1]), dim=1).values
        own = cosines.gather(1, y.unsqueeze(1))
        excess = (self.margin - own + rivals).clamp(min=0)
        used = past[y].unsqueeze(1) & rivals.isfinite()
        return mean_where(excess, used)

    def _classifier(self) -> Tensor:
        """(P,): theta with rows of length eta, whose products order the classes as cosines do."""
        theta, heads = self.learner.flat.theta.detach(), self.learner.heads
        rows = F.normalize(heads.rows_of(theta), dim=1) * self.eta
        return heads.with_rows(theta, torch.ones_like(rows[:, 0]).bool(), rows)

    @torch.no_grad()
    def _imprint(self, task: Task) -> None:
        """Set the rows of new classes to the mean direction of their images."""
        learner = self.learner
        theta, rows = learner.flat.theta.detach(), learner.heads.rows_of(learner.flat.theta)
        directions = learner.class_directions(task.chunks(512), task.y, len(rows))
        norm = rows[self.known].norm(dim=1).mean()
        new = ~self.known & (directions != 0).any(1)
        theta.copy_(learner.heads.with_rows(theta, new, directions * norm))

"""iCaRL: incremental classifier and representation learning (Rebuffi et al. 2017, 1611.07725)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench.base.bounds import Count
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch, Snapshot, Task
from cl_bench.methods.shared.exemplars import Exemplars
from cl_bench.methods.shared.head_rows import refuse_linearised_head


class ICaRL(Exemplars):
    """Binary cross-entropy for each class so far, on new samples and `replay` exemplars (alg. 3).

    The targets are the labels for classes of this task, and for older classes the outputs that the
    network had after the last task. The loss is a mean over samples and the classes so far. After a
    task, a test image gets the class whose exemplars have the nearest mean feature (alg. 1), and
    within a task the class with the largest output. Features and means have length 1, so that the
    nearest mean is that with the largest product with the feature: the means are the rows of a head
    (`classifier`).
    """

    scenarios: ClassVar[tuple[str, ...]] = ("task", "class")

    def __init__(self, learner: Learner, buffer: Callable[..., Buffer], replay: Count) -> None:
        super().__init__(learner, buffer, replay)
        self.classifier: Snapshot | None = None  # the network with the means as its head

    def check_network(self, task: Task) -> None:
        refuse_linearised_head(self.learner.net, "icarl")

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.classifier = None

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        assert self.teacher is not None
        rows = self.memory.stored()
        means = self.learner.class_directions(rows.slices(512), rows.y, len(self.now))
        theta = self.learner.heads.with_rows(self.teacher.theta, self.now, means)
        self.classifier = self.teacher._replace(theta=theta)

    def networks(self) -> Iterator[tuple[str, Snapshot]]:
        if self.classifier is None:
            yield from super().networks()
        else:
            yield "", self.classifier

    def predict(self, batch: Batch) -> Tensor:
        if self.classifier is None:
            return super().predict(batch)
        return self.learner.snapshot_logits(self.classifier, batch)

    def _loss(self, logits: Tensor, batch: Batch, past: Tensor, now: Tensor) -> Tensor:
        classes = torch.arange(logits.shape[1], device=batch.y.device)
        targets = (batch.y.unsqueeze(1) == classes).to(torch.float32)
        if batch.logits is not None:
            targets = torch.where(past, batch.logits.float().sigmoid(), targets)
        losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
        live = self.learner.heads.competing(batch)  # with `future` also classes that are to come
        trained = torch.ones_like(now) if live is None else now | live.any(0)
        return (losses * trained).sum(1).mean() / trained.sum()

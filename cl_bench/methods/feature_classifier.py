"""Classifiers on the features of a network that is not trained: nearest class mean, and LDA.

ncm   nearest class mean (Mensink et al. 2013; Rebuffi et al. 2017 on learned features)
slda  linear discriminant analysis with a covariance of all classes (Hayes & Kanan 2020, "Lifelong
      machine learning with deep streaming linear discriminant analysis", arXiv:1909.01520)
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from cl_bench.base.bounds import Share
from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Snapshot, Task
from cl_bench.methods.base import Method
from cl_bench.methods.shared.head_rows import refuse_linearised_head

NEVER = -1e9  # the logit of a class of which no sample came


class FeatureClassifier(Method):
    """Sums of features decide, by a head that is computed from them; nothing else changes.

    With x the features of an image, m_k the mean of class k and S the covariance within classes:
    rule=nearest_mean  the logits are m_k'x - |m_k|^2 / 2: the nearest mean has the largest one
    rule=lda           (L m_k)'x - m_k' L m_k / 2, with L the inverse of (1 - shrinkage) S +
                       shrinkage I
    Sums are in float64 and do not depend on the order of the samples, where the paper of slda
    updates a mean and a covariance sample by sample. Images are not augmented.
    """

    task_free = True

    def __init__(
        self, learner: Learner, rule: Literal["nearest_mean", "lda"], shrinkage: Share
    ) -> None:
        super().__init__(learner)
        self.rule, self.shrinkage = rule, shrinkage
        classes, size = learner.heads.rows_of(learner.flat.grad).shape
        zeros = learner.flat.grad.new_zeros
        self.count = zeros(classes, dtype=torch.float64)
        self.sums = zeros(classes, size, dtype=torch.float64)
        self.products = zeros((size, size) if rule == "lda" else (0, 0), dtype=torch.float64)
        self.ready = lru_cache(maxsize=1)(self._classifier)

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        return {"method.shrinkage"} if config["method"]["rule"] == "nearest_mean" else set()

    def check_network(self, task: Task) -> None:
        refuse_linearised_head(self.learner.net, "ncm or slda")
        if self.learner.heads.bias_of(self.learner.flat.grad) is None:
            raise UserError(
                "method=ncm and slda: the head of the model has no bias, which they need; use "
                "another model"
            )

    @torch.no_grad()
    def observe(self, batch: Batch) -> Tensor:
        """Add the batch to the sums; returns 0, as there is no loss."""
        with self.learner.evaluating(full_precision=True):
            x = self.learner.features(batch).double()
        self.ready.cache_clear()
        self.count.index_add_(0, batch.y, torch.ones_like(batch.y, dtype=torch.float64))
        self.sums.index_add_(0, batch.y, x)
        if self.rule == "lda":
            self.products.addmm_(x.T, x)
        return torch.zeros((), device=batch.y.device)

    def networks(self) -> Iterator[tuple[str, Snapshot]]:
        yield "", self.ready()

    def predict(self, batch: Batch) -> Tensor:
        with self.learner.evaluating(full_precision=True):  # small gaps between large logits
            return self.learner.snapshot_logits(self.ready(), batch)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.ready.cache_clear()

    @torch.no_grad()
    def _classifier(self) -> Snapshot:
        """The network, with the head that the sums make."""
        means = self.sums / self.count.clamp(min=1)[:, None]
        weight = means if self.rule == "nearest_mean" else means @ self._precision(means)
        bias = -(weight * means).sum(1) / 2
        bias = torch.where(self.count > 0, bias, NEVER)
        now = self.learner.snapshot()
        every = torch.ones_like(self.count, dtype=torch.bool)
        return now._replace(theta=self.learner.heads.with_rows(now.theta, every, weight, bias))

    def _precision(self, means: Tensor) -> Tensor:
        """(d, d): the inverse of the shrunk covariance within classes."""
        between = means.T @ (means * self.count[:, None])
        within = (self.products - between) / self.count.sum().clamp(min=1)
        unit = torch.eye(len(within), dtype=within.dtype, device=within.device)
        return torch.linalg.inv((1 - self.shrinkage) * within + self.shrinkage * unit)

"""Classifiers on the features of a network that does not change: nearest class mean, and LDA.

ncm   nearest class mean (Mensink et al. 2013; Rebuffi et al. 2017 on learned features)
slda  linear discriminant analysis with a covariance of all classes (Hayes & Kanan 2020, "Lifelong
      machine learning with deep streaming linear discriminant analysis", arXiv:1909.01520)
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from cl_bench.base.bounds import Fraction
from cl_bench.core.learner import Learner
from cl_bench.methods.shared.feature_sums import FeatureSums


class FeatureClassifier(FeatureSums):
    """Sums of features decide, by a head that is computed from them; nothing else changes.

    With x the features of an image, m_k the mean of class k and S the covariance within classes:
    rule=nearest_mean  the logits are m_k'x - |m_k|^2 / 2: the nearest mean has the largest one
    rule=lda           (L m_k)'x - m_k' L m_k / 2, with L the inverse of (1 - shrinkage) S +
                       shrinkage I
    The paper of slda updates a mean and a covariance sample by sample.
    """

    task_free = True

    def __init__(
        self,
        learner: Learner,
        rule: Literal["nearest_mean", "lda"],
        shrinkage: Fraction,
        adapt: bool,
    ) -> None:
        super().__init__(learner, rule == "lda", adapt)
        self.rule, self.shrinkage = rule, shrinkage
        self.option = "ncm" if rule == "nearest_mean" else "slda"

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        idle = {"method.shrinkage"} if config["method"]["rule"] == "nearest_mean" else set[str]()
        return idle | FeatureSums.unused(config)

    def _rows(self) -> tuple[Tensor, Tensor]:
        means = self.sums / self.count.clamp(min=1)[:, None]
        weight = means if self.rule == "nearest_mean" else means @ self._precision(means)
        return weight, -(weight * means).sum(1) / 2

    def _precision(self, means: Tensor) -> Tensor:
        """(d, d): the inverse of the shrunk covariance within classes."""
        between = means.T @ (means * self.count[:, None])
        within = (self.products - between) / self.count.sum().clamp(min=1)
        unit = torch.eye(len(within), dtype=within.dtype, device=within.device)
        return torch.linalg.inv((1 - self.shrinkage) * within + self.shrinkage * unit)

"""RanPAC: ridge regression from random features to classes (McDonnell et al. 2023).

arXiv:2307.02251
"""

from __future__ import annotations

from math import log10
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench.core.learner import Learner
from cl_bench.core.types import Task
from cl_bench.methods.shared.feature_sums import FeatureSums

STRENGTHS = [10.0**power for power in range(-8, 9)]  # of the penalty, from the authors' code


class RanPAC(FeatureSums):
    """The head is W = (G + strength I)^-1 C, with G the sum of x x' and C the sum of x y'.

    x are the features of an image, and y its label as a one-hot vector; the sums are over all
    samples so far. Nothing is trained, unless the network adapts to the first task (phase 1 of the
    paper, `adapt`). The features are those of model.random_features: the ReLU of
    a random projection of the network's own.

    After each task the strength is the power of ten from 1e-8 to 1e8 with the smallest squared
    error on `schedule.holdout` of the task's images, by the sums of all others. Then these images
    are added to the sums. Strengths so small that the matrix has no Cholesky factor are left out.
    """

    option = "ranpac"
    uses_held_out: ClassVar[bool] = True

    def __init__(self, learner: Learner, adapt: bool) -> None:
        super().__init__(learner, products=True, adapt=adapt)
        self.strength = 1.0

    @torch.no_grad()
    def validate(self, held_out: Task) -> None:
        task = self.learner.task
        assert task is not None
        self._stop_adapting(task)
        parts = [*held_out.chunks(512)]
        found = [self._features(part) for part in parts]
        self.strength = self._best(torch.cat(found), torch.cat([part.y for part in parts]))
        for part, x in zip(parts, found, strict=True):
            self._add(part, x)

    def capacity(self) -> dict[str, float]:
        """The logarithm of the strength of the penalty, to the base 10."""
        return {"log10_strength": log10(self.strength)}

    def _best(self, x: Tensor, y: Tensor) -> float:
        """The strength of the smallest error on features (N, d) and labels (N,)."""
        wanted = F.one_hot(y.to(x.device), len(self.count)).to(x.dtype)
        errors: dict[float, float] = {}
        for strength in STRENGTHS:
            weight = self._solution(strength)
            if weight is not None:
                errors[strength] = float((x @ weight.T - wanted).square().sum())
        return min(errors, key=lambda strength: errors[strength])

    def _rows(self) -> tuple[Tensor, Tensor]:
        weight = self._solution(self.strength)
        assert weight is not None, "the matrix had a Cholesky factor with fewer samples"
        return weight, torch.zeros_like(self.count)

    def _solution(self, strength: float) -> Tensor | None:
        """W (K, d); None where rounding leaves the matrix without a Cholesky factor."""
        matrix = self.products.clone()
        matrix.diagonal().add_(strength)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        return None if bool(failed) else torch.cholesky_solve(self.sums.T, factor).T

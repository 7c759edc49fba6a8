"""The largest eigenvalue of the Fisher matrix while a task is learned (DLCFT figures 3 and 7)."""

from __future__ import annotations

import torch

from cl_bench.base.bounds import Count
from cl_bench.core.criteria import masked
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Stream, Task
from cl_bench.curvature.products import ggn_product, largest_eigenvalue


class MaxEigenvalue:
    """lambda_max of the exact Fisher (GGN), loss and accuracy on a subset of the task's samples.

    `samples` of them are taken at equal distances. The power iteration starts from a fixed vector,
    so that nothing is drawn and nothing is kept between calls.
    """

    def __init__(self, every: Count, samples: Count, iterations: Count) -> None:
        self.every, self.samples, self.iterations = every, samples, iterations

    def __call__(self, learner: Learner, stream: Stream, task: Task) -> dict[str, float]:
        count = min(self.samples, len(task))
        index = torch.arange(count, device=task.y.device) * len(task) // count
        subset = task.rows(index)
        start = torch.linspace(-1, 1, learner.flat.grad.numel()).to(learner.flat.grad)
        top, _ = largest_eigenvalue(ggn_product(learner, subset), start.cos(), self.iterations)
        with learner.evaluating(full_precision=True), torch.no_grad():
            batch = Batch(subset.x, subset.y, subset.t)
            logits = learner.logits(learner.flat.theta, batch)
            live = learner.heads.competing(batch)
            losses = learner.criterion(logits, batch.y, live)
            hits = (masked(logits, live).argmax(-1) == batch.y).float().mean()
        return {
            "max_eigenvalue": float(top),
            "loss": float(losses.mean()),
            "accuracy": float(hits),
        }

"""What is watched while a network trains: the largest eigenvalue of its Fisher."""

from __future__ import annotations

import torch

from cl_bench.curvature.products import ggn_product, largest_eigenvalue
from cl_bench.learner import Learner
from cl_bench.types import Batch, Task


class MaxEigenvalue:
    """lambda_max of the exact Fisher (GGN), loss and accuracy on samples all through the task.

    By power iteration from a fixed vector: nothing is kept between calls, nothing is drawn.
    """

    def __init__(self, every: int, samples: int, iterations: int) -> None:
        self.every, self.samples, self.iterations = every, samples, iterations

    def __call__(self, learner: Learner, task: Task) -> dict[str, float]:
        count = min(self.samples, len(task))
        part = torch.arange(count, device=task.y.device) * len(task) // count  # all through it
        few = Task(task.id, task.x[part], task.y[part], task.t[part])
        start = torch.linspace(-1, 1, learner.flat.grad.numel()).to(learner.flat.grad)
        top, _ = largest_eigenvalue(ggn_product(learner, few), start.cos(), self.iterations)
        with learner.evaluating(full_precision=True), torch.no_grad():
            batch = Batch(few.x, few.y, few.t)
            logits = learner.logits(learner.flat.theta, batch)
            live = learner.competing(batch)
            losses = learner.criterion(logits, batch.y, live)
            seen = logits if live is None else logits.masked_fill(~live, -torch.inf)
            hits = (seen.argmax(-1) == batch.y).float().mean()
        return {
            "max_eigenvalue": float(top),
            "loss": float(losses.mean()),
            "accuracy": float(hits),
        }

"""What is watched beside the accuracy: the Fisher's largest eigenvalue, the features' quality."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench.base.bounds import Count
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Stream, Task
from cl_bench.curvature.products import ggn_product, largest_eigenvalue


class MaxEigenvalue:
    """lambda_max of the exact Fisher (GGN), loss and accuracy on samples all through the task.

    By power iteration from a fixed vector: nothing is kept between calls, nothing is drawn.
    """

    def __init__(self, every: Count, samples: Count, iterations: Count) -> None:
        self.every, self.samples, self.iterations = every, samples, iterations

    def __call__(self, learner: Learner, stream: Stream, task: Task) -> dict[str, float]:
        count = min(self.samples, len(task))
        part = torch.arange(count, device=task.y.device) * len(task) // count  # all through it
        few = Task(task.id, task.x[part], task.y[part], task.t[part])
        start = torch.linspace(-1, 1, learner.flat.grad.numel()).to(learner.flat.grad)
        top, _ = largest_eigenvalue(ggn_product(learner, few), start.cos(), self.iterations)
        with learner.evaluating(full_precision=True), torch.no_grad():
            batch = Batch(few.x, few.y, few.t)
            logits = learner.logits(learner.flat.theta, batch)
            live = learner.heads.competing(batch)
            losses = learner.criterion(logits, batch.y, live)
            seen = logits if live is None else logits.masked_fill(~live, -torch.inf)
            hits = (seen.argmax(-1) == batch.y).float().mean()
        return {
            "max_eigenvalue": float(top),
            "loss": float(losses.mean()),
            "accuracy": float(hits),
        }


class KNN:
    """Accuracy of k nearest neighbours on what the head reads (DLCFT section 4.3, figure 6).

    By cosine similarity to all training images of the stream, seen or not, in the evaluation
    transform; the test images are all of the stream's. k is not printed in the paper.
    """

    every = None

    def __init__(self, neighbours: Count, batch_size: Count) -> None:
        self.neighbours, self.batch_size = neighbours, batch_size

    @torch.no_grad()
    def __call__(self, learner: Learner, stream: Stream, task: Task) -> dict[str, float]:
        bank, labels = self._features(learner, stream.tasks)
        tests = {test.place: test for test in stream.tests}  # data-IL: one for all tasks
        asked, truth = self._features(learner, list(tests.values()))
        hits = torch.zeros((), dtype=torch.long, device=labels.device)
        for x, y in zip(asked.split(self.batch_size), truth.split(self.batch_size), strict=True):
            near = (x @ bank.T).topk(min(self.neighbours, len(bank)), -1)
            weight = 1 + near.values / (4 * self.neighbours)  # the nearer where votes are equal
            votes = weight.new_zeros(len(y), stream.num_classes)
            votes.scatter_add_(1, labels[near.indices], weight)
            hits += (votes.argmax(-1) == y).sum()
        return {"knn": int(hits) / len(truth)}

    def _features(self, learner: Learner, tasks: list[Task]) -> tuple[Tensor, Tensor]:
        """(N, d) of length 1, and (N,) classes."""
        found = []
        with learner.evaluating():
            for task in tasks:
                for batch in task.chunks(self.batch_size):
                    found.append(F.normalize(learner.features(batch).float(), dim=-1))
        return torch.cat(found), torch.cat([task.y for task in tasks])

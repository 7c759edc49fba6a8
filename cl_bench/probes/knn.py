"""Accuracy of a nearest-neighbour classifier on the network's features (DLCFT figure 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_bench.base.bounds import Count
from cl_bench.core.learner import Learner
from cl_bench.core.types import Stream, Task


class KNN:
    """Accuracy of k nearest neighbours on the head's input (DLCFT section 4.3, figure 6).

    The neighbours are all training images of the stream, those of later tasks included, and the
    test images are those of all tasks, both without augmentation. Similarity is the cosine. The
    paper does not print k.
    """

    every = None

    def __init__(self, neighbours: Count, batch_size: Count) -> None:
        self.neighbours, self.batch_size = neighbours, batch_size

    @torch.no_grad()
    def __call__(self, learner: Learner, stream: Stream, task: Task) -> dict[str, float]:
        bank, labels = self._features(learner, stream.tasks)
        tests = {test.storage: test for test in stream.tests}  # in data-IL tasks share one
        queries, truth = self._features(learner, list(tests.values()))
        hits = torch.zeros((), dtype=torch.long, device=labels.device)
        for x, y in zip(queries.split(self.batch_size), truth.split(self.batch_size), strict=True):
            near = (x @ bank.T).topk(min(self.neighbours, len(bank)), -1)
            weight = 1 + near.values / (4 * self.neighbours)  # similarity decides only between ties
            votes = weight.new_zeros(len(y), stream.num_classes)
            votes.scatter_add_(1, labels[near.indices], weight)
            hits += (votes.argmax(-1) == y).sum()
        return {"knn": int(hits) / len(truth)}

    def _features(self, learner: Learner, tasks: list[Task]) -> tuple[Tensor, Tensor]:
        """(N, d) features of unit length, and (N,) class ids."""
        chunks = (batch for task in tasks for batch in task.chunks(self.batch_size))
        return learner.unit_features(chunks), torch.cat([task.y for task in tasks])

"""Accuracy of the nearest class mean in the network's features, for any method."""

from __future__ import annotations

import torch

from cl_bench.base.bounds import Count
from cl_bench.core.criteria import masked
from cl_bench.core.learner import Learner
from cl_bench.core.types import Stream, Task


class NearestMean:
    """Accuracy on the test images of the tasks so far, by the classes that compete.

    The mean of a class is that of the features of all its training images in these tasks, without
    augmentation; features and means have length 1 (Mensink et al. 2013, and iCaRL with all images
    in place of exemplars). Beside the method's own accuracy it tells how much of the forgetting is
    in the head.
    """

    every = None

    def __init__(self, batch_size: Count) -> None:
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, learner: Learner, stream: Stream, task: Task) -> dict[str, float]:
        now = int(task.t.max())
        seen = [each for each in stream.tasks if int(each.t.max()) <= now]
        batches = (batch for each in seen for batch in each.chunks(self.batch_size))
        labels = torch.cat([each.y for each in seen])
        means = learner.class_directions(batches, labels, stream.num_classes)
        tests = {test.storage: test for test in stream.tests[: now + 1]}  # in data-IL: one
        hits, count = torch.zeros((), dtype=torch.long, device=labels.device), 0
        for test in tests.values():
            for batch in test.chunks(self.batch_size):
                scores = learner.unit_features([batch]) @ means.T
                live = stream.live(now)[batch.t] & means.any(1)
                found = masked(scores, live).argmax(1)
                hits, count = hits + (found == batch.y).sum(), count + len(batch.y)
        return {"nearest_mean": int(hits) / count}

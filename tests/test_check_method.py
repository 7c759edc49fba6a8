"""`cl_bench.testing.check_method` finds each fault that is planted, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cl_bench.core.types import Batch, Task
from cl_bench.methods.base import Method
from cl_bench.testing import check_method


class Plain(Method):
    """Fine-tuning."""

    def observe(self, batch: Batch) -> Tensor:
        loss = self.learner.gradient(batch)
        self.learner.step()
        return loss


class DrawsGlobally(Plain):
    def observe(self, batch: Batch) -> Tensor:
        torch.rand(1)
        return super().observe(batch)


class KeepsTheTask(Plain):
    def __init__(self, learner: Any) -> None:
        super().__init__(learner)
        self.old = torch.zeros(0)

    def end_task(self, task: Task) -> None:
        self.old = task.x


class TrainsOnTheOldTask(Plain):
    def __init__(self, learner: Any) -> None:
        super().__init__(learner)
        self.old: list[Tensor] = []

    def observe(self, batch: Batch) -> Tensor:
        if self.old:
            super().observe(Batch(*self.old))
        return super().observe(batch)

    def end_task(self, task: Task) -> None:
        self.old = [task.x[:10], task.y[:10], task.t[:10]]


class HidesState(Plain):
    """Counts steps where no checkpoint finds them."""

    def __init__(self, learner: Any) -> None:
        super().__init__(learner)
        steps = [0]
        self.count = lambda: steps.__setitem__(0, steps[0] + 1) or steps[0]

    def observe(self, batch: Batch) -> Tensor:
        loss = super().observe(batch)
        self.learner.flat.theta.data.mul_(1 - 1e-4 * self.count())
        return loss


class DrawsAtPrediction(Plain):
    def predict(self, batch: Batch) -> Tensor:
        noise = torch.rand(1, generator=self.learner.rng)
        return super().predict(batch) + 0 * noise


class PredictsByAnother(Plain):
    def predict(self, batch: Batch) -> Tensor:
        return 2 * super().predict(batch)


class LearnsNothing(Plain):
    def observe(self, batch: Batch) -> Tensor:
        return self.learner.gradient(batch)


class Grows(Plain):
    def __init__(self, learner: Any) -> None:
        super().__init__(learner)
        self.kept: list[Tensor] = []

    def end_task(self, task: Task) -> None:
        self.kept.append(self.learner.flat.theta.detach().clone())


FAULTS = {
    DrawsGlobally: "draws from PyTorch's global generator",
    KeepsTheTask: "the state refers to the data of a task after its end",
    TrainsOnTheOldTask: "reads a test set, or a task after its end",
    HidesState: "a stopped run continues to other parameters",
    DrawsAtPrediction: "predict draws random numbers",
    PredictsByAnother: r"networks\(\) yields other networks than predict uses",
    LearnsNothing: "after 8 steps a task has",
    Grows: "bytes after the second task and",
}


@pytest.mark.parametrize("method", FAULTS, ids=lambda method: method.__name__)
def test_a_fault_is_found(method: type[Method]) -> None:
    with pytest.raises(AssertionError, match=FAULTS[method]):
        check_method(method, scenarios=["data"])


def test_a_method_without_faults_passes() -> None:
    check_method(Plain)
    check_method(Grows, scenarios=["class"], grows=True)
    check_method("ewc", "method.strength=0.5", scenarios=["task"])
    check_method("joint", scenarios=["data"])

"""The accuracy matrix of a run, and the metrics that are defined by it."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import torch
from torch import Tensor


class AccuracyMatrix:
    """R (T, T): R[i, j] in [0, 1] is the accuracy on task j after learning task i.

    `initial` (T,) holds the accuracies of the untrained network. Entries that were not measured are
    NaN, and so is each metric whose definition needs one of them. `images` are the numbers of test
    images of the tasks; where they differ, there are metrics in which each image counts the same.
    """

    def __init__(self, tasks: int, images: Sequence[int] = ()) -> None:
        self.values = torch.full((tasks, tasks), nan, dtype=torch.float64)
        self.initial = torch.full((tasks,), nan, dtype=torch.float64)
        differ = len(set(images)) > 1
        self.images = torch.tensor(images, dtype=torch.float64) if differ else None

    @classmethod
    def of(
        cls,
        values: Sequence[Sequence[float | None]],
        initial: Sequence[float | None],
        images: Sequence[int] = (),
    ) -> AccuracyMatrix:
        """The matrix with the values in a record, None for entries that were not measured."""
        matrix = cls(0, images)
        matrix.values = torch.tensor([_with_nan(row) for row in values], dtype=torch.float64)
        matrix.initial = torch.tensor(_with_nan(initial), dtype=torch.float64)
        return matrix

    def fill(self, row: int, columns: Sequence[int], accuracies: Sequence[float]) -> None:
        """Set the accuracies on tasks `columns` after task `row`; -1 is the untrained network."""
        target = self.initial if row < 0 else self.values[row]
        target[list(columns)] = torch.tensor(accuracies, dtype=torch.float64)

    def until(self, task: int) -> AccuracyMatrix:
        """The matrix as it stood after `task`: its first task + 1 rows and columns."""
        part = AccuracyMatrix(task + 1)
        part.values, part.initial = self.values[: task + 1, : task + 1], self.initial[: task + 1]
        part.images = None if self.images is None else self.images[: task + 1]
        return part

    @property
    def acc(self) -> float:
        """ACC = mean_j R[T-1, j]."""
        return _mean(self.values[-1])

    @property
    def bwt(self) -> float:
        """Backward transfer = mean_{j < T-1} (R[T-1, j] - R[j, j]); negative is forgetting."""
        return _mean(self.values[-1, :-1] - self.values.diagonal()[:-1])

    @property
    def fwt(self) -> float:
        """Forward transfer = mean_{j >= 1} (R[j-1, j] - initial[j]).

        NaN in class-IL, unless tasks are blurred: the classes of task j do not compete before it,
        and it is not tested.
        """
        return _mean(self.values.diagonal(1) - self.initial[1:])

    @property
    def forgetting(self) -> float:
        """mean_{j < T-1} (max_{j <= i <= T-2} R[i, j] - R[T-1, j]) (Chaudhry et al. 2018)."""
        return _mean(self.forgetting_of_task)

    @property
    def forgetting_of_task(self) -> Tensor:
        """(T - 1,): the forgetting of each task but the last; `forgetting` is their mean."""
        before = range(len(self.values) - 1)
        best = self.values.new_tensor([self.values[j:-1, j].max() for j in before])
        return best - self.values[-1, :-1]

    @property
    def learning_accuracy(self) -> float:
        """LA = mean_j R[j, j]."""
        return _mean(self.values.diagonal())

    @property
    def average_incremental_accuracy(self) -> float:
        """mean_i mean_{j <= i} R[i, j]."""
        rows = [self.values[i, : i + 1].mean() for i in range(len(self.values))]
        return _mean(torch.stack(rows))

    def _of_images(self) -> dict[str, float]:
        """The accuracies on the test images of all tasks so far: the last one, and their mean."""
        if self.images is None:
            return {}
        parts = [self.images[: i + 1] / self.images[: i + 1].sum() for i in range(len(self.values))]
        rows = [self.values[i, : i + 1] @ part for i, part in enumerate(parts)]
        return {"ACC_images": float(rows[-1]), "AIA_images": _mean(torch.stack(rows))}

    def summary(self) -> dict[str, float]:
        """The metrics of the matrix by the names that records, tables and wandb use."""
        return {
            "ACC": self.acc,
            "BWT": self.bwt,
            "FWT": self.fwt,
            "forgetting": self.forgetting,
            "LA": self.learning_accuracy,
            "AIA": self.average_incremental_accuracy,
            **self._of_images(),
        }


def order_disparity(finals: Tensor) -> tuple[float, float]:
    """AOPD and MOPD of final accuracies (R, T) of T tasks under R orders of the tasks.

    The disparity of a task is its highest minus its lowest accuracy over the orders. AOPD is the
    mean and MOPD the maximum over tasks (Yoon et al. 2020, arXiv:1902.09432). Columns are tasks,
    not positions; runs of the same order must be averaged before.
    """
    disparity = finals.max(0).values - finals.min(0).values
    return float(disparity.mean()), float(disparity.max())


def _with_nan(values: Sequence[float | None]) -> list[float]:
    return [nan if value is None else value for value in values]


def _mean(values: Tensor) -> float:
    """The mean; NaN without entries, and where an entry is NaN."""
    return float(values.mean()) if values.numel() else nan

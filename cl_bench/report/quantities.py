"""The numbers of a run that reports and pages of sweeps show: metrics and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import mean

from cl_bench.base.exceptions import UserError
from cl_bench.report.runs import Record, Run


@dataclass(frozen=True)
class Quantity:
    """A number of a run: how it is read from the record, and how it is shown."""

    name: str
    read: Callable[[Record], float | None]  # None: not measured
    better: int  # 1: higher is better, -1: lower
    meaning: str
    unit: str = "percent"
    digits: int = 2

    def values(self, runs: Iterable[Run]) -> list[float]:
        """The numbers of the runs in which it was measured."""
        read = (self.read(run.record) for run in runs)
        return [value for value in read if value is not None]


def _metric(name: str, better: int, meaning: str) -> Quantity:
    return Quantity(name, lambda run: _times(run["metrics"].get(name), 100), better, meaning)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


def _growth(run: Record) -> float | None:
    return _times((run.get("method") or {}).get("growth"), 100)


def _later_over_first(run: Record) -> float | None:
    first, *later = run["measured"]["train_seconds"]
    return mean(later) / first if later and first else None


ACC = _metric("ACC", 1, "mean accuracy over all tasks after the last one")
BWT = _metric("BWT", 1, "mean over tasks of the final accuracy minus that right after the task")
GROWTH = Quantity(
    "growth", _growth, -1, "numbers added to the network of the first task, relative to it"
)
METRICS = (  # in percent
    ACC,
    BWT,
    _metric("FWT", 1, "mean over tasks of the accuracy just before the task minus the initial one"),
    _metric("forgetting", -1, "mean over tasks of the best earlier accuracy minus the final one"),
    _metric("LA", 1, "mean over tasks of the accuracy right after the task"),
    _metric("AIA", 1, "mean over time of the mean accuracy on the tasks so far"),
    GROWTH,
)
GRADIENTS = Quantity(
    "gradients",
    lambda run: run.get("gradients_per_sample"),
    -1,
    "backward passes per training image",
    "count",
    1,
)
TRAIN_SECONDS = Quantity(
    "train s",
    lambda run: sum(run["measured"]["train_seconds"]),
    -1,
    "seconds of training, all tasks",
    "seconds",
    1,
)
COSTS = (
    GRADIENTS,
    TRAIN_SECONDS,
    Quantity(
        "later / first",
        _later_over_first,
        -1,
        "mean seconds of the tasks after the first, relative to the first",
        "ratio",
    ),
    Quantity(
        "peak MiB",
        lambda run: run["measured"].get("peak_mib"),
        -1,
        "peak memory: on CUDA what PyTorch allocated, else the whole process",
        "MiB",
        0,
    ),
    Quantity(
        "state MiB",
        lambda run: _times(run.get("state_bytes"), 2**-20),
        -1,
        "memory that the method keeps between tasks, besides the network",
        "MiB",
        1,
    ),
)


def metric(name: str) -> Quantity:
    """The metric of this name; UserError where there is none."""
    for quantity in METRICS:
        if quantity.name == name:
            return quantity
    raise UserError(f"{name}: no such metric; there are {', '.join(q.name for q in METRICS)}")

"""The numbers of a run that reports and pages of sweeps show: metrics and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isnan
from statistics import mean

from cl_bench.base.exceptions import UserError
from cl_bench.report.runs import Record, Run
from cl_bench.results.record import value_or_none


@dataclass(frozen=True)
class Quantity:
    """A number of a run: how it is read from the record, and how it is shown."""

    name: str
    read: Callable[[Record], float | None]  # None: not measured
    meaning: str
    unit: str = "percent"
    digits: int = 2
    better: int = -1  # 1: higher is better, -1: lower

    def values(self, runs: Iterable[Run]) -> list[float]:
        """The numbers of the runs in which it was measured."""
        read = (self.read(run.record) for run in runs)
        return [value for value in read if value is not None]


def _at(place: str, factor: float = 1) -> Callable[[Record], float | None]:
    """Read the number at a dotted place of a record, times a factor."""
    return lambda record: (
        None if (value := value_or_none(record, place)) is None else factor * value
    )


def _metric(name: str, meaning: str, better: int = 1) -> Quantity:
    return Quantity(name, _at(f"metrics.{name}", 100), meaning, better=better)


def _of_images(name: str, meaning: str) -> Quantity:
    """A metric of the test images of unequal tasks, also of a record that is older than it."""

    def read(record: Record) -> float | None:
        images = value_or_none(record, "stream.test_images")
        if not images or len(images) != len(record["accuracy"]) or len(set(images)) == 1:
            return None
        from cl_bench.results.metrics import AccuracyMatrix  # imports PyTorch

        matrix = AccuracyMatrix.of(record["accuracy"], record["initial"], images)
        found = matrix.summary()[name]
        return None if isnan(found) else 100 * found

    return Quantity(name, read, meaning, better=1)


def _train_seconds(record: Record) -> float:
    return sum(record["measured"]["train_seconds"])


def _later_over_first(record: Record) -> float | None:
    first, *later = record["measured"]["train_seconds"]
    return mean(later) / first if later and first else None


ACC = _metric("ACC", "mean accuracy over all tasks after the last one")
BWT = _metric("BWT", "mean over tasks of the final accuracy minus that right after the task")
ADDED = "parameters added after the first task, relative to its network"
GROWTH = Quantity(
    "growth",
    _at("method.growth", 100),
    ADDED,
)
METRICS = (  # in percent
    ACC,
    _metric("ACC_task", "ACC of a class-incremental run if the task of each test image is known"),
    BWT,
    _metric("FWT", "mean over tasks of the accuracy just before the task minus the initial one"),
    _metric("forgetting", "mean over tasks of the best earlier accuracy minus the final one", -1),
    _metric("LA", "mean over tasks of the accuracy right after the task"),
    _metric("AIA", "mean over time of the mean accuracy on the tasks so far"),
    _of_images("ACC_images", "accuracy on all test images after the last task"),
    _of_images("AIA_images", "mean over time of the accuracy on all test images so far"),
    _metric("AUC", "mean accuracy on the classes seen so far, tested along the way"),
    GROWTH,
)
GRADIENTS = Quantity(
    "gradients", _at("gradients_per_sample"), "backward passes per training image", "count", 1
)
TRAIN_SECONDS = Quantity("train s", _train_seconds, "seconds of training, all tasks", "seconds", 1)
LATER = "mean seconds of the tasks after the first, relative to the first"
PEAK = "peak memory: on CUDA what PyTorch allocated, else the whole process"
STATE = "memory that the method keeps between tasks, besides the network"
COSTS = (
    GRADIENTS,
    TRAIN_SECONDS,
    Quantity("later / first", _later_over_first, LATER, "ratio"),
    Quantity("peak MiB", _at("measured.peak_mib"), PEAK, "MiB", 0),
    Quantity("state MiB", _at("state_bytes", 2**-20), STATE, "MiB", 1),
)


def facts(records: Iterable[Record]) -> list[Quantity]:
    """The numbers that methods give of themselves (`Method.capacity`), other than METRICS."""
    names = {name for record in records for name in record.get("method") or {}} - {GROWTH.name}
    return [
        Quantity(name, _at(f"method.{name}"), "as the method gives it", "count", 1)
        for name in sorted(names)
    ]


def metric(name: str) -> Quantity:
    """The metric of this name; UserError where there is none."""
    for quantity in METRICS:
        if quantity.name == name:
            return quantity
    raise UserError(f"{name}: no such metric; there are {', '.join(q.name for q in METRICS)}")

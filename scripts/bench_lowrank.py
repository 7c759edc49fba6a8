"""Compares HALRP with finetune for the same number of epochs (`bench.py --lowrank`)."""

from __future__ import annotations

from collections.abc import Callable

from contenders import Contender, rounds
from ratios import Ratios

from cl_bench.core.types import Task

COMMON = ["experiment=halrp/protocol/cifar100_split", "runtime.threads=1"]


def lowrank(overrides: list[str], tasks: int, found: Ratios) -> None:
    """Compare whole tasks, with the work before and after training, and tests."""
    base = [*COMMON, *overrides]
    found.overrides = base
    runners = {name: Contender(f"method={name}", *base) for name in ("finetune", "halrp")}
    plain = runners["finetune"]
    first, *later = plain.stream.tasks[: tasks + 1]
    for made in runners.values():
        whole(made)(first)
    seconds = rounds(later, {name: whole(made) for name, made in runners.items()})
    tests = [plain.stream.tests[task.id] for task in later]
    asked = rounds(tests, {name: tested(made) for name, made in runners.items()})
    ratios = seconds["halrp"] / seconds["finetune"], asked["halrp"] / asked["finetune"]
    print(f"\n{len(first)} images a task, {plain.schedule.epochs} epochs, median of {len(later)}")
    for part, ratio in zip(("task", "test"), ratios, strict=True):
        found.add("method=halrp", f"cost of a {part} over plain training's", ratio)
    print(f"halrp: a task {ratios[0]:.2f} of plain training's, a test {ratios[1]:.2f} of plain's")


def whole(made: Contender) -> Callable[[Task], float]:
    """A function that returns the seconds of a whole task."""
    return lambda task: made.train(task) + made.finish(task)


def tested(made: Contender) -> Callable[[Task], float]:
    """A function that returns the seconds of a second test, for which the network is built."""

    def run(test: Task) -> float:
        made.evaluate(test, 256)
        return made.evaluate(test, 256)

    return run

"""What the order of the tasks costs: AOPD and MOPD over runs that differ in `scenario.order`."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Generator, Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.config.nodes import Leaves
from cl_bench.report.configs import format_overrides, varying_keys
from cl_bench.report.runs import Record, Run, grouped
from cl_bench.report.statistics import Summary
from cl_bench.results.metrics import order_disparity

ORDER = "scenario.order"
DISPARITIES = ("AOPD", "MOPD", "AOPD of seeds", "MOPD of seeds")
PERMUTATIONS = 1000
ORDERS_NOTE = (
    "AOPD and MOPD are the mean and the maximum over the tasks of a task's best minus its worst "
    "final accuracy over the orders, in percentage points; the seeds of an order are averaged "
    "first. AOPD and MOPD of seeds are what as many orders would show if the order had no effect "
    "and only the seeds differed (from two seeds on). ACC is the mean ± standard deviation over "
    "the orders."
)


@dataclass(frozen=True)
class Disparity:
    """What the order of the tasks costs, in percent."""

    seeds: str  # how many each order has: `3`, or `2-3`
    acc: Summary  # one number an order
    values: dict[str, float | None]  # by the names in DISPARITIES; None: an order has one seed


def disparity(orders: Collection[list[Run]]) -> Disparity:
    """AOPD and MOPD of the runs of each order; tasks are matched by identity.

    Raises UserError where the orders have different tasks, as `stream.first` leaves them.
    """
    if len({_tasks(run) for runs in orders for run in runs}) > 1:
        raise UserError(
            "scenario.order: runs under several orders have different tasks (stream.first?): their "
            "disparity is not defined"
        )
    finals = [torch.stack([_final_accuracies(run.record) for run in runs]) for runs in orders]
    found = order_disparity(torch.stack([runs.mean(0) for runs in finals]))
    floor = _disparity_of_seeds(finals) if min(map(len, finals)) > 1 else (None, None)
    values = [None if value is None else 100 * value for value in (*found, *floor)]
    counts = sorted({len(runs) for runs in orders})
    return Disparity(
        "-".join(map(str, sorted({counts[0], counts[-1]}))),
        Summary(tuple(100 * float(runs.mean()) for runs in finals)),
        dict(zip(DISPARITIES, values, strict=True)),
    )


def _disparity_of_seeds(finals: list[Tensor]) -> tuple[float, float]:
    """Mean AOPD and MOPD of as many orders and seeds whose runs differ by their seeds alone.

    `finals` has (seeds, T) for each order. The deviations of the runs from the mean of their order,
    scaled to the spread of single runs, are permuted over all orders 1,000 times.
    """
    scaled = [(len(f) / (len(f) - 1)) ** 0.5 * (f - f.mean(0)) for f in finals]
    pooled, counts = torch.cat(scaled), [len(f) for f in finals]
    rng, found = Generator().manual_seed(0), []
    for _ in range(PERMUTATIONS):
        permuted = pooled[torch.randperm(len(pooled), generator=rng)].split(counts)
        found.append(order_disparity(torch.stack([part.mean(0) for part in permuted])))
    aopd, mopd = torch.tensor(found).mean(0).tolist()
    return aopd, mopd


def _final_accuracies(record: Record) -> Tensor:
    """(T,): the final accuracy of each task, sorted by the tasks' identities."""
    pairs = zip(_identities(record), record["accuracy"][-1], strict=True)
    return torch.tensor([value for _, value in sorted(pairs)])


def _identities(record: Record) -> list[int]:
    """The identity of the task at each place, of the tasks that were learned."""
    return record["stream"]["task_identities"][: len(record["accuracy"][-1])]


def _tasks(run: Run) -> tuple[int, ...]:
    return tuple(sorted(_identities(run.record)))


@dataclass(frozen=True)
class OrderGroup:
    """Runs on the test split that differ in the order of the tasks and their seeds alone."""

    options: str  # tells it from the other groups of its data set, scenario and method
    orders: dict[str, list[Run]]  # two or more

    def texts(self) -> dict[str, Any]:
        """A row of the report."""
        first, found = next(iter(self.orders.values()))[0], disparity(self.orders.values())
        row: dict[str, Any] = {"dataset": first.dataset, "scenario": first.scenario}
        row |= {"method": first.method, "options": self.options}
        row |= {"orders": len(self.orders), "seeds": found.seeds, "ACC": found.acc.formatted()}
        return row | {k: "-" if v is None else f"{v:.2f}" for k, v in found.values.items()}


def order_groups(runs: Iterable[Run]) -> tuple[list[OrderGroup], str]:
    """All groups of orders, and a sentence on runs that are left out; empty where none is.

    Left out are runs whose tasks no other order has. Runs without final accuracies do not count.
    """
    tested = [r for r in runs if r.split == "test" and None not in r.record["accuracy"][-1]]
    groups: list[OrderGroup] = []
    alone: list[str] = []
    for family in grouped(tested, attrgetter("dataset", "scenario", "method")).values():
        several, count = _under_several_orders(family)
        configs = [_config(next(iter(orders.values()))[0]) for orders in several]
        keys = varying_keys(configs)
        options = [format_overrides(config, keys) for config in configs]
        groups += [OrderGroup(*pair) for pair in zip(options, several, strict=True)]
        alone += [f"{family[0].method} on {family[0].dataset} ({count} runs)"] if count else []
    note = "Left out, as their orders have unlike tasks (stream.first): " + ", ".join(alone) + "."
    return groups, note if alone else ""


def _under_several_orders(family: list[Run]) -> tuple[list[dict[str, list[Run]]], int]:
    """The runs of each config and set of tasks by their order, where there are several orders.

    Also the number of runs that are left out: no other order of their config has the same tasks.
    """
    several, alone = [], 0
    for alike in grouped(family, _config_text).values():
        parts = [grouped(part, order_of) for part in grouped(alike, _tasks).values()]
        several += [orders for orders in parts if len(orders) > 1]
        single = [orders for orders in parts if len(orders) == 1 and len(parts) > 1]
        alone += sum(len(runs) for orders in single for runs in orders.values())
    return several, alone


def order_of(run: Run) -> str:
    """The order of a run's tasks as a text."""
    return str(run.config.get(ORDER))


def _config(run: Run) -> Leaves:
    """A run's config without the order, and with its tasks."""
    return {k: v for k, v in run.config.items() if k != ORDER} | {"tasks": [*_tasks(run)]}


def _config_text(run: Run) -> str:
    return json.dumps(_config(run) | {"tasks": None}, sort_keys=True, default=str)


@dataclass(frozen=True)
class OrderSummary:
    """A row of texts for each group of orders, and a sentence on what is left out."""

    rows: list[dict[str, Any]]
    left_out: str  # empty: nothing

    @property
    def heads(self) -> list[str]:
        return list(self.rows[0]) if self.rows else []


NO_ORDERS = OrderSummary([], "")


def order_summary(runs: Iterable[Run]) -> OrderSummary:
    """AOPD, MOPD and ACC of each group of orders."""
    groups, note = order_groups(runs)
    return OrderSummary([group.texts() for group in groups], note)

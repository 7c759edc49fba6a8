"""What the order of the tasks costs, from the records of runs under several orders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.results.metrics import order_disparity

Record = dict[str, Any]
DEALS = 1000
DISPARITIES = ("AOPD", "MOPD", "AOPD of seeds", "MOPD of seeds")


def disparities(orders: list[list[Record]]) -> dict[str, Any]:
    """AOPD and MOPD, as fractions, of a list of seeds for each order; tasks by their identity.

    An order's seeds are averaged first. `of seeds` is what there would be if orders were all alike
    (`_floor`; None: an order has one seed). ACC is each order's own. UserError where the orders
    have different tasks, as `stream.first` leaves them.
    """
    if len({tuple(sorted(identities(record))) for seeds in orders for record in seeds}) > 1:
        raise UserError(
            "scenario.order: runs under several orders have different tasks (stream.first?): their "
            "disparity is not defined"
        )
    finals = [torch.stack([_by_identity(record) for record in seeds]) for seeds in orders]
    aopd, mopd = order_disparity(torch.stack([seeds.mean(0) for seeds in finals]))
    floor = _floor(finals) if min(map(len, finals)) > 1 else (None, None)
    counts = sorted({len(seeds) for seeds in orders})
    return {
        "seeds": "-".join(map(str, sorted({counts[0], counts[-1]}))),
        "ACC": [float(seeds.mean()) for seeds in finals],
        **dict(zip(DISPARITIES, (aopd, mopd, *floor), strict=True)),
    }


def _floor(finals: list[Tensor]) -> tuple[float, float]:
    """AOPD and MOPD of as many orders and seeds whose runs differ by their seeds alone.

    Deviations of runs from their order's mean, of (seeds, T) for each order and as wide as those
    of single runs, dealt out anew 1,000 times; the mean.
    """
    wide = [(len(f) / (len(f) - 1)) ** 0.5 * (f - f.mean(0)) for f in finals]
    pooled, counts = torch.cat(wide), [len(f) for f in finals]
    rng, found = Generator().manual_seed(0), []
    for _ in range(DEALS):
        dealt = pooled[torch.randperm(len(pooled), generator=rng)].split(counts)
        found.append(order_disparity(torch.stack([part.mean(0) for part in dealt])))
    aopd, mopd = torch.tensor(found).mean(0).tolist()
    return aopd, mopd


def _by_identity(record: Record) -> Tensor:
    """(T,): the final accuracy of each task, wherever it stood."""
    pairs = zip(identities(record), record["accuracy"][-1], strict=True)
    return torch.tensor([value for _, value in sorted(pairs)])


def identities(record: Record) -> list[int]:
    """Which task stood at each place: of those that were learned."""
    return record["stream"]["task_identities"][: len(record["accuracy"][-1])]

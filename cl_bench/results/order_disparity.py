"""Order-normalised performance disparity (AOPD, MOPD) from records of runs in several orders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.results.metrics import order_disparity

Record = dict[str, Any]
RESAMPLES = 1000
DISPARITIES = ("AOPD", "MOPD", "AOPD of seeds", "MOPD of seeds")


def disparities(orders: list[list[Record]]) -> dict[str, Any]:
    """AOPD and MOPD in [0, 1] of the runs in several orders; `orders` has a list of seeds for each.

    The seeds of an order are averaged first. `AOPD of seeds` and `MOPD of seeds` are the values to
    expect if the order made no difference (`_disparity_of_seeds`); None where an order has one
    seed. `ACC` has a value for each order. Raises UserError where the orders have different tasks,
    as with `stream.first`.
    """
    if len({tuple(sorted(identities(record))) for seeds in orders for record in seeds}) > 1:
        raise UserError(
            "scenario.order: runs under several orders have different tasks (stream.first?): their "
            "disparity is not defined"
        )
    finals = [torch.stack([_by_identity(record) for record in seeds]) for seeds in orders]
    aopd, mopd = order_disparity(torch.stack([seeds.mean(0) for seeds in finals]))
    floor = _disparity_of_seeds(finals) if min(map(len, finals)) > 1 else (None, None)
    counts = sorted({len(seeds) for seeds in orders})
    return {
        "seeds": "-".join(map(str, sorted({counts[0], counts[-1]}))),
        "ACC": [float(seeds.mean()) for seeds in finals],
        **dict(zip(DISPARITIES, (aopd, mopd, *floor), strict=True)),
    }


def _disparity_of_seeds(finals: list[Tensor]) -> tuple[float, float]:
    """AOPD and MOPD that would be found if runs differed by their seeds only.

    `finals` has accuracies (seeds, T) for each order. The deviations of all runs from the mean of
    their order, scaled by sqrt(n / (n - 1)) for n seeds, are shuffled among the orders 1,000 times;
    the result is the mean over the shuffles.
    """
    deviations = [(len(f) / (len(f) - 1)) ** 0.5 * (f - f.mean(0)) for f in finals]
    pooled, counts = torch.cat(deviations), [len(f) for f in finals]
    rng, found = Generator().manual_seed(0), []
    for _ in range(RESAMPLES):
        parts = pooled[torch.randperm(len(pooled), generator=rng)].split(counts)
        found.append(order_disparity(torch.stack([part.mean(0) for part in parts])))
    aopd, mopd = torch.tensor(found).mean(0).tolist()
    return aopd, mopd


def _by_identity(record: Record) -> Tensor:
    """(T,): the final accuracy of each task, sorted by the identity of the task."""
    pairs = zip(identities(record), record["accuracy"][-1], strict=True)
    return torch.tensor([value for _, value in sorted(pairs)])


def identities(record: Record) -> list[int]:
    """The identity of the task at each position of the run's order."""
    return record["stream"]["task_identities"][: len(record["accuracy"][-1])]

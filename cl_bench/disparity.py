"""What the order of the tasks costs, from the records of runs under several orders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cl_bench.metrics import order_disparity

Record = dict[str, Any]
DISPARITIES = ("AOPD", "MOPD", "AOPD of seeds", "MOPD of seeds")


def disparities(orders: list[list[Record]]) -> dict[str, Any]:
    """AOPD and MOPD, as fractions, of a list of seeds for each order; tasks by their identity.

    An order's seeds are averaged first. `of seeds` is the same among the seeds of one order, on
    average over the orders: what there would be if orders were all alike (None: one seed each).
    ACC is each order's own.
    """
    finals = [torch.stack([_by_identity(record) for record in seeds]) for seeds in orders]
    aopd, mopd = order_disparity(torch.stack([seeds.mean(0) for seeds in finals]))
    repeated = [order_disparity(seeds) for seeds in finals if len(seeds) > 1]
    floor = torch.tensor(repeated).mean(0).tolist() if repeated else [None, None]
    counts = sorted({len(seeds) for seeds in orders})
    return {
        "seeds": "-".join(map(str, sorted({counts[0], counts[-1]}))),
        "ACC": [float(seeds.mean()) for seeds in finals],
        **dict(zip(DISPARITIES, (aopd, mopd, *floor), strict=True)),
    }


def _by_identity(record: Record) -> Tensor:
    """(T,): the final accuracy of each task, wherever it stood."""
    last, places = record["accuracy"][-1], record["stream"]["task_identities"]
    return torch.tensor([value for _, value in sorted(zip(places, last, strict=True))])

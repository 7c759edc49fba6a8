"""Mean, spread and intervals of a few seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np

DRAWS = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """Of n numbers; sd divides by n - 1. None: one number alone has neither."""

    n: int
    mean: float
    sd: float | None
    interval: tuple[float, float] | None  # 95 %

    def __str__(self) -> str:
        return self.told()

    def told(self, digits: int = 2, between: str = " ± ") -> str:
        """`71.20 ± 0.31`."""
        spread = "" if self.sd is None else f"{between}{self.sd:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


def summary(values: Sequence[float]) -> Summary:
    """Of one number a seed.

    The interval is the percentile bootstrap's of the mean (Efron 1979), 10,000 draws from a fixed
    seed. Below five seeds it is too narrow: it cannot leave the range of what was seen.
    """
    if len(values) == 1:
        return Summary(1, values[0], None, None)
    drawn = np.random.default_rng(0).choice(np.array(values), (DRAWS, len(values))).mean(1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Summary(len(values), mean(values), stdev(values), (float(low), float(high)))


def paired(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Summary | None:
    """Of ours - baseline over the seeds that both have; None: they have none in common.

    Seeds fix initial weights and the order of samples: what they do to both cancels.
    """
    seeds = sorted(ours.keys() & baseline.keys())
    return summary([ours[seed] - baseline[seed] for seed in seeds]) if seeds else None

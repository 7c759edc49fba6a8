"""Mean, spread and intervals of a few seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

LEVEL = 0.95
METHOD = "95 % t interval"  # the heading of its column
CAVEAT = (
    "Intervals are Student's t intervals of the mean, from two seeds on: they cover 95 % where "
    "the seeds' numbers are independent and normal. Equal numbers give an interval without width, "
    "which shows that no spread was seen, not that there is none."
)


@dataclass(frozen=True)
class Summary:
    """Of one number a seed."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def sd(self) -> float | None:
        """With n - 1; None of one number."""
        return stdev(self.values) if self.n > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """mean -+ t sd / sqrt(n), t the 97.5 % quantile of Student's with n - 1; None of one."""
        if self.sd is None:
            return None
        from scipy.special import stdtrit  # quantiles of Student's t; scipy.stats starts slowly

        half = float(stdtrit(self.n - 1, (1 + LEVEL) / 2)) * self.sd / self.n**0.5
        return self.mean - half, self.mean + half

    def formatted(self, digits: int = 2, between: str = " ± ") -> str:
        """`71.20 ± 0.31`."""
        spread = "" if self.sd is None else f"{between}{self.sd:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


def summary(values: Sequence[float]) -> Summary | None:
    """None: of nothing."""
    return Summary(tuple(values)) if values else None


def paired(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Summary | None:
    """Of ours - baseline over the seeds that both have; None: they have none in common.

    Seeds fix initial weights and the order of samples: what they do to both cancels.
    """
    seeds = sorted(ours.keys() & baseline.keys())
    return summary([ours[seed] - baseline[seed] for seed in seeds])

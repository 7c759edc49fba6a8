"""Mean, standard deviation and confidence interval of a few numbers, usually one a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

LEVEL = 0.95
INTERVAL = "95 % t interval"  # the heading of its column
INTERVAL_NOTE = (
    "Intervals are Student's t intervals of the mean, from two seeds on: they cover 95 % where "
    "the seeds' numbers are independent and normal. Equal numbers give an interval without width, "
    "which shows that no spread was seen, not that there is none."
)


@dataclass(frozen=True)
class Summary:
    """One or more numbers, summarised."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def sd(self) -> float | None:
        """Standard deviation with n - 1; None for a single number."""
        return stdev(self.values) if self.n > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % Student t interval of the mean; None for a single number."""
        return None if self.sd is None else t_interval(self.mean, self.sd, self.n)

    def formatted(self, digits: int = 2, plus_minus: str = " ± ") -> str:
        """`71.20 ± 0.31`."""
        spread = "" if self.sd is None else f"{plus_minus}{self.sd:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


def t_interval(mean: float, sd: float, n: int) -> tuple[float, float]:
    """mean -+ t sd / sqrt(n), with t the 97.5 % quantile of Student's t with n - 1 degrees."""
    from scipy.special import stdtrit  # quantiles of Student's t; scipy.stats starts slowly

    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * sd / n**0.5
    return mean - half, mean + half


def summary(values: Sequence[float]) -> Summary | None:
    """The summary of the values; None where there are none."""
    return Summary(tuple(values)) if values else None


def mean_and_sd(name: str, found: Summary | None) -> dict[str, float | None]:
    """Two columns of a table, `name` and `name sd`."""
    return {name: found and found.mean, f"{name} sd": found and found.sd}


def paired(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Summary | None:
    """The differences ours - baseline, over the seeds that both have; None where there are none.

    A seed fixes the initial weights and the order of samples of both, so that their effect cancels.
    """
    seeds = sorted(ours.keys() & baseline.keys())
    return summary([ours[seed] - baseline[seed] for seed in seeds])

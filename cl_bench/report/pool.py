"""Seeds that are added to rows of a table: `python -m cl_bench.report --save <table> --add-seeds`.

A table keeps the mean and the standard deviation of a row, not the number of each seed. Those of
two groups of seeds give the mean and the standard deviation of both together exactly.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal

from cl_bench.base.exceptions import UserError
from cl_bench.report.results_table import ResultRow, ten_digits
from cl_bench.report.statistics import t_interval


@dataclass(frozen=True)
class Moments:
    """The mean and the standard deviation (with n - 1) of n numbers; n = 1 has the deviation 0."""

    n: int
    mean: float
    sd: float

    def __add__(self, other: Moments) -> Moments:
        """Those of the numbers of both.

        The squared deviations from the common mean are those from each group's own mean, and
        n1 n2 / (n1 + n2) times the squared difference of the two means.
        """
        n = self.n + other.n
        mean = (self.n * self.mean + other.n * other.mean) / n
        squares = (self.n - 1) * self.sd**2 + (other.n - 1) * other.sd**2
        squares += self.n * other.n / n * (self.mean - other.mean) ** 2
        return Moments(n, mean, (squares / (n - 1)) ** 0.5)


def with_added_seeds(old: Iterable[ResultRow], new: Iterable[ResultRow]) -> list[ResultRow]:
    """The new rows, those of an old row's label and metric pooled with it.

    Raises UserError where a seed is in both, or where an old row does not tell its numbers.
    """
    before = {row.key: row for row in old}
    return [_pooled(before[row.key], row) if row.key in before else row for row in new]


def require_all_seeds(old: Iterable[ResultRow], new: Iterable[ResultRow]) -> None:
    """Raise UserError where a new row would take the place of one that has other seeds, too."""
    before = {row.key: row for row in old}
    for row in new:
        lost = {*_numbers(before[row.key])} - {*_numbers(row)} if row.key in before else None
        if lost:
            raise UserError(
                f"--save: {row.row}: has seed {before[row.key].seeds} in the table, and "
                f"{row.seeds} here; save the runs of all of them, or use --add-seeds where all "
                "seeds here are new; to replace it, delete its rows from the table first"
            )


def _pooled(old: ResultRow, new: ResultRow) -> ResultRow:
    both = sorted({*_numbers(old)} & {*_numbers(new)})
    if both:
        text = ",".join(map(str, both))
        raise UserError(
            f"--add-seeds: {old.row}: has seed {text} already; read folders of other seeds"
        )
    found = _moments(old) + _moments(new)
    lower, upper = t_interval(found.mean, found.sd, found.n)
    seeds = ",".join(map(str, sorted([*_numbers(old), *_numbers(new)])))
    added = f"seed={new.seeds} was added later"
    return replace(
        new,
        command=_with_seeds(new.command, seeds),
        mean=Decimal(f"{found.mean:.10g}"),
        sd=ten_digits(found.sd),
        n=found.n,
        seeds=seeds,
        lower=ten_digits(lower),
        upper=ten_digits(upper),
        device=_joined(old.device, new.device),
        commit=_joined(old.commit, new.commit),
        versions=_joined(old.versions, new.versions),
        date=max(old.date, new.date),
        note=_joined(old.note, new.note, added),
    )


def _numbers(row: ResultRow) -> list[int]:
    return [int(seed) for seed in row.seeds.split(",") if seed]


def _moments(row: ResultRow) -> Moments:
    """Raises UserError where the row's mean is not one over its seeds, or its spread is missing."""
    if row.n is None or row.n != len(_numbers(row)):
        raise UserError(f"--add-seeds: {row.row}: {row.metric}: n={row.n} is not its seeds' number")
    if row.sd is None and row.n > 1:
        raise UserError(f"--add-seeds: {row.row}: {row.metric}: has no standard deviation")
    return Moments(row.n, float(row.mean), float(row.sd or 0))


def _with_seeds(command: str, seeds: str) -> str:
    if not command:
        return ""
    words = [word for word in shlex.split(command) if not word.startswith("seed=")]
    return shlex.join([*words, f"seed={seeds}"])


def _joined(*texts: str) -> str:
    """The parts of texts that have semicolons between them, each once."""
    return "; ".join(dict.fromkeys(part for text in texts for part in text.split("; ") if part))

"""Means, intervals and paired differences of a few seeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from cl_bench.report.statistics import Summary, paired


def test_intervals_are_students() -> None:
    """Against SciPy's own; one number has neither spread nor interval."""
    values = (61.0, 64.0, 58.0, 70.0, 66.0, 59.0)
    found = Summary(values)
    assert (found.n, found.mean) == (6, pytest.approx(63)) and found.sd == pytest.approx(4.56, 1e-3)
    theirs = ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.interval == pytest.approx((theirs.low, theirs.high))
    assert Summary((3.0,)).interval is None and Summary((3.0,)).formatted() == "3.00"
    assert Summary((1.0, 2.0)).interval == pytest.approx((1.5 - 12.7062 / 2, 1.5 + 12.7062 / 2))
    assert Summary((2.0, 2.0, 2.0)).interval == (2.0, 2.0)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_intervals_cover_what_their_heading_says(n: int) -> None:
    """Of normal numbers, 4,000 times: within four standard errors of 95 %."""
    draws = np.random.default_rng(n).normal(7.0, 3.0, (4_000, n))
    ends = [Summary(tuple(row)).interval or (0.0, 0.0) for row in draws.tolist()]
    covered = np.mean([low <= 7.0 <= high for low, high in ends])
    assert abs(covered - 0.95) < 4 * (0.95 * 0.05 / 4_000) ** 0.5


def test_pairs_are_of_equal_seeds() -> None:
    """Seeds 1 and 2 are in both: gains 1 and 3, whatever the seeds do to both."""
    found = paired({0: 9.0, 1: 51.0, 2: 13.0}, {1: 50.0, 2: 10.0, 3: 0.0})
    assert found is not None and (found.n, found.mean) == (2, 2)
    assert found.interval is not None and paired({0: 1.0}, {1: 1.0}) is None
    three = paired({1: 51.0, 2: 13.0, 3: 2.0}, {1: 50.0, 2: 10.0, 3: 0.0})
    theirs = ttest_rel((51.0, 13.0, 2.0), (50.0, 10.0, 0.0)).confidence_interval(0.95)
    assert three is not None and three.interval == pytest.approx((theirs.low, theirs.high))

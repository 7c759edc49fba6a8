"""Metrics on matrices made by hand."""

from __future__ import annotations

from math import isnan, nan

import pytest
import torch

from cl_bench.results.metrics import AccuracyMatrix
from cl_bench.results.record import json_value


def made() -> AccuracyMatrix:
    """Three tasks, every entry measured; the untrained network at 0.1, 0.2, 0.3."""
    matrix = AccuracyMatrix(3)
    matrix.fill(-1, [0, 1, 2], [0.1, 0.2, 0.3])
    matrix.fill(0, [0, 1, 2], [0.9, 0.3, 0.2])
    matrix.fill(1, [0, 1, 2], [0.95, 0.8, 0.5])
    matrix.fill(2, [0, 1, 2], [0.6, 0.7, 1.0])
    return matrix


def test_by_hand() -> None:
    found = made().summary()
    assert found["ACC"] == pytest.approx((0.6 + 0.7 + 1.0) / 3)
    assert found["BWT"] == pytest.approx(((0.6 - 0.9) + (0.7 - 0.8)) / 2)
    assert found["FWT"] == pytest.approx(((0.3 - 0.2) + (0.5 - 0.3)) / 2)
    assert found["forgetting"] == pytest.approx(((0.95 - 0.6) + (0.8 - 0.7)) / 2)
    assert made().forgetting_of_task.tolist() == pytest.approx([0.95 - 0.6, 0.8 - 0.7])
    assert found["LA"] == pytest.approx((0.9 + 0.8 + 1.0) / 3)
    assert found["AIA"] == pytest.approx((0.9 + 0.875 + (0.6 + 0.7 + 1.0) / 3) / 3)


def test_relations() -> None:
    """RA - LA = BWT (T - 1) / T; perfect retention forgets nothing."""
    matrix = made()
    assert matrix.acc - matrix.learning_accuracy == pytest.approx(matrix.bwt * 2 / 3)
    matrix.values[:] = torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64)
    assert matrix.bwt == 0 and matrix.forgetting == 0


def test_what_was_not_measured_is_nan() -> None:
    matrix = AccuracyMatrix(3)
    for row in range(2):
        matrix.fill(row, [row], [0.9])
    matrix.fill(2, [0, 1, 2], [0.5, 0.6, 0.9])
    found = matrix.summary()
    assert found["ACC"] == pytest.approx(2 / 3) and found["BWT"] == pytest.approx(-0.35)
    assert all(isnan(found[name]) for name in ("FWT", "forgetting", "AIA"))
    kept = AccuracyMatrix.of(json_value(matrix.values.tolist()), json_value([nan, 0.2, nan]))
    torch.testing.assert_close(kept.values, matrix.values, rtol=0, atol=0, equal_nan=True)
    assert kept.initial[1] == 0.2 and kept.initial.isnan().tolist() == [True, False, True]


def test_each_image_counts_the_same_where_tasks_are_unequal() -> None:
    """With 50, 20 and 30 test images: the accuracy on all of them, and its mean over time."""
    matrix = AccuracyMatrix(3, [50, 20, 30])
    matrix.values = made().values
    found = matrix.summary()
    last = 0.5 * 0.6 + 0.2 * 0.7 + 0.3 * 1.0
    assert found["ACC_images"] == pytest.approx(last)
    second = (50 * 0.95 + 20 * 0.8) / 70
    assert found["AIA_images"] == pytest.approx((0.9 + second + last) / 3)
    assert matrix.until(1).summary()["ACC_images"] == pytest.approx(second)
    matrix.values[1, 0] = nan
    assert isnan(matrix.summary()["AIA_images"]) and not isnan(matrix.summary()["ACC_images"])
    assert AccuracyMatrix(3, [20] * 3).summary().keys() == made().summary().keys()


def test_until() -> None:
    early = made().until(1)
    assert early.acc == pytest.approx(0.875) and early.bwt == pytest.approx(0.05)
    assert made().until(0).acc == pytest.approx(0.9)


def test_one_task_has_no_transfer() -> None:
    matrix = AccuracyMatrix(1)
    matrix.fill(0, [0], [0.7])
    found = matrix.summary()
    assert found["ACC"] == found["LA"] == found["AIA"] == pytest.approx(0.7)
    assert all(isnan(found[name]) for name in ("BWT", "FWT", "forgetting"))

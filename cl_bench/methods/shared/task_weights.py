"""Weights of new and old losses by the number of the task (van de Ven et al. 2022)."""

from __future__ import annotations

from torch import Tensor


def combined(new: Tensor, old: Tensor, number: int | None) -> Tensor:
    """1/t of the new loss plus 1 - 1/t of the old one, in task number t; None: their sum."""
    return new + old if number is None else 1 / number * new + (1 - 1 / number) * old

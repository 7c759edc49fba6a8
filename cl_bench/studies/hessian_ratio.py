"""The diagonal's share of the Hessian, sum |H_ii| / sum |H_ij| (Yang 2022, section 3.2, figure 1).

The note finds this ratio proportional to log(n / d) for linear regression with n samples of d
features. For independent features, uniform about zero, H = 2 X'X / n has off-diagonal entries with
a mean |H_ij| / H_ii of sqrt(2 / (pi n)) for large n. So the ratio is
1 / (1 + (d - 1) sqrt(2 / (pi n))), which is no function of n / d.
"""

from __future__ import annotations

from math import pi, sqrt
from statistics import mean, stdev
from typing import Annotated, Any

import torch
from annotated_types import Ge
from pydantic import Field
from torch import Generator, Tensor

from cl_bench.base.bounds import Count, Index, Seed
from cl_bench.base.exceptions import UserError
from cl_bench.results.page import Page
from cl_bench.studies.models import MODELS, Model, fitted, hessian

PUBLISHED = {  # ratios by d, at r = log10(n / d) = 0, 0.5, ..., 3, from the note's notebook
    10: (0.1729, 0.2348, 0.3843, 0.5183, 0.6553, 0.8059, 0.8552),
    50: (0.0755, 0.1255, 0.2097, 0.3058, 0.4500, 0.5835, 0.7165),
    100: (0.0541, 0.0916, 0.1513, 0.2404, 0.3553, 0.4983, 0.6454),
}

Dimensions = Annotated[list[Count], Field(min_length=1, description="a list of integers above 0")]


def theory(dimension: int, samples: int) -> float:
    """The expected ratio, 1 / (1 + (d - 1) sqrt(2 / (pi n)))."""
    return 1 / (1 + (dimension - 1) * sqrt(2 / (pi * samples)))


def ratio(matrix: Tensor) -> float:
    """The diagonal's share of the sum of absolute entries of a matrix."""
    return float(matrix.diagonal().abs().sum() / matrix.abs().sum())


def study(
    dimensions: Dimensions, repeats: Annotated[int, Ge(2)], extension_dimension: Index, seed: Seed
) -> Page:
    """Measure the ratio for d 10^r samples, r = 0, 0.5, ..., 3, as in the note.

    A fifth of the samples, the note's test split, make the Hessian of linear regression. Logistic
    regression and an MLP on `extension_dimension` features are measured too, unless it is 0.
    """
    if not dimensions or max(dimensions) < 2 or repeats < 2:
        raise UserError("study=hessian_ratio: needs a dimension above 1 and two repeats or more")
    rng = Generator().manual_seed(seed)
    rows = [_linear(d, r / 2, repeats, rng) for d in dimensions for r in range(7)]
    large = [row for row in rows if row["n_test"] >= 100]
    ours = max((abs(row["ratio"] - row["theory"]) for row in large), default=0.0)
    known = [row for row in rows if row["published"]]
    theirs = max((abs(row["published"] - row["theory"]) for row in known), default=0.0)
    for name in ("logistic", "mlp") if extension_dimension else ():
        rows += [_fitted(MODELS[name], extension_dimension, r / 2, repeats, rng) for r in range(5)]
    findings = [
        f"linear regression: at most {ours:.3f} from 1 / (1 + (d-1) sqrt(2 / (pi n_test))) "
        f"wherever n_test >= 100 ({repeats} repeats); the published points at most {theirs:.3f}",
        "at equal n / d the ratio falls with d: it is no function of n / d, nor linear in its log",
        "it does not depend on theta or on training: H of a linear regression is the data's; "
        "with dependent features (an MLP's) the law does not hold, see the last rows",
    ]
    return Page("The diagonal's share of the Hessian", findings, rows, lambda f: _draw(f, rows))


def _linear(d: int, r: float, repeats: int, rng: Generator) -> dict[str, Any]:
    samples = max(1, round(d * 10**r * 0.2))
    found = []
    for _ in range(repeats):
        x = 200 * torch.rand(samples, d, generator=rng, dtype=torch.float64) - 100
        found.append(ratio(2 * x.T @ x / samples))
    published = PUBLISHED[d][int(2 * r)] if d in PUBLISHED else None
    return _row("linear", d, r, samples, found, theory(d, samples), published)


def _fitted(model: Model, d: int, r: float, repeats: int, rng: Generator) -> dict[str, Any]:
    """The ratio at the optimum of the training samples, four fifths; H is that of the others."""
    found, count = [], model.size(d)
    samples = max(1, round(count * 10**r * 0.2))
    for _ in range(max(2, repeats // 10)):
        theta, x, y = fitted(model, d, 5 * samples, rng)
        found.append(ratio(hessian(model, theta, x[:samples], y[:samples])))
    return _row(model.name, count, r, samples, found, None, None)


def _row(
    model: str, d: int, r: float, n: int, found: list[float], law: Any, published: Any
) -> dict:
    row = {"model": model, "parameters": d, "log10 n/d": r, "n_test": n, "ratio": mean(found)}
    return row | {"sd": stdev(found), "theory": law, "published": published}


def _draw(figure: Any, rows: list[dict[str, Any]]) -> None:
    axes = figure.add_subplot(xlabel="n_test", ylabel="sum |H_ii| / sum |H_ij|", xscale="log")
    for key in dict.fromkeys((row["model"], row["parameters"]) for row in rows):
        part = [row for row in rows if (row["model"], row["parameters"]) == key]
        x, y = [row["n_test"] for row in part], [row["ratio"] for row in part]
        (line,) = axes.plot(x, y, "o", label=f"{key[0]}, {key[1]} parameters")
        if part[0]["theory"] is not None:
            axes.plot(x, [row["theory"] for row in part], "-", color=line.get_color())
    axes.legend()
    axes.grid(alpha=0.3)

"""Errors of the old loss's Taylor expansion, with and without off-diagonal terms (Yang 2022, 3.1).

The note finds that dropping the off-diagonal always costs more than the expansion itself. But it
looks at linear regression, whose loss is quadratic: there the expansion is exact. This study
repeats the note's experiment, and then takes logistic regression and an MLP on the same tasks. The
displacement of the parameters by a new task is scaled by the factors SCALES.
"""

from __future__ import annotations

from statistics import mean
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Generator, Tensor

from cl_bench.base.bounds import Count, NonNegative, Seed
from cl_bench.base.exceptions import UserError
from cl_bench.results.page import Page
from cl_bench.studies.models import MODELS, Model, features, hessian, labelled, trained

SCALES = (0.01, 0.03, 0.1, 0.3, 1.0)


def study(
    dimension: Count,
    drawn: Count,
    samples: Annotated[int, Ge(5)],
    tasks: Annotated[int, Ge(2)],
    drift: NonNegative,
    repeats: Count,
    seed: Seed,
) -> Page:
    """Train each model on the tasks in turn, and expand each task's loss while the next is learned.

    A task sees `drawn` features, drawn with replacement from `dimension`. The true parameters move
    by a normal step of width `drift` between tasks.
    """
    if tasks < 2 or not drawn >= 1 or dimension < 1:
        raise UserError("study=taylor_error: needs two tasks, a feature drawn and one to draw from")
    rows, options = [], (dimension, drawn, tasks, drift)
    for name, model in MODELS.items():
        count = samples if model.regression else samples // 5
        rngs = [Generator().manual_seed(1000 * seed + i) for i in range(repeats)]
        errors = [e for rng in rngs for e in _errors(model, count, *options, rng)]
        for scale in SCALES:
            taylor, diagonal = zip(*(e[1:] for e in errors if e[0] == scale), strict=True)
            row = {"model": name, "displacement": scale, "taylor error": mean(taylor)}
            row |= {"diagonal error": mean(diagonal)}
            larger = (d > t for t, d in zip(taylor, diagonal, strict=True))
            rows.append(row | {"diagonal larger": mean(larger)})
    findings = _findings({row["model"]: row for row in rows if row["displacement"] == 1.0})
    return Page("Errors of the Taylor expansion", findings, rows, lambda f: _draw(f, rows))


def _findings(whole: dict[str, dict[str, Any]]) -> list[str]:
    """A sentence for the row of each model at the whole displacement."""
    findings = [
        f"linear regression: Taylor's relative error is {whole['linear']['taylor error']:.1e}, "
        f"rounding; the diagonal's is {whole['linear']['diagonal error']:.1e}: it is the larger "
        "one because the loss is quadratic, so that its expansion is exact",
    ]
    for name in ("logistic", "mlp"):
        row = whole[name]
        findings.append(
            f"{name}, whole displacement: Taylor {row['taylor error']:.2g}, diagonal "
            f"{row['diagonal error']:.2g}; the diagonal's is larger in "
            f"{100 * row['diagonal larger']:.0f}% of transitions"
        )
    return findings


def _errors(
    model: Model, samples: int, d: int, drawn: int, tasks: int, drift: float, rng: Generator
) -> list[tuple[float, float, float]]:
    """(scale, |L - T| / L, |T_diag - T| / L) for each pair of successive tasks and each scale."""
    truth = 2 * torch.rand(d, generator=rng, dtype=torch.float64) - 1
    theta = 0.3 * torch.randn(model.size(d), generator=rng, dtype=torch.float64)
    found: list[tuple[float, float, float]] = []
    before: tuple[Tensor, Tensor] | None = None
    for _ in range(tasks):
        x, y = _task(model, samples, d, drawn, truth, rng)
        after = trained(model, theta, x, y)
        if before is not None:
            move = after - theta
            found += [(s, *_relative_errors(model, theta, s * move, *before)) for s in SCALES]
        theta, before = after, (x, y)
        truth = truth + drift * torch.randn(d, generator=rng, dtype=torch.float64)
    return found


def _task(
    model: Model, samples: int, d: int, drawn: int, truth: Tensor, rng: Generator
) -> tuple[Tensor, Tensor]:
    seen = torch.zeros(d, dtype=torch.float64)
    seen[torch.randint(d, (drawn,), generator=rng)] = 1
    x = features(model, samples, d, rng) * seen
    return x, labelled(model, x, truth if model.regression else 4 * truth, rng)


def _relative_errors(
    model: Model, theta: Tensor, move: Tensor, x: Tensor, y: Tensor
) -> tuple[float, float]:
    """|L - T| / L and |T_diag - T| / L at theta + move, for the loss of (x, y)."""
    actual = model.loss(theta + move, x, y)
    start, slope = model.loss(theta, x, y), torch.func.grad(model.loss)(theta, x, y)
    matrix = hessian(model, theta, x, y)
    taylor = start + slope @ move + move @ matrix @ move / 2
    diagonal = start + slope @ move + move @ (matrix.diagonal() * move) / 2
    return float((actual - taylor).abs() / actual), float((diagonal - taylor).abs() / actual)


def _draw(figure: Any, rows: list[dict[str, Any]]) -> None:
    axes = figure.add_subplot(
        xlabel="share of the new task's displacement",
        ylabel="error / old loss",
        xscale="log",
        yscale="log",
    )
    for name in MODELS:
        part = [row for row in rows if row["model"] == name]
        x = [row["displacement"] for row in part]
        (line,) = axes.plot(x, [row["taylor error"] for row in part], "o-", label=f"{name}: Taylor")
        y = [row["diagonal error"] for row in part]
        axes.plot(x, y, "s:", color=line.get_color(), label=f"{name}: off-diagonal dropped")
    axes.legend()
    axes.grid(alpha=0.3)

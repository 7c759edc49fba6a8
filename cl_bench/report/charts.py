"""Pictures for the HTML page, as data URIs, so that no file lies beside it."""

from __future__ import annotations

import warnings
from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd

from cl_bench.report.quantities import ACC
from cl_bench.report.rows import Row
from cl_bench.report.tables import Table
from cl_bench.results.figures import picture, row_percent

MAX_ROWS = 12  # in a picture
MAX_LABEL = 44  # characters in a legend
AXES = {
    "train s": "training, seconds",
    "peak MiB": "peak memory, MiB",
    "gradients": "gradients per training image",
    "state MiB": "state besides the network, MiB",
}


def drawn_rows(table: Table) -> list[Row]:
    """The rows with the highest ACC, in the table's order."""
    measured = [(found.mean, row) for row in table.rows if (found := row.summary(ACC))]
    best = [row for _, row in sorted(measured, key=lambda pair: -pair[0])[:MAX_ROWS]]
    return [row for row in table.rows if row in best]


def matrices(row: Row) -> np.ndarray:
    """The accuracy matrices (n, T, T) of a row's runs in percent, NaN where not measured.

    Only of the runs that have as many tasks as the first one.
    """
    found = [np.array(run.record["accuracy"], dtype=float) for run in row.runs]
    return 100 * np.stack([matrix for matrix in found if matrix.shape == found[0].shape])


def curves(rows: list[Row]) -> str | None:
    """ACC of the tasks so far after each task, with a band of one standard deviation.

    None where no row has a complete lower triangle.
    """
    drawn = {}
    for place, row in enumerate(rows):
        every = matrices(row)
        values = np.stack([every[:, t, : t + 1].mean(1) for t in range(every.shape[1])], 1)
        if values.shape[1] > 1 and not np.isnan(values).any():
            drawn[place] = np.arange(values.shape[1]), values
    return _lines(rows, drawn, "after task", "ACC of the tasks so far (%)")


def curves_along(rows: list[Row]) -> str | None:
    """Accuracy on the classes seen so far over the training images, of `evaluation.every`.

    Of the runs of a row that were tested after as many images as the first one; None where no row
    was tested so.
    """
    drawn = {}
    for place, row in enumerate(rows):
        tested = [np.array(found).T for run in row.runs if (found := run.record.get("along"))]
        if tested:
            images = tested[0][0]
            alike = [one[1] for one in tested if np.array_equal(one[0], images)]
            drawn[place] = images, 100 * np.stack(alike)
    return _lines(rows, drawn, "training images", "accuracy on the classes so far (%)")


def _lines(
    rows: list[Row], drawn: dict[int, tuple[np.ndarray, np.ndarray]], xlabel: str, ylabel: str
) -> str | None:
    """Lines with a band of one standard deviation; None where there is nothing to draw.

    drawn  by the place of a row among all rows: x (m,), and a line (m,) for each of its runs (n, m)
    """
    if not drawn:
        return None

    def draw(figure: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
        for place, (x, values) in drawn.items():
            middle, colour = values.mean(0), f"C{place % 10}"
            style = {"color": colour, "label": _label(rows[place]), "marker": "o", "ms": 3}
            axes.plot(x, middle, "-" if place < 10 else "--", **style)
            if len(values) > 1:
                sd = values.std(0, ddof=1)
                axes.fill_between(x, middle - sd, middle + sd, color=colour, alpha=0.15, lw=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", fontsize=8)

    return svg(draw, (8, 4))


def against_costs(table: Table, rows: list[Row]) -> str | None:
    """ACC against seconds, memory and gradients: a point for each row, with standard deviations."""
    quantities = [quantity for quantity in table.costs if quantity.name in AXES]
    if not rows or not quantities:
        return None

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(quantities), sharey=True, squeeze=False)[0]
        panels[0].set_ylabel("ACC (%)")
        points = {}
        for axes, quantity in zip(panels, quantities, strict=True):
            costs = []
            for place, row in enumerate(rows):
                acc, cost = row.summary(ACC), row.summary(quantity)
                if acc is not None and cost is not None:
                    style = {"fmt": "o" if place < 10 else "s", "color": f"C{place % 10}"}
                    style |= {"xerr": cost.sd, "yerr": acc.sd}
                    points[place] = axes.errorbar(cost.mean, acc.mean, **style)
                    costs.append(cost.mean)
            wide = min(costs, default=0) > 0 and max(costs) > 20 * min(costs)
            axes.set_xscale("log" if wide else "linear")
            if not wide:
                axes.ticklabel_format(axis="x", useOffset=False)
            axes.set_xlabel(AXES[quantity.name])
            axes.grid(alpha=0.3)
        names = [_label(rows[place]) for place in points]
        figure.legend(points.values(), names, loc="outside right upper", fontsize=8)

    return svg(draw, (13, 3.6))


def _label(row: Row) -> str:
    """A row's label in the legend, cut; matplotlib hides labels that begin with an underscore."""
    name = f" {row.name}" if row.name.startswith("_") else row.name
    return name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…"


def heat_map(values: np.ndarray) -> str:
    """A matrix in percent as a picture, a pixel for each entry; viridis, 0 to 100 %."""
    from matplotlib import colormaps
    from matplotlib.image import imsave

    file = BytesIO()
    imsave(file, colormaps["viridis"](np.ma.masked_invalid(values) / 100), format="png")
    return _data_uri("image/png", file.getvalue())


def confusions(row: Row) -> np.ndarray | None:
    """(K, K): the mean confusion matrix of those runs of a row that kept it, in percent of a row.

    None where no run kept its predictions, or the files cannot be read.
    """
    found = []
    for run in row.runs:
        try:
            counts = pd.read_csv(run.folder / "confusion.csv", index_col=0).to_numpy(dtype=float)
        except (OSError, ValueError):
            continue
        if counts.ndim == 2 and counts.shape[0] == counts.shape[1] > 0:
            found.append(row_percent(counts))
    return np.mean([m for m in found if m.shape == found[0].shape], 0) if found else None


def svg(draw: Callable[[Any], None], size: tuple[float, float]) -> str:
    """An SVG picture of `size` inches; its text stays text, its bytes are the same each time."""
    import matplotlib

    options: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "cl_bench",
        "text.parse_math": False,
    }
    with matplotlib.rc_context(options), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser has its own
        content = picture(draw, size, format="svg", metadata={"Date": None})
    return _data_uri("image/svg+xml", content)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"

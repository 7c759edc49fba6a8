"""Pictures for the HTML page, as data URIs, so that no file lies beside it."""

from __future__ import annotations

import warnings
from base64 import b64encode
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd

from cl_bench.report.quantities import ACC
from cl_bench.report.rows import Row
from cl_bench.report.statistics import Summary
from cl_bench.report.tables import Table
from cl_bench.results.figures import picture, row_percent

MAX_ROWS = 12  # in a picture
ROUND = 10  # colours, after which lines are dashed and points square
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
    return _lines(drawn, "after task", "ACC of the tasks so far (%)")


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
    return _lines(drawn, "training images", "accuracy on the classes so far (%)")


def _lines(drawn: dict[int, tuple[np.ndarray, np.ndarray]], xlabel: str, ylabel: str) -> str | None:
    """Lines with a band of one standard deviation; None where there is nothing to draw.

    drawn  by the place of a row among all rows: x (m,), and a line (m,) for each of its runs (n, m)
    """
    if not drawn:
        return None

    def draw(figure: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
        for place, (x, values) in drawn.items():
            middle, colour = values.mean(0), f"C{place % ROUND}"
            axes.plot(x, middle, "-" if place < ROUND else "--", color=colour, marker="o", ms=3)
            if len(values) > 1:
                sd = values.std(0, ddof=1)
                axes.fill_between(x, middle - sd, middle + sd, color=colour, alpha=0.15, lw=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)

    return svg(draw, (5.6, 3.6))


def against_costs(table: Table, rows: list[Row]) -> Iterator[tuple[str, str]]:
    """ACC against each cost: its name and a picture, a point for each row with its deviations."""
    for quantity in table.costs:
        pairs = [(row.summary(ACC), row.summary(quantity)) for row in rows]
        points = {p: (acc, cost) for p, (acc, cost) in enumerate(pairs) if acc and cost}
        if quantity.name in AXES and points:
            drawing = partial(_draw_costs, points=points, xlabel=AXES[quantity.name])
            yield AXES[quantity.name], svg(drawing, (3.0, 2.7))


def _draw_costs(figure: Any, points: dict[int, tuple[Summary, Summary]], xlabel: str) -> None:
    """A point for each row, by its place among the rows: ACC and a cost."""
    axes = figure.add_subplot(xlabel=xlabel, ylabel="ACC (%)")
    for place, (acc, cost) in points.items():
        style = {"fmt": "o" if place < ROUND else "s", "color": f"C{place % ROUND}"}
        axes.errorbar(cost.mean, acc.mean, xerr=cost.sd, yerr=acc.sd, **style)
    costs = [cost.mean for _, cost in points.values()]
    wide = min(costs) > 0 and max(costs) > 20 * min(costs)
    axes.set_xscale("log" if wide else "linear")
    if not wide:
        axes.ticklabel_format(axis="x", useOffset=False)
    axes.grid(alpha=0.3)


def legend(rows: list[Row]) -> Iterator[dict[str, str]]:
    """The name of each row, and how the pictures of its section draw it."""
    from matplotlib.colors import to_hex

    for place, row in enumerate(rows):
        style = "solid" if place < ROUND else "dashed"
        yield {"name": row.name, "colour": to_hex(f"C{place % ROUND}"), "style": style}


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

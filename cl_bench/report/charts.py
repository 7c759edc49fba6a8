"""Pictures for the page, as data URIs: nothing is fetched, nothing lies beside the page."""

from __future__ import annotations

import warnings
from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np

from cl_bench.report.rows import Row
from cl_bench.report.tables import ACC, Table, of
from cl_bench.results.figures import picture

MOST = 12  # rows in a picture; the page says which

LABELS = {
    "train s": "training, seconds",
    "peak MiB": "peak memory, MiB",
    "gradients": "gradients per training image",
}


def chosen(table: Table) -> list[Row]:
    """The rows that are drawn: those of the highest ACC, in the table's order."""
    known = [(found.mean, row) for row in table.rows if (found := of(ACC)(row))]
    ranked = [row for _, row in sorted(known, key=lambda pair: -pair[0])[:MOST]]
    return [row for row in table.rows if row in ranked]


def matrices(row: Row) -> np.ndarray:
    """(n, T, T) in percent, NaN where nothing was measured; of runs with equally many tasks."""
    found = [np.array(run["accuracy"], dtype=float) for run in row.runs]
    return 100 * np.stack([m for m in found if m.shape == found[0].shape])


def curves(rows: list[Row]) -> str | None:
    """ACC of the tasks so far after each task, a band of one standard deviation; None: unknown."""
    drawn = {}
    for place, row in enumerate(rows):
        every = matrices(row)
        values = np.stack([every[:, t, : t + 1].mean(1) for t in range(every.shape[1])], 1)
        if values.shape[1] > 1 and not np.isnan(values).any():
            drawn[place] = values
    if not drawn:
        return None

    def fill(figure: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot(xlabel="after task", ylabel="ACC of the tasks so far (%)")
        for place, values in drawn.items():
            tasks, middle, colour = range(values.shape[1]), values.mean(0), f"C{place % 10}"
            style = {"color": colour, "label": _cut(rows[place].name), "marker": "o", "ms": 3}
            axes.plot(tasks, middle, "-" if place < 10 else "--", **style)
            if len(values) > 1:
                sd = values.std(0, ddof=1)
                axes.fill_between(tasks, middle - sd, middle + sd, color=colour, alpha=0.15, lw=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", fontsize=8)

    return svg(fill, (8, 4))


def against_costs(table: Table, rows: list[Row]) -> str | None:
    """ACC against seconds, memory and gradients, each row a point with its standard deviation."""
    quantities = [quantity for quantity in table.costs if quantity.name in LABELS]
    if not rows or not quantities:
        return None

    def fill(figure: Any) -> None:
        panels = figure.subplots(1, len(quantities), sharey=True, squeeze=False)[0]
        panels[0].set_ylabel("ACC (%)")
        points = {}
        for axes, quantity in zip(panels, quantities, strict=True):
            costs = []
            for place, row in enumerate(rows):
                found, cost = of(ACC)(row), of(quantity)(row)
                if found is not None and cost is not None:
                    style = {"fmt": "o" if place < 10 else "s", "color": f"C{place % 10}"}
                    style |= {"xerr": cost.sd, "yerr": found.sd}
                    points[place] = axes.errorbar(cost.mean, found.mean, **style)
                    costs.append(cost.mean)
            wide = min(costs, default=0) > 0 and max(costs) > 20 * min(costs)
            axes.set_xscale("log" if wide else "linear")
            if not wide:
                axes.ticklabel_format(axis="x", useOffset=False)
            axes.set_xlabel(LABELS[quantity.name])
            axes.grid(alpha=0.3)
        names = [_cut(rows[place].name) for place in points]
        figure.legend(points.values(), names, loc="outside right upper", fontsize=8)

    return svg(fill, (11, 3.6))


def _cut(name: str, most: int = 44) -> str:
    """A label of the legend, which leaves out those that begin with an underscore."""
    name = f" {name}" if name.startswith("_") else name
    return name if len(name) <= most else f"{name[: most - 1]}…"


def heat_map(row: Row) -> str:
    """R, averaged over the runs, a pixel an entry; viridis from 0 to 100 %."""
    from matplotlib import colormaps
    from matplotlib.image import imsave

    file = BytesIO()
    values = matrices(row).mean(0)
    imsave(file, colormaps["viridis"](np.ma.masked_invalid(values) / 100), format="png")
    return _uri("image/png", file.getvalue())


def svg(fill: Callable[[Any], None], size: tuple[float, float]) -> str:
    """One picture; its text stays text."""
    import matplotlib

    same: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "cl_bench",
        "text.parse_math": False,
    }
    with matplotlib.rc_context(same), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser has its own
        content = picture(fill, size, format="svg", metadata={"Date": None})
    return _uri("image/svg+xml", content)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"

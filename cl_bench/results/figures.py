"""A run's two pictures: the accuracy matrix and ACC after each task."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

from cl_bench.results.metrics import AccuracyMatrix


def picture(
    fill: Callable[[Any], None], size: tuple[float, float] = (7.2, 4.4), **options: Any
) -> bytes:
    """A picture as a file's content; `fill` draws into an empty figure of `size` inches.

    `options` are savefig's: the format, and what it takes.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # no word on its font cache
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    fill(figure)
    content = BytesIO()
    figure.savefig(content, dpi=150, **options)
    return content.getvalue()


def drawn(matrix: AccuracyMatrix, title: str) -> dict[str, bytes]:
    """The contents of accuracy.png and acc.png, by the files' names without the ending."""
    return {
        "accuracy": picture(partial(heat_map, matrix, title), (6.4, 5.2)),
        "acc": picture(partial(curve, matrix, title), (6.4, 4.0)),
    }


def heat_map(matrix: AccuracyMatrix, title: str, figure: Any) -> None:
    """R in percent, written into the cells where they are few."""
    values = 100 * matrix.values.numpy()
    tasks = len(values)
    axes = figure.add_subplot(title=title, xlabel="tested on task", ylabel="after task")
    image = axes.imshow(values, vmin=0, vmax=100, cmap="viridis")
    figure.colorbar(image, label="accuracy (%)")
    if tasks <= 20:
        for i, j in zip(*(values == values).nonzero(), strict=True):
            colour = "white" if values[i, j] < 60 else "black"
            axes.text(j, i, f"{values[i, j]:.0f}", ha="center", va="center", color=colour, size=7)
        axes.set_xticks(range(tasks))
        axes.set_yticks(range(tasks))


def curve(matrix: AccuracyMatrix, title: str, figure: Any) -> None:
    """ACC over the tasks so far, and the accuracy on the task just learned."""
    from matplotlib.ticker import MaxNLocator

    tasks = range(len(matrix.values))
    axes = figure.add_subplot(
        title=title, xlabel="after task", ylabel="accuracy (%)", ylim=(0, 100)
    )
    axes.plot(tasks, [100 * matrix.until(t).acc for t in tasks], "o-", label="ACC, tasks so far")
    axes.plot(tasks, 100 * matrix.values.diagonal().numpy(), "s:", label="task just learned")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")

"""Draws the pictures of a run: its accuracy matrix, ACC after each task, accuracy along the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

from cl_bench.base.exceptions import UserError, one_line
from cl_bench.base.files import DamagedError
from cl_bench.results.metrics import AccuracyMatrix

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from cl_bench.results.record import RunRecord

MAX_NAMES = 40  # classes whose names are written beside a confusion matrix


def picture(
    fill: Callable[[Any], None],
    size: tuple[float, float] = (7.2, 4.4),
    layout: Literal["constrained"] | None = "constrained",
    **options: Any,
) -> bytes:
    """The content of an image file, drawn by `fill` into an empty figure of `size` inches.

    `layout=None` leaves matplotlib's margins as they are, which takes half the time. `options` are
    those of `savefig`, such as the format. Matplotlib is imported here, so that no run waits for
    it before training.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it announces its font cache
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=layout)
    fill(figure)
    content = BytesIO()
    figure.savefig(content, dpi=150, **options)
    return content.getvalue()


def prediction_tables(folder: Path, record: RunRecord) -> dict[str, pd.DataFrame]:
    """The tables of a run's predictions after the last task by their names; none without them.

    Raises UserError where the file of the predictions is damaged or missing.
    """
    if not record.config["evaluation"].get("predictions"):  # an old record has no such key
        return {}
    from cl_bench.results import predictions  # imports pandas, which is slow

    try:
        found = predictions.read(folder, len(record.accuracy) - 1)
    except (DamagedError, FileNotFoundError) as error:
        raise UserError(f"{one_line(error, 400)}; force=true makes the run again") from None
    return predictions.tables(found, record.stream)


def draw_record(
    record: RunRecord, tables: Mapping[str, pd.DataFrame], title: str
) -> dict[str, bytes]:
    """The contents of all pictures of a run by their names; `tables` are those of predictions."""
    matrix, title = (
        AccuracyMatrix.of(record.accuracy, record.initial),
        f"{title}, seed {record.seed}",
    )
    return draw_run(matrix, record.along or (), title) | draw_confusions(tables, title)


def draw_run(
    matrix: AccuracyMatrix, along: Sequence[tuple[int, float]], title: str
) -> dict[str, bytes]:
    """The contents of the pictures of a run, by their names: `accuracy`, `acc`, maybe `along`.

    along  images so far and accuracy on the classes seen so far, where that was measured
    """
    drawn = {
        "accuracy": picture(partial(draw_matrix, matrix, title), (6.4, 5.2), None),
        "acc": picture(partial(draw_curves, matrix, title), (6.4, 4.0), None),
    }
    if along:
        drawn["along"] = picture(partial(draw_along, along, title), (6.4, 4.0), None)
    return drawn


def draw_along(along: Sequence[tuple[int, float]], title: str, figure: Any) -> None:
    """Draw the accuracy on the classes seen so far over the training images so far."""
    images, accuracies = zip(*along, strict=True)
    axes = figure.add_subplot(
        title=title, xlabel="training images so far", ylabel="accuracy (%)", ylim=(0, 100)
    )
    axes.plot(images, [100 * a for a in accuracies], ".-", label="classes seen so far")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")


def draw_matrix(matrix: AccuracyMatrix, title: str, figure: Any) -> None:
    """Draw R as a heat map in percent; up to 20 tasks with the numbers in its cells."""
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


def draw_curves(matrix: AccuracyMatrix, title: str, figure: Any) -> None:
    """Draw ACC over the tasks so far, and the accuracy on the task just learned."""
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


def draw_confusions(tables: Mapping[str, pd.DataFrame], title: str) -> dict[str, bytes]:
    """The contents of pictures of the confusion matrices among `tables`, by their names."""
    return {
        name: picture(partial(draw_confusion, table, title), (7.2, 6.4))
        for name, table in tables.items()
        if name.endswith("confusion")
    }


def row_percent(counts: Any) -> Any:
    """A matrix of counts (an array) in percent of its rows; a row without counts stays 0."""
    return 100 * counts / counts.sum(1, keepdims=True).clip(min=1)


def draw_confusion(counts: pd.DataFrame, title: str, figure: Any) -> None:
    """Draw a confusion matrix as a heat map, each row in percent of its images."""
    shares = row_percent(counts.to_numpy(dtype=float))
    of = str(counts.index.name)
    axes = figure.add_subplot(title=title, xlabel=of.replace("true", "predicted"), ylabel=of)
    image = axes.imshow(shares, vmin=0, vmax=100, cmap="viridis")
    figure.colorbar(image, label="share of the row (%)")
    if len(counts) <= MAX_NAMES:
        axes.set_xticks(range(len(counts)), counts.columns, rotation=90, fontsize=7)
        axes.set_yticks(range(len(counts)), counts.index, fontsize=7)

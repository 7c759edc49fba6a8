"""Published figures: the rows that they are compared with, and what differs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from conftest import composed
from omegaconf import OmegaConf
from records import write

from cl_bench.config.nodes import Leaves, leaves
from cl_bench.report import formats, published
from cl_bench.report.configs import matching_keys
from cl_bench.report.quantities import METRICS
from cl_bench.report.rows import gather
from cl_bench.report.tables import tables
from cl_bench.results.records import read_all


def test_published_figures_are_compared_with_their_rows(tmp_path: Path) -> None:
    """EWC on 20 permutations: 62.32 (EMCL); two epochs are another protocol, 10 tasks no row."""
    config: dict[str, Any] = {"dataset__tasks": 20, "dataset__train_per_task": 1000}
    config |= {"schedule__epochs": 1, "schedule__batch_size": 1}
    config |= {"model___target_": "cl_bench.models.mlp.MLP", "model__hidden": [100, 100]}
    config |= {"method__curvature___target_": "cl_bench.curvature.diagonal.BatchedFisher"}
    config |= {"method__merging___target_": "cl_bench.curvature.merging.one_per_task"}
    write(tmp_path, "ewc", "a", (0.6, 0.7), "pmnist/data", **config)
    write(tmp_path, "ewc", "b", (0.6,), "pmnist/data", **config | {"schedule__epochs": 2})
    write(tmp_path, "ewc", "c", (0.6,), "pmnist/data", **config | {"dataset__tasks": 10})
    ten, twenty = tables(gather(read_all(tmp_path)), None)
    assert ten.section.stream == "dataset.tasks=10" and not ten.published
    same, other = (twenty.nearest(row) for row in twenty.rows)
    assert same is not None and same.figure.value == 62.32 and same.differences == []
    assert same.deviation == pytest.approx(65 - 62.32)
    assert other is not None and other.differences == ["schedule.epochs=2 (published: 1)"]
    assert formats.data_frame([twenty])["published ACC"].tolist() == [62.32, 62.32]
    assert "62.32 ± 1.34 (EMCL, table III, from La-MAML)\\* |" in formats.markdown([twenty])


def test_figures_of_another_training_loss_are_not_the_same_protocol(tmp_path: Path) -> None:
    """DER's task-IL is class-IL with the task known in the test, and no figure of scenario=task."""
    config: dict[str, Any] = {"dataset__tasks": 5, "method__buffer__capacity": 200}
    for scenario, live in (("task", "task_il"), ("class", "class_il")):
        masks: dict[str, Any] = {"_target_": f"cl_bench.data.scenario.{live}"}
        config["scenario__live"] = masks
        write(tmp_path, "er", "a", (0.9,), f"seqcifar10/{scenario}", **config)
    of_class, of_task = tables(gather(read_all(tmp_path)), None)
    assert of_task.section.scenario == "task" and not of_task.published
    (figure,) = of_class.published
    assert figure.figure.value == 44.79
    assert "loss_over=seen (published: all)" in figure.differences
    config["scenario__live"] = {**masks, "future": True}
    write(tmp_path / "future", "er", "c", (0.9,), "seqcifar10/class", **config)
    (of_all,) = tables(gather(read_all(tmp_path / "future")), None)
    assert not any("loss_over" in line for line in of_all.published[0].differences)
    config["scenario__live"] = masks
    write(tmp_path / "joint", "joint", "b", (0.9,), "seqcifar10/class", **config)
    (table,) = tables(gather(read_all(tmp_path / "joint")), None)
    assert table.published[0].figure.value == 92.20, "joint training sees all classes at once"
    assert not any("loss_over" in line for line in table.published[0].differences)
    for figure in published.figures():
        loss_over = {**figure.row, **figure.protocol}.get("loss_over")
        assert (loss_over in ("own", "seen", "all", "unstated")) == (figure.scenario != "data")
        assert figure.source != "DER" or figure.scenario != "task"


def test_published_files_name_what_exists() -> None:
    """A figure's place and its method compose; its `row` means one key each of theirs."""

    @cache
    def keys(*overrides: str) -> Leaves:
        made = OmegaConf.to_container(composed(*overrides), resolve=True)
        return leaves(cast(dict[str, Any], made))

    quantities = {quantity.name for quantity in METRICS}
    for figure in published.figures():
        place = (f"dataset={figure.dataset}", f"scenario={figure.scenario}")
        own = keys(*place) | keys(f"method={figure.method}")
        if "buffer.per_class" in figure.row:  # a memory whose size is in images of each class
            own |= keys(f"method={figure.method}", "buffer=equal")
        assert figure.metric in quantities and -100 < figure.value < 100
        for key in figure.row.keys() - {"pretrained", "loss_over"}:
            assert len(matching_keys(key, own)) == 1, (figure, key)
        for key in figure.protocol.keys() - {"backbone", "model.width", "loss_over"}:
            assert len(matching_keys(key, own)) == 1, (figure, key)

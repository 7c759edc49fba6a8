"""Checks that the options of `dataset` fit the data set, before the data set is read."""

from __future__ import annotations

from typing import Any

from hydra.utils import get_object
from torch import Generator

from cl_bench.base.exceptions import UserError
from cl_bench.core.types import Scenario
from cl_bench.data import plan
from cl_bench.data import scenario as scenarios
from cl_bench.data.class_ids import positions_of
from cl_bench.data.published import Contents, Shape, known_contents
from cl_bench.data.split import TrainingLimit

SEQUENCE = "cl_bench.data.composed.sequence"
MASKS = {  # the masks of our own scenarios, by the name that a config has
    f"{scenarios.__name__}.{mask.__name__}": mask
    for mask in (scenarios.data_il, scenarios.task_il, scenarios.class_il)
}


def check(plain: dict[str, Any]) -> list[int] | None:
    """The number of training images of each task; None where not known before the data is read.

    Raises UserError where a resolved config asks for what its data set does not have.

    What is not known in advance, such as the classes of an image folder, `stream.build` checks.
    """
    dataset, scenario, evaluation = (plain[key] for key in ("dataset", "scenario", "evaluation"))
    contents = known_contents(dataset["source"])
    _check_sequence(dataset)
    if contents is not None:
        contents = plan.with_imbalance(contents, dataset["imbalance"])
    _check_transform(dataset["transform"], contents, plain["model"].get("pretrained"))
    limit = TrainingLimit(dataset["train_per_task"], dataset["fraction"], dataset["imbalance"])
    limit.require_single()
    images = None if limit.count is None else [limit.count]
    if contents is not None:
        images = _images(contents, dataset, limit, MASKS.get(scenario["live"]["_target_"]))
    if evaluation["split"] == "val":
        for task, count in enumerate(images or []):
            plan.holdout_size(task, count, evaluation["holdout"])
    if holds_out(plain):
        for task, count in enumerate(images or []):
            plan.holdout_size(task, count, plain["schedule"]["holdout"], "schedule.holdout")
    return None if contents is None else images


def holds_out(plain: dict[str, Any]) -> bool:
    """Whether a share `schedule.holdout` of each task's images is not trained on."""
    early = plain["schedule"].get("patience") is not None
    return early or get_object(plain["method"]["_target_"]).uses_held_out


def _check_sequence(dataset: dict[str, Any]) -> None:
    """Raise UserError where a sequence of data sets is to be cut into another number of tasks."""
    of, tasks = dataset["source"].get("of"), dataset["tasks"]
    is_sequence = dataset["source"]["_target_"] == SEQUENCE and isinstance(of, dict)
    if is_sequence and of and dataset["order"] == "superclass" and tasks != len(of):
        raise UserError(
            f"dataset.tasks={tasks}: dataset.source.of names {len(of)} data sets, each of which "
            f"is a task; use dataset.tasks={len(of)}, or another dataset.order"
        )


def shape_and_classes(dataset: dict[str, Any]) -> tuple[Shape, int] | None:
    """Shape of a network's input and number of outputs for `dataset`; None where not known."""
    contents = known_contents(dataset["source"])
    if contents is None or contents.classes is None:
        return None
    transform, (channels, side, _) = dataset["transform"], contents.shape
    side = transform["resize"] or transform["crop"] or side
    if dataset["heads"] == "position":
        rng = Generator().manual_seed(dataset["seed"])
        asked = dataset["split"], dataset["tasks"], dataset["order"], rng
        groups = plan.classes_of_tasks(contents, *asked) or [[]]
        return (channels, side, side), len(positions_of(groups)[0])
    apart = dataset["split"] != "class" and dataset["heads"] == "apart"
    copies = plan.number_of(dataset["tasks"]) if apart else 1
    return (channels, side, side), contents.classes * copies


def _images(
    contents: Contents, dataset: dict[str, Any], limit: TrainingLimit, mask: Scenario | None
) -> list[int] | None:
    """The number of training images of each task; None where not known."""
    split, rng = dataset["split"], Generator().manual_seed(dataset["seed"])
    by_position = dataset["heads"] == "position"
    groups = plan.classes_of_tasks(contents, split, dataset["tasks"], dataset["order"], rng)
    if split == "class" and groups is not None and mask is not None:
        plan.membership(positions_of(groups) if by_position else groups, mask)
    there = None if groups is None else plan.task_sizes(contents, split, groups)
    return plan.limited_sizes(contents, limit, there)


def _check_transform(
    transform: dict[str, Any], contents: Contents | None, pretrained: str | None
) -> None:
    """Raise UserError where the transform does not go with the images, as far as they are known.

    pretrained  the backbone of the model, which may have brought `mean` and `std`
    """
    mean, std, crop = transform["mean"], transform["std"], transform["crop"]
    if len(mean) != len(std):
        raise UserError(
            f"dataset.transform.mean={mean}: has {len(mean)} values and dataset.transform.std has "
            f"{len(std)}; each needs one for every channel"
        )
    if contents is None:
        return
    channels, side, _ = contents.shape
    if len(mean) != channels:
        raise UserError(
            f"dataset.transform.mean={mean}: the images of {contents.name} have {channels} "
            f"channels, not {len(mean)}; give one value for each"
            + (f", or another model.pretrained than {pretrained}" if pretrained else "")
        )
    if crop is not None and crop > side:
        raise UserError(
            f"dataset.transform.crop={crop}: the images of {contents.name} have {side} pixels, and "
            "those that are tested are not padded; use at most that"
        )

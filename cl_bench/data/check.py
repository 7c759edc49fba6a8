"""Whether a dataset's options fit the data set they are for, before that is read."""

from __future__ import annotations

from typing import Any

from torch import Generator

from cl_bench.base.exceptions import UserError
from cl_bench.core.types import Scenario
from cl_bench.data import plan
from cl_bench.data import scenario as scenarios
from cl_bench.data.published import Contents, Shape, published
from cl_bench.data.split import Keep

MASKS = {  # of the scenarios whose masks are known here
    f"{scenarios.__name__}.{mask.__name__}": mask
    for mask in (scenarios.data_il, scenarios.task_il, scenarios.class_il)
}


def check(plain: dict[str, Any]) -> None:
    """UserError where a resolved config asks for what its data set does not have.

    What is not known before it is read, as of an image folder, is checked by `stream.build`.
    """
    dataset, scenario, evaluation = (plain[key] for key in ("dataset", "scenario", "evaluation"))
    contents = published(dataset["source"])
    _check_transform(dataset["transform"], contents)
    keep = Keep(dataset["train_per_task"], dataset["fraction"])
    keep.require_one()
    images = None if keep.count is None else [keep.count]
    if contents is not None:
        images = _images(contents, dataset, keep, MASKS.get(scenario["live"]["_target_"]))
    if evaluation["split"] == "val":
        for task, count in enumerate(images or []):
            plan.held_out(task, count, evaluation["holdout"])


def shape_and_classes(dataset: dict[str, Any]) -> tuple[Shape, int] | None:
    """What a network sees of a resolved `dataset`, and how many outputs it needs; None: unknown."""
    contents = published(dataset["source"])
    if contents is None or contents.classes is None:
        return None
    transform, (channels, side, _) = dataset["transform"], contents.shape
    side = transform["resize"] or transform["crop"] or side
    apart = dataset["split"] != "class" and dataset["heads"] == "apart"
    return (channels, side, side), contents.classes * (dataset["tasks"] if apart else 1)


def _images(
    contents: Contents, dataset: dict[str, Any], keep: Keep, mask: Scenario | None
) -> list[int] | None:
    """The training images of each task, where they are known."""
    split, rng = dataset["split"], Generator().manual_seed(dataset["seed"])
    groups = plan.groups_of(contents, split, dataset["tasks"], dataset["order"], rng)
    if split == "class" and groups is not None and mask is not None:
        plan.membership(groups, mask)
    there = None if groups is None else plan.sizes(contents, split, groups)
    return plan.kept(contents, keep, there)


def _check_transform(transform: dict[str, Any], contents: Contents | None) -> None:
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
        )
    if crop is not None and crop > side:
        raise UserError(
            f"dataset.transform.crop={crop}: the images of {contents.name} have {side} pixels, and "
            "those that are tested are not padded; use at most that"
        )

"""Class-incremental learning in which classes that are still to come compete from the start."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from conftest import SCENARIOS, class_of, composed, names
from omegaconf import open_dict
from test_contract import small_run
from torch import Tensor

from cl_bench.config.name import config_hash
from cl_bench.core.types import Scenario
from cl_bench.data.scenario import class_il
from cl_bench.data.stream import sequential
from cl_bench.testing.small_run import SmallRun

METHODS = [name for name in names("method") if "class" in class_of(name).scenarios]
FUTURE = partial(class_il, future=True)


def run(name: str, scenario: Scenario, first: int | None = None) -> SmallRun:
    """A run on three tasks of two classes, or on the `first` of them."""
    found = small_run(name, "class")
    plain = found.arranged if first is None else partial(sequential, first=first)
    return replace(found, arranged=lambda s: plain(replace(s, scenario=scenario)))()


def test_the_mask() -> None:
    classes = torch.eye(3, dtype=torch.bool)
    assert class_il(classes, 0).tolist() == [[True, False, False]] * 3
    assert FUTURE(classes, 0).all()


def test_without_it_a_config_keeps_its_hash() -> None:
    """That from before there was this option, also with a data set of one's own."""
    for target in ("cl_bench.data.stream.build", "builtins.dict"):
        cfg = composed("dataset=seqmnist5k", "scenario=class")
        cfg.dataset._target_ = target
        found = config_hash(cfg)
        cfg.scenario.live.future = True
        assert config_hash(cfg) != found
        with open_dict(cfg):
            del cfg.scenario.live.future
        assert config_hash(cfg) == found


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name: str) -> None:
    """Parameters and accuracies are finite, and something was learned."""
    made = run(name, FUTURE)
    assert made.theta.isfinite().all()
    last = made.progress.matrix.values[-1]
    assert last.isfinite().all() and last.max() > 0.1, last


def test_finetuning_is_that_with_one_head_for_all_tasks() -> None:
    shared = run("finetune", SCENARIOS["data"])
    assert run("finetune", FUTURE).theta.equal(shared.theta)
    assert not run("finetune", class_il).theta.equal(shared.theta)


def heads_bias(made: SmallRun) -> Tensor:
    bias = made.made.learner.heads.bias_of(made.made.learner.flat.theta.detach())
    assert bias is not None
    return bias


@pytest.mark.parametrize("name", ["er", "icarl", "wa", "lwf"])
def test_logits_of_classes_to_come_are_trained_down(name: str) -> None:
    """After the first of three tasks, in which nothing has the labels 2 to 5."""
    still, moved = [heads_bias(run(name, each, first=1))[2:] for each in (class_il, FUTURE)]
    assert (moved < still - 1e-3).all()


def test_exemplars_are_of_classes_so_far() -> None:
    """Classes to come are neither old nor new to methods that tell these apart."""
    for name in ("wa", "lucir"):
        method: Any = run(name, FUTURE, first=2).made
        assert method.known.nonzero().flatten().tolist() == [0, 1]
        assert method.now.nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_the_accuracy_if_the_task_is_known() -> None:
    found = run("finetune", FUTURE).progress
    assert found.known_task is not None
    assert found.known_task > found.matrix.values[-1].mean()

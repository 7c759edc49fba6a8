"""The head's warm-up against closed forms, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import SCENARIOS, blobs, composed, identity, learner, mlp, resnet
from torch import Tensor
from torch.func import grad

from cl_bench.base.exceptions import UserError
from cl_bench.config.check import check_config
from cl_bench.core.criteria import ScaledMSE
from cl_bench.core.types import Batch
from cl_bench.data.stream import joint
from cl_bench.engine.head_warmup import fit_head, new_classes
from cl_bench.models.linearized import Linearized


def started(scenario: str, now: int, net: Any = None) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    made, stream = learner((net or mlp()).double(), transform=identity()), blobs(scenario)
    task = stream.tasks[now]
    made.begin_task(stream.live(now), task.t.unique(), stream.live_at_end)
    return made, stream, task


@pytest.mark.parametrize(
    ("scenario", "found"), [("data", [6, 0, 0]), ("task", [2, 2, 2]), ("class", [2, 2, 2])]
)
def test_new_classes(scenario: str, found: list[int]) -> None:
    stream = blobs(scenario)
    new = [new_classes(stream, task) for task in stream.tasks]
    assert [int(each.sum()) for each in new] == found
    assert torch.stack(new).sum(0).eq(1).all(), "each class once"


def test_all_classes_are_new_to_a_joint_stream_and_only_met_ones_to_a_fixed_head() -> None:
    """The joint task has the last one's number; with scenario=data dataset.split=class classes are
    met in turn though all compete."""
    whole = joint(blobs("class"), None)
    assert new_classes(whole, whole.tasks[0]).all()
    apart = replace(blobs("class"), scenario=SCENARIOS["data"])
    assert [int(new_classes(apart, task).sum()) for task in apart.tasks] == [2, 2, 2]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_squared_loss_is_ridge_regression(scenario: str) -> None:
    """Against the normal equations; all but the new rows stays."""
    made, stream, task = started(scenario, 0 if scenario == "data" else 1)
    made.criterion = ScaledMSE(15.0)
    new, before = new_classes(stream, task), made.flat.theta.detach().clone()
    fit_head(made, task, new)
    z = made.features(Batch(task.x, task.y, task.t))
    ones = torch.cat([z, torch.ones_like(z[:, :1])], 1)
    ridge = torch.ones_like(ones[0])
    ridge[-1] = 0
    target = 15.0 * torch.nn.functional.one_hot(task.y, 6).double()[:, new]
    exact = torch.linalg.solve(ones.T @ ones + ridge.diag(), ones.T @ target)
    head = made.net.head
    fitted = torch.cat([head.weight[new], head.bias[new].unsqueeze(1)], 1).T
    torch.testing.assert_close(fitted, exact, rtol=1e-3, atol=1e-3)
    changed = made.flat.theta != before
    assert changed.any() and not (changed & made.heads.in_use(~new).bool()).any()


def rows(made: Any, new: Tensor) -> Tensor:
    """(P,) bool: the head's rows of the classes `new`."""
    return made.heads.in_use(new).bool() & ~made.heads.in_use(torch.zeros_like(new)).bool()


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", ["mlp", "tangent"])
def test_nothing_pulls_at_the_new_rows_any_more(scenario: str, kind: str) -> None:
    """Cross-entropy over the new classes: the gradient of mean loss + ridge; nothing runs away."""
    net = mlp() if kind == "mlp" else Linearized(mlp(), "bilinear")
    made, stream, task = started(scenario, 0 if scenario == "data" else 2, net)
    new = new_classes(stream, task)
    fit_head(made, task, new)
    whole = Batch(task.x, task.y, task.t)

    def objective(theta: Tensor) -> Tensor:
        weight = made.flat.views(theta)["head.weight"]
        losses = made.criterion(made.logits(theta, whole), task.y, new.expand(len(task), -1))
        return losses.mean() + weight.square().sum() / (2 * len(task))

    slope = grad(objective)(made.flat.theta.detach())
    assert slope[rows(made, new)].abs().max() < 1e-4 < slope.abs().max()
    assert made.net.head.bias[new].abs().max() < 10


def test_where_batch_norm_trains_the_features_are_those_of_training() -> None:
    """The batch's own statistics; the running ones stay."""
    torch.manual_seed(0)
    made, stream = learner(resnet(shape=(1, 4, 4)), transform=identity(channels=1)), blobs("task")
    task = stream.tasks[0]
    made.begin_task(stream.live(0), task.t.unique(), stream.live_at_end)
    before = [buffer.clone() for buffer in made.net.buffers()]
    fit_head(made, task, new_classes(stream, task))
    assert before and all(map(torch.equal, before, made.net.buffers()))
    with torch.no_grad():
        fitted = made.loss(made.flat.theta, Batch(task.x, task.y, task.t))
    assert fitted < 0.3, "in training mode"


def test_it_draws_nothing_and_in_data_il_comes_once() -> None:
    made, stream, task = started("data", 0)
    states = made.rng.get_state(), torch.get_rng_state()
    fit_head(made, task, new_classes(stream, task))
    assert made.rng.get_state().equal(states[0]) and torch.get_rng_state().equal(states[1])
    assert made.net.training
    before = made.flat.theta.detach().clone()
    fit_head(made, stream.tasks[1], new_classes(stream, stream.tasks[1]))
    assert made.flat.theta.equal(before)


def test_a_tangent_in_all_parameters_has_its_head_where_it_was_taken() -> None:
    options = "model.linearize=true", "model.norm=folded", "model.head_mode=linearized"
    with pytest.raises(UserError, match=r"use schedule\.warm_up=none"):
        check_config(composed("dataset=seqcifar100", *options, "schedule.warm_up=head"))

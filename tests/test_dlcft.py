"""DLCFT's claim, exactly: on a quadratic loss, training in sequence is training on all at once."""

from __future__ import annotations

from typing import Any

import pytest
import reference as ref
import torch
from conftest import SCENARIOS, learner, mlp
from torch import Generator, Tensor
from torch.func import jacrev

from cl_bench.criteria import ScaledMSE
from cl_bench.curvature.dense import FullFisher
from cl_bench.curvature.kfac import KFAC, TKFAC
from cl_bench.curvature.penalty import averaged
from cl_bench.learner import Learner
from cl_bench.methods.dlcft import DLCFT
from cl_bench.models.prepare import prepared
from cl_bench.types import Batch, Task

TASKS, SAMPLES, CLASSES = 3, 60, 6


def tasks(scenario: str) -> tuple[list[Task], Tensor]:
    """Random pixels, equal numbers; (T, K) classes of each."""
    g = Generator().manual_seed(7)
    each = CLASSES // TASKS
    made, member = [], torch.zeros(TASKS, CLASSES, dtype=torch.bool)
    for t in range(TASKS):
        x = torch.randint(0, 256, (SAMPLES, 2, 2, 2), generator=g, dtype=torch.uint8)
        y = torch.randint(0, CLASSES, (SAMPLES,), generator=g)
        y = y if scenario == "data" else t * each + y % each
        member[t, y] = True
        made.append(Task(t, x, y, torch.full_like(y, t)))
    return made, member


def start(scenario: str) -> Learner:
    """In data-IL all of the network, linearized; in class-IL the head on frozen features."""
    torch.manual_seed(0)
    small = mlp(CLASSES, (2, 2, 2), hidden=[3], activation="tanh")
    mode = "linearized" if scenario == "data" else "head_only"
    net = prepared(small, torch.zeros(1, 2, 2, 2), None, "batch", scenario == "data", mode)
    if scenario != "data":
        torch.nn.init.zeros_(net.head.weight)  # type: ignore[arg-type]
        torch.nn.init.zeros_(net.head.bias)  # type: ignore[arg-type]
    made = learner(net.double(), transform=ref.case("mlp")[0].transform)
    made.criterion = ScaledMSE(15.0)
    return made


def solve(made: Learner, objective: Any, *args: Any, matrix: Any = 0, pull: Any = 0) -> None:
    """The minimiser of a quadratic objective + 1/2 d' matrix d: one Newton step."""
    theta = made.flat.theta.detach()
    slope = torch.func.grad(objective)(theta, *args) + pull
    curved = jacrev(jacrev(objective))(theta, *args) + matrix
    step = torch.linalg.pinv(curved, hermitian=True, rtol=1e-11) @ slope
    made.flat.theta.data.sub_(step)


def in_sequence(scenario: str, estimate: Any, by: Any = "tasks") -> Learner:
    """The stream by DLCFT, every task to its exact minimum."""
    made, (stream, member) = start(scenario), tasks(scenario)
    method = DLCFT(
        made, estimate, lambda p, f: averaged(p, f, by), 1.0, "explicit", 1, "never", 0, 1, 0.5
    )
    ever = SCENARIOS[scenario](member, TASKS - 1)
    for task in stream:
        made.begin_task(SCENARIOS[scenario](member, task.id), task.t[:1], ever)
        method.begin_task(task)
        matrix = pull = 0
        if method.penalty.past:
            held, strength = method.penalty.past[0], method.penalty.strength
            size = made.flat.theta.numel()
            matrix = strength * ref.dense(held.curvature.matvec, size)
            pull = strength * method.penalty.pull(made.flat.theta.detach())
        solve(made, method._new, Batch(task.x, task.y, task.t), matrix=matrix, pull=pull)
        method.end_task(task)
    return made


def at_once(scenario: str) -> Learner:
    made, (stream, member) = start(scenario), tasks(scenario)
    live = SCENARIOS[scenario](member, TASKS - 1)
    made.begin_task(live, torch.arange(TASKS), live)
    whole = (torch.cat([getattr(task, f) for task in stream]) for f in "xyt")
    solve(made, made.loss, Batch(*whole))
    return made


def answers(made: Learner, scenario: str) -> Tensor:
    stream, _ = tasks(scenario)
    whole = Batch(*(torch.cat([getattr(task, f) for task in stream]) for f in "xyt"))
    return made.logits(made.flat.theta, whole).detach()


@pytest.mark.parametrize("scenario", ["data", "class"])
def test_with_the_exact_curvature_sequential_is_joint(scenario: str) -> None:
    """Class-IL: units that are not revealed yet are held at zero on old data (section 3.3)."""
    joint = answers(at_once(scenario), scenario)
    found = answers(in_sequence(scenario, FullFisher("exact", None)), scenario)
    torch.testing.assert_close(found, joint, rtol=1e-7, atol=1e-7)
    literal = answers(in_sequence(scenario, FullFisher("exact", None), "literal"), scenario)
    assert (literal - joint).norm() > 0.01 * joint.norm()


@pytest.mark.parametrize(
    "estimate", [KFAC("exact", None, "diagonal"), TKFAC("exact", None, "diagonal", "published")]
)
def test_on_frozen_features_the_factors_are_exact(estimate: Any) -> None:
    """The head's curvature is E[zz'] (x) I (eq. 13), and a Kronecker product holds it whole."""
    joint = answers(at_once("class"), "class")
    torch.testing.assert_close(
        answers(in_sequence("class", estimate), "class"), joint, rtol=1e-7, atol=1e-7
    )

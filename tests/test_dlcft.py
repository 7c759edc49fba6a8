"""DLCFT's claim, exactly: on a quadratic loss, training in sequence is training on all at once."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import reference as ref
import torch
from conftest import SCENARIOS, composed, learner, method_for, mlp
from torch import Generator, Tensor
from torch.func import jacrev

from cl_bench.base.exceptions import UserError
from cl_bench.config.check import check_config
from cl_bench.core.buffer import Reservoir
from cl_bench.core.criteria import ScaledMSE
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Task
from cl_bench.curvature.dense import FullFisher
from cl_bench.curvature.kfac import EKFAC, KFAC, TKFAC
from cl_bench.curvature.merging import running_mean
from cl_bench.curvature.penalty_steps import gradient
from cl_bench.engine import checkpoint
from cl_bench.methods.dlcft import DLCFT
from cl_bench.models.prepare import prepare_network

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
    net = prepare_network(
        small, torch.zeros(1, 2, 2, 2), None, "batch", scenario == "data", mode, with_head=False
    )
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
    options: Any = (
        1.0,
        "explicit",
        1,
        "never",
        partial(Reservoir, 1, "all", False),
        1,
        0.5,
        "none",
        1.0,
    )
    method = DLCFT(made, estimate, lambda p, f: running_mean(p, f, by, "weighted"), *options)
    ever = SCENARIOS[scenario](member, TASKS - 1)
    for task in stream:
        made.begin_task(SCENARIOS[scenario](member, task.id), task.t[:1], ever)
        method.begin_task(task)
        matrix = pull = 0
        if method.penalty.quadratics:
            held, strength = method.penalty.quadratics[0], method.penalty.factor
            size = made.flat.theta.numel()
            matrix = strength * ref.dense(held.curvature.matvec, size)
            pull = strength * gradient(method.penalty.quadratics, made.flat.theta.detach())
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


FACTORED = [KFAC("exact", None, "diagonal"), TKFAC("exact", None, "diagonal", "published")]


@pytest.mark.parametrize("estimate", FACTORED)
def test_on_frozen_features_the_factors_are_exact(estimate: Any) -> None:
    """The head's curvature is E[zz'] (x) I (eq. 13), and a Kronecker product holds it whole."""
    joint = answers(at_once("class"), "class")
    torch.testing.assert_close(
        answers(in_sequence("class", estimate), "class"), joint, rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize(("scenario", "curvature"), [("data", "full"), ("class", "kfac")])
def test_a_preconditioned_step_is_newtons(scenario: str, curvature: str) -> None:
    """With the exact curvature and all samples in a batch, one step at rate 1 reaches the minimum.

    In sequence, such steps lead to the solution of joint training.
    """
    made, (stream, member) = start(scenario), tasks(scenario)
    options = "method.precondition=curvature", "method.damping=1e-9", "method.memory=never"
    options += (f"curvature={curvature}", "curvature.labels=exact", "optimizer=sgd")
    method = method_for("dlcft", made, *options)
    ever = SCENARIOS[scenario](member, TASKS - 1)
    for task in stream:
        made.begin_task(SCENARIOS[scenario](member, task.id), task.t[:1], ever)
        method.begin_task(task)
        before = made.flat.theta.detach().clone()
        method.observe(Batch(task.x, task.y, task.t))
        step = (made.flat.theta.detach() - before) / made.lr
        made.flat.theta.data.copy_(before + step)
        method.end_task(task)
        assert made.precondition is None
    joint = answers(at_once(scenario), scenario)
    torch.testing.assert_close(answers(made, scenario), joint, rtol=1e-5, atol=1e-5)


def test_a_preconditioned_run_continues_from_its_checkpoint() -> None:
    """Within a task: the curvature of the objective is not estimated again."""
    stream, member = tasks("class")
    options = "method.precondition=curvature", "optimizer=sgd", "curvature=kfac"
    first, second = (method_for("dlcft", start("class"), *options) for _ in range(2))
    live = SCENARIOS["class"](member, 0), stream[0].t[:1], SCENARIOS["class"](member, TASKS - 1)
    first.learner.begin_task(*live)
    first.begin_task(stream[0])
    batch = Batch(stream[0].x[:8], stream[0].y[:8], stream[0].t[:8])
    first.observe(batch)
    checkpoint.restore(second, checkpoint.state_of(first))
    second.learner.reveal(*live)
    for method in (first, second):
        method.observe(batch)
    assert first.learner.flat.theta.equal(second.learner.flat.theta)


def test_preconditioning_is_refused_where_the_optimizer_rescales() -> None:
    chosen = "method=dlcft", "dataset=seqcifar100", "method.precondition=curvature"
    with pytest.raises(UserError, match=r"torch\.optim\.Adam rescales gradients by itself; use"):
        check_config(composed(*chosen))
    with pytest.raises(UserError, match=r"step=auto: .* use method.step=explicit"):
        check_config(composed(*chosen, "optimizer=sgd", "method.step=auto"))
    check_config(composed(*chosen, "optimizer=sgd"))


@pytest.mark.parametrize(("scenario", "keeps"), [("data", False), ("task", False), ("class", True)])
def test_a_memory_is_kept_where_competitors_grow(scenario: str, keeps: bool) -> None:
    made, (stream, member) = start("class"), tasks(scenario)
    method = method_for("dlcft", made, "buffer.capacity=20", "curvature=full")
    live, ever = (SCENARIOS[scenario](member, t) for t in (0, TASKS - 1))
    for task in stream[:2]:
        made.begin_task(SCENARIOS[scenario](member, task.id), task.t[:1], ever)
        method.begin_task(task)
        method.end_task(task)
    assert method.keeps == keeps and len(method.memory) == 20 * keeps
    assert method.penalty.factor == (0.25 if keeps else 0.5), "as the second of two tasks"
    assert live.shape == ever.shape


def test_the_objective_is_equation_14() -> None:
    """1/t L + (t-1)/t (share/2 d'Hd + (1 - share) replay) for t = 3, its gradient by autograd."""
    made, (stream, member) = start("class"), tasks("class")
    options = "method.share=0.3", "method.replay=4", "buffer.capacity=20", "method.strength=2.0"
    method = method_for("dlcft", made, *options, "curvature=full")
    ever = SCENARIOS["class"](member, TASKS - 1)
    for task in stream:
        made.begin_task(SCENARIOS["class"](member, task.id), task.t[:1], ever)
        method.begin_task(task)
        if task.id < 2:
            made.flat.theta.data.add_(0.1 * torch.randn_like(made.flat.theta))
            method.end_task(task)
    made.flat.theta.data.add_(0.1 * torch.randn_like(made.flat.theta))
    theta, before = made.flat.theta.detach().clone().requires_grad_(), made.rng.get_state()
    new = Batch(stream[2].x[:5], stream[2].y[:5], stream[2].t[:5])
    old, (held,) = method.memory.sample(4), method.penalty.quadratics
    made.rng.set_state(before)
    d = theta - held.anchor
    past = 0.3 * (d @ ref.dense(held.curvature.matvec, len(d)) @ d) + 0.7 * made.loss(theta, old)
    whole = made.loss(theta, new) / 3 + 2 / 3 * past
    (slope,) = torch.autograd.grad(whole, theta)
    method.observe(new)
    stepped = theta.detach() - made.flat.theta.detach()
    torch.testing.assert_close(stepped / 0.1, slope, rtol=1e-9, atol=1e-9)


def test_in_task_il_the_head_of_a_new_task_is_free() -> None:
    """psi alone is held: past curvature is zero on the rows of other tasks' heads."""
    made, (stream, member) = start("class"), tasks("task")
    ever = SCENARIOS["task"](member, TASKS - 1)
    made.begin_task(ever, stream[0].t[:1], ever)
    for estimate in (FullFisher("exact", None), *FACTORED):
        found: Any = estimate(made, stream[0])
        free = made.heads.in_use(member[1:].any(0)).bool()
        v = torch.randn_like(made.flat.theta) * free
        torch.testing.assert_close(found.matvec(v), torch.zeros_like(v), rtol=0, atol=1e-12)
        assert found.matvec(torch.ones_like(v)).norm() > 0


def test_the_heads_factor_is_exact_whatever_the_labels() -> None:
    """A squared loss: G = I, with as few samples as there are (eq. 13)."""
    made, task = ref.case("tangent", "mse")
    for kind in (KFAC, EKFAC):
        found: Any = kind("sampled", None, "diagonal")(made, task)
        exact: Any = kind("exact", None, "diagonal")(made, task)
        v = torch.randn(ref.CLASSES, 9, dtype=torch.float64)
        torch.testing.assert_close(found.blocks[-1].matvec(v), exact.blocks[-1].matvec(v))
    traced: Any = TKFAC("sampled", None, "diagonal", "published")(made, task)
    g = torch.eye(ref.CLASSES, dtype=torch.float64) / ref.CLASSES
    torch.testing.assert_close(traced.blocks[-1].g, g)

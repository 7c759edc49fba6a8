"""EMCL against slow versions of the paper's equations, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import batch, blobs, compiles, composed, machine, method_for
from scipy.optimize import minimize_scalar
from test_meta import CLOSE, READINGS, slope, start, theta_of, twin
from torch import Generator, Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.config.build import build
from cl_bench.config.check import check_config
from cl_bench.core.criteria import ScaledMSE
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch
from cl_bench.data.stream import joined


def readings(made: Learner, *overrides: str) -> Any:
    """EMCL with an option for each thing that the paper leaves open."""
    return build(composed(READINGS, *overrides).method, learner=made)


PRINTED = {"meta": "closed_form", "unit": "one", "rule": "base", "rates": "new"}
CASES: list[dict[str, Any]] = [
    {},
    {"inner": "gradient", "rule": "constant"},
    {"inner": "plain", "rule": "relative", "unit": "mean", "start": "one"},
    {"inner": "modulated", "rule": "bounded", "floor": 1e-3},
    {"importance": "si", "at": "first", "rates": "old", "start": "one"},
    {"importance": "si", "at": "mean", "rule": "relative", "meta": "reptile"},
    {"importance": "taylor", "at": "mean", "start": "zero", "inner_lr": 0.05, "prox": 0.05},
    {"importance": "none", "rule": "constant", "passes": 2},
    {"importance": "taylor", "rule": "literal", "start": "one"},
    {"slice_size": 2},
    {"slice_size": 3, "at": "mean"},
]


def zou(made: Learner, method: Any, rows: Batch, h: Tensor, alpha: Tensor) -> tuple[Tensor, ...]:
    """Algorithm 1, an equation a line; returns theta, h, alpha."""
    m, start_at = method, theta_of(made)
    unit = m.h.mean() if m.unit == "mean" else 1.0
    used, theta, along = h / unit, start_at.clone(), 0.0
    used = used if m.rule == "literal" else used.clamp(min=m.floor)
    slices = list(rows.slices(m.slice_size))
    for some in slices:
        g = slope(made, theta, some)
        along = along + g * len(some.y) / len(rows.y)
        rate = alpha if m.inner == "modulated" else m.inner_lr
        if m.inner == "gradient":
            g = g + m.strength * used * (theta - start_at)
        theta = theta - rate * g
        if m.inner == "proximal":
            c = m.prox * m.strength * used
            theta = (theta + c * start_at) / (1 + c)
    at = {"batch": rows, "first": slices[0], "mean": None}[m.at]
    g = along if at is None else slope(made, start_at, at)
    if m.importance != "none":
        omega = (g * (start_at if m.importance == "taylor" else theta - start_at)).abs()
        new = m.decay * h + (1 - m.decay) * omega
        h = torch.where(h == 0, omega, new) if m.start == "first" else new
    unit = h.mean() if m.unit == "mean" else 1.0
    low = (h / unit).clamp(min=m.floor)
    before = alpha
    alpha = {
        "base": 0.1 * m.scale / low,
        "bounded": (alpha * m.scale / low).clamp(m.floor, 1),
        "relative": 0.1 * (m.scale * h.mean() / h).clamp(max=1),
        "constant": torch.full_like(h, 0.1),
        "literal": alpha * m.scale / (h / unit),
    }[m.rule]
    share = before if m.rates == "old" else alpha
    share = share * m.strength * used if m.meta == "closed_form" else share
    share = share if m.rule == "literal" else share.clamp(max=1)
    return start_at - share * (start_at - theta), h, alpha


@pytest.mark.parametrize("reading", CASES, ids=str)
def test_emcl_follows_its_equations(reading: dict[str, Any]) -> None:
    made = start()
    options = {"inner_lr": 0.2, "prox": 0.3, "strength": 3.0, "decay": 0.8, "scale": 0.4}
    options |= {"floor": 1e-3, **PRINTED}
    given = [f"method.{k}={v}" for k, v in {**options, **reading}.items()]
    method = readings(made, *given)
    h, alpha = method.h.clone(), method.alpha.clone()
    for _ in range(3):
        for rows in (batch(5), batch(4)):
            for _ in range(method.passes):
                expected, h, alpha = zou(made, method, rows, h, alpha)
                passes, method.passes = method.passes, 1
                method.observe(rows)
                method.passes = passes
                torch.testing.assert_close(theta_of(made), expected, **CLOSE)
                torch.testing.assert_close(method.h, h, **CLOSE)


def test_the_proximal_step_minimises() -> None:
    """eq. 14, 15 and 21: argmin_x lambda h / 2 (x - x0)^2 + (x - v)^2 / (2 gamma)."""
    g, made = Generator().manual_seed(0), start()
    for _ in range(20):
        v, x0, h, lam, gamma = (torch.rand(5, generator=g, dtype=torch.float64) * 3).tolist()
        given = [f"method.prox={gamma}", f"method.strength={lam}", "method.unit=one"]
        shrink = readings(made, *given)._share_kept(torch.tensor(h, dtype=torch.float64))

        def objective(x: float, own: tuple[float, ...] = (v, x0, h, lam, gamma)) -> float:
            v, x0, h, lam, gamma = own
            return lam * h / 2 * (x - x0) ** 2 + (x - v) ** 2 / (2 * gamma)

        found: Any = minimize_scalar(objective, options={"xtol": 1e-12})
        assert x0 + float(shrink) * (v - x0) == pytest.approx(found.x, abs=1e-6)


def test_the_meta_gradient_is_the_envelopes() -> None:
    """eq. 10 is the gradient in theta_0 of min_theta L + lambda/2 sum h (theta - theta_0)^2.

    By finite differences on a quadratic L whose inner problem is solved exactly; it is not the
    gradient of L(theta_k(theta_0)), as which the paper prints it.
    """
    g = Generator().manual_seed(0)
    root, b = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((6, 6), (6,)))
    A, h, lam = root @ root.T, torch.rand(6, generator=g, dtype=torch.float64), 2.0

    def inner(theta_0: Tensor) -> Tensor:
        return torch.linalg.solve(A + lam * h.diag(), lam * h * theta_0 - b)

    def L(theta: Tensor) -> Tensor:
        return 0.5 * theta @ A @ theta + b @ theta

    def envelope(theta_0: Tensor) -> Tensor:
        theta = inner(theta_0)
        return L(theta) + lam / 2 * (h * (theta - theta_0).square()).sum()

    theta_0 = torch.randn(6, generator=g, dtype=torch.float64)
    found = lam * h * (theta_0 - inner(theta_0))
    eye = 1e-5 * torch.eye(6, dtype=torch.float64)

    def by_differences(f: Any) -> Tensor:
        return torch.stack([(f(theta_0 + e) - f(theta_0 - e)) / 2e-5 for e in eye])

    torch.testing.assert_close(by_differences(envelope), found, rtol=1e-6, atol=1e-6)
    printed = by_differences(lambda x: L(inner(x)))
    assert not torch.allclose(printed, found, rtol=0.1)


def printed(made: Learner, rule: str, start: str) -> Any:
    """The method of the paper's text and table II, eta and r chosen."""
    given = {**PRINTED, "inner_lr": 0.15, "prox": 0.3, "strength": 10, "scale": 1.0, "decay": 0.9}
    options = [f"method.{k}={v}" for k, v in {**given, "rule": rule, "start": start}.items()]
    return readings(made, *options)


def test_equation_8_as_printed_diverges() -> None:
    """alpha <- (r / h) alpha: once h has come down to what importances are, far below r, alpha
    grows at every batch; where a first importance is 0 it is infinite at once."""
    made = start(lr=0.3)
    method, seen = printed(made, "literal", "one"), []
    for i in range(120):
        method.observe(batch(10)._replace(y=batch(10).y.roll(i)))
        seen.append(float(method.alpha.median()))
        if not theta_of(made).isfinite().all():
            break
    assert max(seen) > 1e6 or not theta_of(made).isfinite().all()
    assert seen[40] > 100 * seen[20] > 0, "batch after batch"
    at_once = start(lr=0.3)
    method = printed(at_once, "literal", "first")
    method.observe(batch(10))
    assert method.alpha.isinf().any() and (method.h == 0).any()
    method.observe(batch(10))
    assert theta_of(at_once).isnan().any()
    for rule in ("bounded", "base", "relative", "constant"):
        other = start(lr=0.3)
        method = printed(other, rule, "first")
        for i in range(20):
            method.observe(batch(10)._replace(y=batch(10).y.roll(i)))
        assert theta_of(other).isfinite().all()


def test_where_h_cancels_the_meta_step_is_reptiles() -> None:
    """rule=base, rates=old: alpha lambda h = alpha_0 r lambda for all parameters alike."""
    made = start(lr=0.2)
    given = [f"method.{k}={v}" for k, v in {**PRINTED, "rates": "old", "floor": 1e-30}.items()]
    given += ["method.strength=5", "method.scale=0.3", "method.inner_lr=0.15", "method.prox=0.3"]
    method = readings(made, *given)
    for i in range(4):
        rows, before, h = batch(6), theta_of(made), method.h.clone()
        theta = before.clone()
        for one in rows.slices(1):
            c = method.prox * 5 * h.clamp(min=1e-30)
            theta = (theta - 0.15 * slope(made, theta, one) + c * before) / (1 + c)
        method.observe(rows)
        expected = before + 0.2 * 0.3 * 5 * (theta - before)
        if i > 0:  # alpha before the first batch is alpha_0
            torch.testing.assert_close(theta_of(made), expected, **CLOSE)


def test_reptile_is_a_reading() -> None:
    made, rows = start(lr=0.25), batch(6)
    given = "method.importance=none", "method.inner=plain", "method.rule=constant"
    method = readings(made, *given, "method.inner_lr=0.15")
    before = theta = theta_of(made)
    for one in rows.slices(1):
        theta = theta - 0.15 * slope(made, theta, one)
    method.observe(rows)
    torch.testing.assert_close(theta_of(made), before + 0.25 * (theta - before), **CLOSE)
    assert made.sample_gradients == 6, "no gradient for an importance that is none"


@pytest.mark.parametrize("rule", ["bounded", "base", "relative", "constant"])
def test_dead_inputs_leave_no_nan(rule: str) -> None:
    """Black pixels: h is 0 there, and where gradients vanish it decays to below the smallest
    number; and heads that are not in use keep theirs."""
    made, stream = start(), blobs("task")
    method = readings(made, f"method.rule={rule}", "method.decay=1e-9")
    for task in stream.tasks:
        task.x[:, :, :2] = 0
        made.begin_task(stream.live(task.id), task.t.unique(), stream.live_at_end)
        method.begin_task(task)
        other = made.heads.in_use(made.heads.competing_in(task)) == 0
        kept, rates = method.h[other].clone(), method.alpha[other].clone()
        for rows in task.batches(10, Generator().manual_seed(0), epochs=15):
            method.observe(rows)
        assert theta_of(made).isfinite().all() and method.alpha.isfinite().all()
        assert int(other.sum()) == 4 * 17
        assert method.h[other].equal(kept) and method.alpha[other].equal(rates)


@pytest.mark.parametrize("inner", ["proximal", "gradient", "plain", "modulated"])
@pytest.mark.parametrize("importance", ["taylor", "si", "none"])
def test_emcl_is_the_first_of_its_readings(inner: str, importance: str) -> None:
    """With the options as experiment=emcl/readings has them, bit for bit."""
    given = f"method.inner={inner}", f"method.importance={importance}", "method.scale=3"
    one, two = start(), start()
    small, large = method_for("emcl", one, *given), readings(two, *given)
    for count in (5, 5, 4):
        small.observe(batch(count))
        large.observe(batch(count))
        assert theta_of(one).equal(theta_of(two))
        assert small.h.equal(large.h) and small.alpha.equal(large.alpha)


@pytest.mark.parametrize(("name", "masked"), [("emcl", False), ("emcl_replay", True)])
def test_a_compiled_emcl_is_the_same_emcl(name: str, masked: bool) -> None:
    ends = []
    for compiled in (False, True):
        rt = machine()
        if compiled:
            compiles(rt)
        made = start(rt=rt, hidden=[8, 7])
        if masked:
            live = blobs("task").classes
            made.begin_task(live, torch.tensor([0, 1, 2]), live)
        method = method_for(name, made, "method.scale=10", "method.passes=2")
        before = theta_of(made)
        for count in (2, 2, 3):
            rows = batch(count)
            method.observe(rows._replace(y=2 * rows.t + rows.y % 2))
        assert not theta_of(made).equal(before)
        ends.append((theta_of(made), method.h, method.alpha))
    for one, two in zip(*ends, strict=True):
        torch.testing.assert_close(one, two)


def test_the_mean_along_the_way_costs_no_gradient_of_its_own() -> None:
    made = start()
    readings(made, "method.at=mean").observe(batch(6))
    assert made.sample_gradients == 6


def with_memory(made: Learner, *given: str) -> tuple[Any, Batch]:
    """EMCL with replay, and the seven samples that it has stored."""
    method = method_for("emcl_replay", made, "method.scale=3", *given)
    old = batch(9).rows(slice(2, 9))
    method.memory.add(old)
    return method, old


@pytest.mark.parametrize(
    ("where", "importance"),
    [(w, i) for w in ("inner", "both") for i in ("taylor", "si", "none")]
    + [("importance", "taylor"), ("importance", "si")],
)
def test_where_stored_samples_come_in(where: str, importance: str) -> None:
    """The new samples first, then those drawn; as EMCL's equations on these batches."""
    made = start()
    given = "method.replay=3", f"method.replay_in={where}", f"method.importance={importance}"
    method, old = with_memory(made, *given)
    new, theta_0 = batch(4), theta_of(made)
    drawn = old.rows(torch.randperm(7, generator=twin(made.rng))[:3])
    seen = new.cat(drawn)
    inner, measured = new if where == "importance" else seen, new if where == "inner" else seen
    method.h = torch.rand(method.h.shape, dtype=torch.float64, generator=Generator().manual_seed(1))
    h, theta, rate = method.h.clone(), theta_0.clone(), method.alpha.clone()
    kept = 1 / (1 + 0.05 * 0.6 * h / h.mean())
    for one in inner.slices(1):
        theta = theta_0 + kept * (theta - 0.05 * slope(made, theta, one) - theta_0)
    way = theta - theta_0
    if importance != "none":
        omega = slope(made, theta_0, measured) * (theta_0 if importance == "taylor" else way)
        h = 0.999 * h + 0.001 * omega.abs()
    method.observe(new)
    torch.testing.assert_close(theta_of(made), theta_0 + rate.clamp(max=1) * way, **CLOSE)
    torch.testing.assert_close(method.h, h, **CLOSE)
    assert len(method.memory) == 11, "the new samples are stored"
    counted = len(inner.y) + len(measured.y) * (importance != "none")
    assert made.sample_gradients == counted


def test_nothing_is_stored_without_replay() -> None:
    made = start()
    method = method_for("emcl", made)
    method.observe(batch(4))
    assert len(method.memory) == 0 and method.memory.rows is None


def test_each_pass_draws_anew() -> None:
    made = start()
    method, old = with_memory(made, "method.replay=2", "method.passes=2")
    seen, rng = [], twin(made.rng)
    own = method._pass
    method._pass = lambda inner, measured: (seen.append(inner), own(inner, measured))[1]
    method.observe(batch(4))
    draws = [old.rows(torch.randperm(7, generator=rng)[:2]) for _ in range(2)]
    assert [each.x[4:].equal(draw.x) for each, draw in zip(seen, draws, strict=True)] == [True] * 2
    assert not draws[0].x.equal(draws[1].x) and seen[0].x[:4].equal(batch(4).x)


@pytest.mark.parametrize("where", ["inner", "both"])
def test_heads_of_replayed_tasks_are_in_use(where: str) -> None:
    """Theta moves in the heads of all samples, h and alpha in those of the importance's batch."""
    made, stream = start(), blobs("task")
    given = "method.replay=1", f"method.replay_in={where}", "method.scale=3"
    method = method_for("emcl_replay", made, *given)
    for task in stream.tasks[:2]:
        made.begin_task(stream.live(task.id), task.t.unique(), stream.live_at_end)
        method.begin_task(task)
        for rows in task.batches(10, Generator().manual_seed(0)):
            method.observe(rows)
    made.begin_task(stream.live(2), torch.tensor([2]), stream.live_at_end)
    method.begin_task(stream.tasks[2])
    replayed = set()
    for rows in stream.tasks[2].batches(3, Generator().manual_seed(1)):
        old = method.memory.rows.t[torch.randperm(len(method.memory), generator=twin(made.rng))[0]]
        before = method.h.clone(), method.alpha.clone(), theta_of(made)
        method.observe(rows)
        after = method.h, method.alpha, theta_of(made)
        for task in range(3):
            rows_of = made.heads.in_use(~stream.classes[task]) == 0
            same = [
                new[rows_of].equal(then[rows_of]) for new, then in zip(after, before, strict=True)
            ]
            in_use = task in (2, int(old))
            measured = in_use and (task == 2 or where == "both")
            assert same == [not measured, not measured, not in_use], f"{task}, {old}"
        replayed.add(int(old))
    assert replayed == {0, 1, 2}


def test_the_meta_gradient_with_replay_is_the_envelopes() -> None:
    """lambda h (theta_0 - theta*) is the gradient in theta_0 of min_theta L + lambda/2 sum h
    (theta - theta_0)^2, where L is over new and stored samples; theta* stays where it is under
    the inner step on all of them, with prox = inner_lr.

    L is quadratic: a linear network and a squared loss.
    """
    made = start(hidden=[])
    made.criterion = ScaledMSE(1.0)
    options = "method.inner_lr=0.1", "method.prox=0.1", "method.strength=2", "method.slice_size=99"
    method, old = with_memory(made, "method.replay=7", *options)
    method.h = torch.rand(method.h.shape, dtype=torch.float64, generator=Generator().manual_seed(1))
    seen = batch(2).cat(old)
    assert len(seen.y) == 9
    pull, theta_0 = 2 * method.h / method.h.mean(), theta_of(made)

    def objective(theta: Tensor, anchor: Tensor) -> Tensor:
        return made.loss(theta, seen) + (pull * (theta - anchor).square()).sum() / 2

    A = torch.autograd.functional.hessian(lambda x: objective(x, theta_0), theta_0)

    def minimiser(anchor: Tensor) -> Tensor:
        leaf = theta_0.clone().requires_grad_()
        (g,) = torch.autograd.grad(objective(leaf, anchor), leaf)
        return theta_0 - torch.linalg.solve(A, g)

    best = minimiser(theta_0)
    made.flat.theta.data.copy_(best)
    method._single_steps(seen, theta_0)
    torch.testing.assert_close(theta_of(made), best, rtol=1e-9, atol=1e-9)
    way = torch.randn(len(best), generator=Generator().manual_seed(2), dtype=torch.float64)
    ends = [
        float(objective(minimiser(x), x).detach())
        for x in (theta_0 + 1e-4 * way, theta_0 - 1e-4 * way)
    ]
    along = float((pull * (theta_0 - best)) @ way)
    assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(along, rel=1e-6)


def test_a_replay_that_replays_nothing_is_refused() -> None:
    """Importance has no batch of its own where there is none, or where it comes from the steps."""
    for given in (
        ("method=emcl_replay", "method.importance=none"),
        (READINGS, "method.replay=3", "method.at=mean"),
    ):
        with pytest.raises(UserError, match=r"method\.replay_in=importance: .* use inner or both"):
            check_config(composed(*given, "method.replay_in=importance"))
        check_config(composed(*given, "method.replay_in=inner"))


def test_a_memory_that_is_not_used_may_be_of_any_size() -> None:
    check_config(composed("method=emcl", "buffer.capacity=100000000"))
    with pytest.raises(UserError, match=r"buffer\.capacity=100000000: its images"):
        check_config(composed("method=emcl_replay", "buffer.capacity=100000000"))


@pytest.mark.parametrize("name", ["emcl", "emcl_replay"])
def test_a_joined_stream_keeps_the_importance_of_heads_that_a_batch_lacks(name: str) -> None:
    made, stream = start(), blobs("task")
    made.begin_task(stream.live_at_end, torch.tensor([0, 1, 2]), stream.live_at_end)
    method = method_for(name, made, "method.scale=3")
    everything = joined(stream.tasks)
    method.begin_task(everything)
    batch = Batch(everything.x, everything.y, everything.t)
    method.observe(batch.rows(torch.arange(0, 90, 9)))
    before, other = method.h.clone(), made.heads.in_use(~stream.classes[1]) == 0
    method.memory.rows, method.memory.filled = None, 0
    method.observe(batch.rows(slice(0, 5)))
    assert method.h[other].equal(before[other]) and not method.h.equal(before)

"""Meta-learning against slow versions of the papers' equations, in float64."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from itertools import islice
from typing import Any

import pytest
import torch
from conftest import (
    batch,
    blobs,
    compiles,
    composed,
    identity,
    learner,
    machine,
    method_for,
    mlp,
    resnet,
)
from hydra.utils import get_object
from scipy.optimize import minimize_scalar
from torch import Generator, Tensor, nn

from cl_bench.config.check import check_config
from cl_bench.core.learner import Learner
from cl_bench.core.optim import SGD
from cl_bench.core.types import Batch

CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


def start(lr: float = 0.1, rt: Any = None, **model: Any) -> Learner:
    torch.manual_seed(0)
    return learner(mlp(**model).double(), rt, lambda p: SGD(p, lr=lr, momentum=0.0))


def theta_of(made: Learner) -> Tensor:
    return made.flat.theta.detach().clone()


def slope(made: Learner, theta: Tensor, rows: Batch) -> Tensor:
    """The loss's gradient at any theta, by autograd."""
    leaf = theta.detach().clone().requires_grad_()
    return torch.autograd.grad(made.loss(leaf, rows), leaf)[0]


def twin(rng: Generator) -> Generator:
    copy = Generator()
    copy.set_state(rng.get_state())
    return copy


# MER


def riemer(made: Learner, method: Any, rows: Batch) -> Tensor:
    """Algorithm 1, with copies."""
    theta, rng = theta_of(made), twin(made.rng)
    memory = method_for("mer", made).memory
    memory.__dict__.update(method.memory.__dict__)
    memory.rng = rng
    for new in rows.slices(1):
        far = theta.clone()
        for _ in range(method.batches):
            near = theta.clone()
            drawn = [new, *(memory.sample(method.replay).slices(1) if len(memory) else [])]
            for one in drawn:
                theta = theta - made.lr * slope(made, theta, one)
            theta = near + method.beta * (theta - near)
        theta = far + method.gamma * (theta - far)
        memory.add(new)
    return theta


@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 1.0), (0.3, 1.0), (0.3, 0.6)])
def test_mer_follows_algorithm_1(beta: float, gamma: float) -> None:
    made, rows = start(), batch(9)
    shares = f"method.beta={beta}", f"method.gamma={gamma}"
    method = method_for("mer", made, "method.batches=3", "method.replay=2", *shares)
    method.observe(rows.rows(slice(0, 4)))
    rest = rows.rows(slice(4, 9))
    expected = riemer(made, method, rest)
    method.observe(rest)
    torch.testing.assert_close(theta_of(made), expected, **CLOSE)
    assert made.sample_gradients == (1 + 2 + 7 * 3) * 3, (
        "the first found nothing stored, the second one"
    )


@pytest.mark.parametrize("algorithm", [1, 6, 7])
def test_mer_without_reptile_and_without_a_past_is_online_sgd(algorithm: int) -> None:
    made, rows = start(), batch(1)
    plain = f"method.algorithm={algorithm}", "method.batches=1", "method.beta=1"
    method = method_for("mer", made, *plain)
    expected = theta_of(made) - made.lr * slope(made, theta_of(made), rows)
    method.observe(rows)
    torch.testing.assert_close(theta_of(made), expected, **CLOSE)
    replayed = theta_of(made)
    drawn = [rows, rows]  # the one that is stored, and the new one: the same sample
    for one in drawn:
        replayed = replayed - made.lr * slope(made, replayed, one)
    method.observe(rows)
    torch.testing.assert_close(theta_of(made), replayed, **CLOSE)


@pytest.mark.parametrize(
    ("algorithm", "zero"), [(1, "beta"), (1, "gamma"), (6, "gamma"), (7, "gamma")]
)
def test_mer_at_zero_does_not_move(algorithm: int, zero: str) -> None:
    made = start()
    method = method_for("mer", made, f"method.algorithm={algorithm}", f"method.{zero}=0")
    before = theta_of(made)
    method.observe(batch(5))
    torch.testing.assert_close(theta_of(made), before, rtol=0, atol=0)


def test_mers_other_algorithms_take_one_large_draw() -> None:
    """6: the new sample last; 7: somewhere, at a learning rate `batches` times as large."""
    for algorithm in (6, 7):
        made, rows = start(), batch(9)
        shape = "method.batches=2", "method.replay=3", "method.gamma=0.5"
        method = method_for("mer", made, f"method.algorithm={algorithm}", *shape)
        method.observe(rows.rows(slice(0, 8)))
        new, rng, first = rows.rows(slice(8, 9)), twin(made.rng), theta_of(made)
        picked = torch.randperm(8, generator=rng)[:6]
        drawn = [(one, 1) for one in method.memory.rows.rows(picked).slices(1)]
        place = 6 if algorithm == 6 else int(torch.randint(7, (), generator=rng))
        drawn.insert(place, (new, 1 if algorithm == 6 else 2))
        theta = first
        for one, weight in drawn:
            theta = theta - weight * made.lr * slope(made, theta, one)
        method.observe(new)
        torch.testing.assert_close(theta_of(made), first + 0.5 * (theta - first), **CLOSE)


# La-MAML


def lookahead(made: Learner, theta: Tensor, a: Tensor, cuts: list[Batch], seen: Batch) -> Tensor:
    """The mean over inner steps of L(theta_i), written out; differentiable to any order."""
    fast, total = theta, theta.new_zeros(())
    for each in cuts:
        (g,) = torch.autograd.grad(made.loss(fast, each), fast, create_graph=True)
        fast = fast - a.relu() * g.clamp(-2, 2)
        total = total + made.loss(fast, seen)
    return total / len(cuts)


def parts(size: int) -> tuple[list[Batch], Batch]:
    rows = batch(10)
    return [rows.rows(slice(i, i + size)) for i in range(0, 4, size)], rows


@pytest.mark.parametrize(("kind", "size"), [("mlp", 1), ("mlp", 2), ("resnet", 2)])
def test_second_order_by_finite_differences(kind: str, size: int) -> None:
    made, (cuts, seen) = start(activation="tanh"), parts(size)
    if kind == "resnet":
        net = resnet(activation="gelu", norm="folded").double()
        made = learner(net, transform=identity(channels=3))
        rows = batch(6, shape=(3, 8, 8))
        cuts, seen = [rows.rows(slice(0, 2)), rows.rows(slice(2, 4))], rows
    method = method_for("lamaml", made, "method.order=second")
    method.a += 0.3 * torch.rand(method.a.shape, generator=Generator().manual_seed(1)) - 0.2
    _, by_theta, by_a = method._second(cuts, seen)
    theta, a = theta_of(made), method.a.clone()
    g, h = Generator().manual_seed(2), 1e-5
    for _ in range(3):
        d = torch.randn(len(a), generator=g, dtype=torch.float64)
        for found, steps in ((by_theta, (d, 0 * d)), (by_a, (0 * d, d * (a.abs() > 1e-3)))):
            ends = []
            for way in (h, -h):
                there = (theta + way * steps[0]).requires_grad_()
                ends.append(lookahead(made, there, a + way * steps[1], cuts, seen))
            slope_there = float((ends[0] - ends[1]).detach()) / (2 * h)
            along = float(found @ (steps[0] + steps[1]))
            assert along == pytest.approx(slope_there, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("order", ["first", "second"])
def test_the_rates_gradient_after_one_inner_step(order: str) -> None:
    """d L(theta_1) / d a = -grad L(theta_1) * g(theta_0), in both orders (La-MAML eq. 5)."""
    made = start()
    method = method_for("lamaml", made, f"method.order={order}")
    (one, *_), seen = parts(2)
    theta = theta_of(made)
    g = slope(made, theta, one)
    there = slope(made, theta - 0.15 * g, seen)
    ahead = method._first if order == "first" else method._second
    _, by_theta, by_a = ahead([one], seen)
    torch.testing.assert_close(by_a, -there * g, **CLOSE)
    torch.testing.assert_close(theta_of(made), theta, rtol=0, atol=0)
    if order == "first":
        torch.testing.assert_close(by_theta, there, **CLOSE)


def test_first_order_is_the_mean_along_the_way() -> None:
    made = start()
    method = method_for("lamaml", made)
    cuts, seen = parts(1)
    theta, walked, by_theta, by_a = theta_of(made), 0.0, 0.0, 0.0
    for each in cuts:
        g = slope(made, theta, each).clamp(-2, 2)
        theta, walked = theta - 0.15 * g, walked + g
        there = slope(made, theta, seen)
        by_theta, by_a = by_theta + there / len(cuts), by_a - there * walked / len(cuts)
    _, found, found_a = method._first(cuts, seen)
    torch.testing.assert_close(found, by_theta, **CLOSE)
    torch.testing.assert_close(found_a, by_a, **CLOSE)


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("name", ["lamaml", "sync", "cmaml"])
def test_what_the_three_move(name: str, order: str) -> None:
    """The rates first, then theta by the new rates (La-MAML); by one rate for all (the others)."""
    made, rows = start(), batch(6)
    method = method_for(name, made, f"method.order={order}", "method.passes=1")
    theta, a, rng = theta_of(made), method.a.clone(), twin(made.rng)
    shuffled = rows.rows(torch.randperm(6, generator=rng))
    ahead = method._first if order == "first" else method._second
    _, by_theta, by_a = ahead(list(shuffled.slices(1)), shuffled)
    if name != "cmaml":
        a = a - method.rate_lr * by_a * (2 / by_a.norm()).clamp(max=1)
    by_theta = by_theta * (2 / by_theta.norm()).clamp(max=1)
    theta = theta - (a.relu() if name == "lamaml" else 0.1) * by_theta  # the learner's own lr
    method.observe(rows)
    torch.testing.assert_close(method.a, a, **CLOSE)
    torch.testing.assert_close(theta_of(made), theta, **CLOSE)


@pytest.mark.parametrize("order", ["first", "second"])
def test_what_is_replayed(order: str) -> None:
    """Each look draws anew from what earlier batches left; the new batch is stored after the first.

    The gradients: of each new sample, and of new and old at each inner step; the second order goes
    through the new ones' twice.
    """
    made, rows = start(), batch(9)
    given = f"method.order={order}", "method.passes=2", "method.replay=3", "method.slice_size=2"
    method = method_for("lamaml", made, *given)
    first, second = rows.rows(slice(0, 5)), rows.rows(slice(5, 9))
    method.observe(first)
    counted, looks, own = (
        made.sample_gradients,
        [],
        method._first if order == "first" else method._second,
    )

    def watched(slices: list[Batch], seen: Batch) -> Any:
        looks.append((slices, seen))
        return own(slices, seen)

    setattr(method, f"_{order}", watched)
    rng, memory = twin(made.rng), method.memory.rows
    method.observe(second)
    for at, (slices, seen) in enumerate(looks):
        shuffled = torch.randperm(4, generator=rng)
        assert [len(each.y) for each in slices] == [2, 2]
        assert torch.cat([each.x for each in slices]).equal(second.x[shuffled])
        stored = 5 if at == 0 else 9
        old = torch.randperm(stored, generator=rng)[:3]
        if at == 0:
            rng.set_state(rng.get_state())
            torch.rand(4, generator=rng, dtype=torch.float64)  # the reservoir's draws
        source = memory if at == 0 else method.memory.rows
        assert seen.x.equal(torch.cat([second.x[shuffled], source.x[old]]))
    assert len(looks) == 2 and len(method.memory) == 9
    new, replayed = 2 * 4, 2 * 2 * 7
    assert made.sample_gradients - counted == replayed + new * (1 if order == "first" else 2)


def test_a_rate_of_zero_is_er() -> None:
    """Nothing looks ahead: the gradient is that of the new and the old at theta."""
    made, rows = start(), batch(8)
    method = method_for("cmaml", made, "method.inner_lr=0", "method.passes=1", "method.replay=9")
    new, old = rows.rows(slice(0, 5)), rows.rows(slice(5, 8))
    method.memory.add(old)
    expected = theta_of(made) - 0.1 * slope(made, theta_of(made), new.cat(old))
    method.observe(new)
    torch.testing.assert_close(theta_of(made), expected, **CLOSE)


@pytest.mark.parametrize("order", ["first", "second"])
def test_clipping_clips(order: str) -> None:
    """The inner gradient's entries, and the norms of both outer ones."""
    made = start()
    small = "method.clip=0.01", "method.passes=1", f"method.order={order}"
    method = method_for("lamaml", made, *small)
    (one, *_), rows = parts(2)
    theta, a = theta_of(made), method.a.clone()
    g = slope(made, theta, one)
    assert g.abs().max() > 0.02, "there is something to cut"
    there = slope(made, theta - 0.15 * g.clamp(-0.01, 0.01), rows)
    by_a = (method._first if order == "first" else method._second)([one], rows)[2]
    torch.testing.assert_close(by_a, -there * g.clamp(-0.01, 0.01), **CLOSE)
    method.observe(rows)
    moved = theta - theta_of(made)
    assert float((method.a - a).norm()) <= 0.3 * 0.01 * (1 + 1e-9)
    assert float((moved / method.a.relu()).norm()) == pytest.approx(0.01)


# EMCL

PRINTED = {"meta": "closed_form", "unit": "one", "rule": "base", "rates": "new"}
READINGS: list[dict[str, Any]] = [
    {},
    {"inner": "gradient", "rule": "constant"},
    {"inner": "plain", "rule": "relative", "unit": "mean", "start": "one"},
    {"inner": "modulated", "rule": "bounded", "floor": 1e-3},
    {"importance": "si", "at": "first", "rates": "old", "start": "one"},
    {"importance": "si", "at": "mean", "rule": "relative", "meta": "reptile"},
    {"importance": "taylor", "at": "mean", "start": "zero", "steps": "tied", "prox": 0.05},
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


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_emcl_follows_its_equations(reading: dict[str, Any]) -> None:
    made = start()
    options = {"inner_lr": 0.2, "prox": 0.3, "strength": 3.0, "decay": 0.8, "scale": 0.4}
    options |= {"floor": 1e-3, **PRINTED}
    given = [f"method.{k}={v}" for k, v in {**options, **reading}.items()]
    method = method_for("emcl", made, *given)
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
        shrink = method_for("emcl", made, *given)._shrink(torch.tensor(h, dtype=torch.float64))

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
    return method_for("emcl", made, *options)


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
    method = method_for("emcl", made, *given)
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
    method = method_for("emcl", made, *given, "method.inner_lr=0.15")
    before = theta = theta_of(made)
    for one in rows.slices(1):
        theta = theta - 0.15 * slope(made, theta, one)
    method.observe(rows)
    torch.testing.assert_close(theta_of(made), before + 0.25 * (theta - before), **CLOSE)
    assert made.sample_gradients == 6, "no gradient for an importance that is none"


@pytest.mark.parametrize("rule", ["bounded", "base", "relative", "constant"])
def test_dead_inputs_leave_no_nan(rule: str) -> None:
    """1,000 batches with black pixels: h is 0 there; and heads that are not in use keep theirs."""
    made, stream = start(), blobs("task")
    method = method_for("emcl", made, f"method.rule={rule}")
    for task in stream.tasks:
        task.x[:, :, :2] = 0
        made.begin_task(stream.live(task.id), task.t.unique(), stream.live_at_end)
        method.begin_task(task)
        other = method.used == 0
        kept, rates = method.h[other].clone(), method.alpha[other].clone()
        for rows in task.batches(10, Generator().manual_seed(0), epochs=111):
            method.observe(rows)
        assert theta_of(made).isfinite().all() and method.alpha.isfinite().all()
        assert int(other.sum()) == 4 * 17
        assert method.h[other].equal(kept) and method.alpha[other].equal(rates)


IDLE = [
    ("lamaml", [], {"optimizer.lr"}),
    ("sync", [], set()),
    ("cmaml", [], {"method.rate_lr"}),
    ("mer", [], set()),
    ("mer", ["method.algorithm=7", "method.replay=2"], {"method.beta"}),
    ("agem", ["method.reference=tasks"], {"method.replay"}),
    ("emcl", [], set()),
    ("emcl", ["method.inner=gradient"], {"method.prox"}),
    (
        "emcl",
        ["method.inner=plain"],
        {"method.prox", "method.strength", "method.unit", "method.floor"},
    ),
    ("emcl", ["method.inner=plain", "method.meta=closed_form"], {"method.prox"}),
    ("emcl", ["method.steps=tied"], {"method.inner_lr"}),
    (
        "emcl",
        ["method.inner=modulated"],
        {
            *("method.inner_lr", "method.prox", "method.steps", "method.strength"),
            *("method.unit", "method.floor"),
        },
    ),
    (
        "emcl",
        ["method.importance=none"],
        {"method.at", "method.decay", "method.start", "method.unit"},
    ),
    ("emcl", ["method.rule=constant"], {"method.scale", "method.rates"}),
]
OTHER = {"at": "first", "start": "zero", "unit": "one", "steps": "tied", "rates": "new"}


@pytest.mark.parametrize(("name", "given", "keys"), IDLE)
def test_options_left_unused_make_no_difference(name: str, given: list[str], keys: set) -> None:
    """And those of the list that are used do make one."""
    cfg = composed(f"method={name}", *given)
    plain = check_config(cfg)
    target = get_object(plain["method"]["_target_"])
    assert target.unused(plain) == keys
    numbers = {k for k in ("replay", "beta", "rate_lr", "prox", "scale") if k in plain["method"]}
    for key in keys | {f"method.{number}" for number in numbers}:
        group, _, option = key.partition(".")
        old = plain[group][option]
        new = OTHER.get(option) or (old // 2 if isinstance(old, int) else old / 2)
        changed = [f"{key}={new}"]
        one, other = (moved(name, *given, *more) for more in ([], changed))
        assert one.equal(other) == (key in keys), key


@cache
def moved(name: str, *given: str) -> Tensor:
    """Where theta is after two batches of five samples of each task."""
    lr, stream = check_config(composed(f"method={name}", *given))["optimizer"]["lr"], blobs("data")
    made = start(lr=lr)
    method = method_for(name, made, *given)
    for task in stream.tasks:
        made.begin_task(stream.live(task.id), task.t.unique(), stream.live_at_end)
        method.begin_task(task)
        for rows in islice(task.batches(5, Generator().manual_seed(0)), 2):
            method.observe(rows)
        method.end_task(task)
    return theta_of(made)


# inner loops


def test_a_compiled_walk_is_the_same_walk() -> None:
    """The loop as one graph, as inductor would get it, against a step at a time."""
    for live in (None, torch.tensor([[True] * 5 + [False]]).expand(3, 6)):
        ends = []
        for compiled in (False, True):
            rt = machine()
            if compiled:
                compiles(rt)
            made, rows = start(rt=rt, hidden=[8, 7]), batch(4, classes=5)
            if live is not None:
                made.begin_task(live, torch.tensor([0]), None)
            shrink = torch.linspace(0.5, 1, made.flat.grad.numel(), dtype=torch.float64)
            losses = [
                made.inner.sgd_sequence(rows, 0.1, s, compiled_length=True) for s in (None, shrink)
            ]
            ends.append((theta_of(made), torch.stack(losses), torch.tensor(made.sample_gradients)))
        for one, two in zip(*ends, strict=True):
            torch.testing.assert_close(one, two)


def test_a_compiled_emcl_is_the_same_emcl() -> None:
    ends = []
    for compiled in (False, True):
        rt = machine()
        if compiled:
            compiles(rt)
        made = start(rt=rt, hidden=[8, 7])
        method = method_for("emcl", made, "method.scale=10")
        before = theta_of(made)
        for count in (4, 4, 5):
            method.observe(batch(count))
        assert not theta_of(made).equal(before)
        ends.append((theta_of(made), method.h, method.alpha))
    for one, two in zip(*ends, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("by", ["batch", "running", "whole"])
def test_how_batch_norm_sees_single_samples(by: Any) -> None:
    """The statistics take in the batch once, but by=batch, and single samples never touch them."""
    made = learner(resnet(shape=(3, 16, 16)), transform=identity(channels=3))
    rows, net = batch(6, shape=(3, 16, 16)), made.net
    trained, own = taken_in(net, rows, None), taken_in(net, rows, 1.0)
    made.train(False)
    before = buffers(net)
    with made.inner.batch_norm_mode(by, rows):
        inside = buffers(net)
        made.inner.sgd_sequence(rows, 0.01, None, compiled_length=True)
        after = buffers(net)
    assert all(m.training for m in net.modules())
    for name, there in after.items():
        assert there.equal(inside[name])
        seen = {"batch": before, "running": trained, "whole": own}[by][name]
        torch.testing.assert_close(inside[name], seen)
    if by != "batch":
        torch.testing.assert_close(buffers(net), trained)


def buffers(net: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in net.named_buffers()}


def taken_in(net: nn.Module, rows: Batch, momentum: float | None) -> dict[str, Tensor]:
    """A copy's statistics after a batch in training."""
    copy = deepcopy(net).train()
    for layer in copy.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = momentum or layer.momentum
    with torch.no_grad():
        copy(rows.x.float() / 255)
    return buffers(copy)

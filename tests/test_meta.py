"""Meta-learning against slow versions of the papers' equations, in float64."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from itertools import islice
from typing import Any

import pytest
import torch
from conftest import (
    CPU,
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
from torch import Generator, Tensor, nn

from cl_bench.config.build import build
from cl_bench.config.check import check_config
from cl_bench.core.learner import Learner
from cl_bench.core.optim import SGD
from cl_bench.core.types import Batch
from cl_bench.data.augment import Transform

READINGS = "experiment=emcl/readings"
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


@pytest.mark.parametrize("rates", ["nonnegative", "signed"])
@pytest.mark.parametrize("clip", [2.0, 0.02])
def test_second_order_is_autograds(rates: str, clip: float) -> None:
    """The gradients from the last inner step back are those through the whole graph."""
    made, (cuts, seen) = start(activation="tanh"), parts(2)
    options = "method.order=second", f"method.inner_rates={rates}", f"method.clip={clip}"
    method = method_for("lamaml", made, *options)
    method.a += torch.rand(method.a.shape, generator=Generator().manual_seed(1)) - 0.4
    assert (method.a < 0).any()
    theta, a = theta_of(made).requires_grad_(), method.a.clone().requires_grad_()
    fast, total = theta, torch.zeros(())
    for each in cuts:
        (g,) = torch.autograd.grad(made.loss(fast, each), fast, create_graph=True)
        assert (g.abs() > clip).any() == (clip < 1)
        fast = fast - (a if rates == "signed" else a.relu()) * g.clamp(-clip, clip)
        total = total + made.loss(fast, seen) / len(cuts)
    expected = torch.autograd.grad(total, (theta, a))
    loss, *found = method._second(cuts, seen)
    torch.testing.assert_close(loss, total.detach(), **CLOSE)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, **CLOSE)
    torch.testing.assert_close(theta_of(made), theta.detach(), rtol=0, atol=0)


def test_signed_rates_step_uphill() -> None:
    """First order: a rate below 0 is taken as it is, and has a gradient; else it counts as 0."""
    for rates in ("nonnegative", "signed"):
        made, (cuts, seen) = start(), parts(4)
        method = method_for("lamaml", made, f"method.inner_rates={rates}")
        method.a.fill_(-0.1)
        theta = theta_of(made)
        g = slope(made, theta, cuts[0])
        there = slope(made, theta + 0.1 * g if rates == "signed" else theta, seen)
        _, by_theta, by_a = method._first(cuts, seen)
        torch.testing.assert_close(by_theta, there, **CLOSE)
        torch.testing.assert_close(by_a, -there * g * (rates == "signed"), **CLOSE)


@pytest.mark.parametrize("augment", ["anew", "once"])
def test_when_images_are_augmented(augment: Any) -> None:
    """Once: all uses of an image and the memory have the pixels that it came with."""
    transform = Transform([0.0], [1.0], 4, 1, True, None, 0.2, augment, CPU)
    made = learner(mlp().double(), transform=transform)
    method = method_for("lamaml", made, "method.passes=3", "method.replay=3")
    old, new = made.arriving(batch(9).rows(slice(6, 9))), made.arriving(batch(6))
    assert new.x.equal(batch(6).x) == (augment == "anew")
    method.memory.add(old)
    looks, own = [], method._first

    def watched(slices: list[Batch], seen: Batch) -> Any:
        looks.append((images(*(part.x for part in slices)), images(seen.x)))
        return own(slices, seen)

    method._first = watched
    method.observe(new)
    assert images(method.memory.sample(9).x) == images(new.x, old.x), "it is stored as it came"
    for fresh, seen in looks:
        if augment == "once":
            assert fresh == images(new.x) and fresh <= seen <= images(new.x, old.x)
        else:
            assert not fresh <= images(new.x) and not fresh <= seen
    assert (looks[0][0] == looks[1][0]) == (augment == "once")


def images(*parts: Tensor) -> set[tuple[int, ...]]:
    """The pixels of each image."""
    return {tuple(image.flatten().tolist()) for part in parts for image in part}


@pytest.mark.parametrize("order", ["first", "second"])
def test_inner_gradients_may_stay_unclipped(order: str) -> None:
    """clip_inner=false, as the authors' code for MNIST; the outer gradients are clipped."""
    made = start()
    small = (
        "method.clip=0.01",
        "method.passes=1",
        f"method.order={order}",
        "method.clip_inner=false",
    )
    method = method_for("lamaml", made, *small)
    (one, *_), rows = parts(2)
    theta = theta_of(made)
    g = slope(made, theta, one)
    by_a = (method._first if order == "first" else method._second)([one], rows)[2]
    torch.testing.assert_close(by_a, -slope(made, theta - 0.15 * g, rows) * g, **CLOSE)
    method.observe(rows)
    assert float(((theta - theta_of(made)) / method.a.relu()).norm()) == pytest.approx(0.01)


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


ALONE = {"method.buffer", "method.replay_in"}  # what EMCL does not use without a memory
IDLE: list[tuple[str, list[str], set[str]]] = [
    ("method=lamaml", [], {"optimizer.lr"}),
    ("method=sync", [], set()),
    ("method=cmaml", [], {"method.rate_lr", "method.inner_rates"}),
    ("method=mer", [], set()),
    ("method=mer", ["method.algorithm=7", "method.replay=2"], {"method.beta"}),
    ("method=agem", [], {"method.reference_compat"}),
    ("method=agem", ["method.reference=tasks"], {"method.replay"}),
    ("method=emcl", [], ALONE),
    ("method=emcl", ["method.replay=4"], set()),
    ("method=emcl", ["method.inner=gradient"], ALONE | {"method.prox"}),
    ("method=emcl", ["method.inner=plain"], ALONE | {"method.prox", "method.strength"}),
    (
        "method=emcl",
        ["method.inner=modulated"],
        ALONE | {"method.inner_lr", "method.prox", "method.strength"},
    ),
    ("method=emcl", ["method.importance=none"], ALONE | {"method.decay"}),
    (
        "method=emcl",
        ["method.importance=none", "method.replay=4", "method.replay_in=both"],
        {"method.decay", "method.replay_in"},
    ),
    (READINGS, [], ALONE),
    (READINGS, ["method.replay=4"], set()),
    (READINGS, ["method.replay=4", "method.at=mean"], {"method.replay_in"}),
    (
        READINGS,
        ["method.inner=plain"],
        ALONE | {"method.prox", "method.strength", "method.unit", "method.floor"},
    ),
    (READINGS, ["method.inner=plain", "method.meta=closed_form"], ALONE | {"method.prox"}),
    (
        READINGS,
        ["method.importance=none"],
        ALONE | {"method.at", "method.decay", "method.start", "method.unit"},
    ),
    (READINGS, ["method.rule=constant"], ALONE | {"method.scale", "method.rates"}),
]
OTHER = {
    **{"at": "first", "inner_rates": "signed", "reference_compat": "true"},
    **{"start": "zero", "unit": "one", "rates": "new", "replay_in": "importance"},
}


OTHER_WITHOUT = {"replay_in": "inner"}  # importance would be refused there


@pytest.mark.parametrize(("chosen", "given", "keys"), IDLE)
def test_options_left_unused_make_no_difference(chosen: str, given: list[str], keys: set) -> None:
    """And those of the list that are used do make one."""
    plain = check_config(composed(chosen, *given))
    target = get_object(plain["method"]["_target_"])
    assert target.unused(plain) == keys
    options = "replay", "beta", "rate_lr", "prox", "scale"
    numbers = {k for k in options if plain["method"].get(k)}
    for key in keys | {f"method.{number}" for number in numbers}:
        group, _, option = key.partition(".")
        old = plain[group][option]
        if option == "buffer":
            changed = ["buffer.capacity=3"]
        else:
            new = OTHER_WITHOUT.get(option) if plain["method"].get("replay") else None
            new = new or OTHER.get(option) or (old // 2 if isinstance(old, int) else old / 2)
            changed = [f"{key}={new}"]
        one, other = (moved(chosen, *given, *more) for more in ([], changed))
        assert one.equal(other) == (key in keys), key


@cache
def moved(*overrides: str) -> Tensor:
    """Where theta is after two batches of five samples of each task."""
    cfg, stream = composed(*overrides), blobs("data")
    made = start(lr=check_config(cfg)["optimizer"]["lr"])
    method = build(cfg.method, learner=made)
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
            made, rows = start(rt=rt, hidden=[8, 7]), batch(2, classes=5)
            if live is not None:
                made.begin_task(live, torch.tensor([0]), None)
            shrink = torch.linspace(0.5, 1, made.flat.grad.numel(), dtype=torch.float64)
            losses = [
                made.inner.sgd_sequence(rows, 0.1, s, compiled_length=True) for s in (None, shrink)
            ]
            ends.append((theta_of(made), torch.stack(losses), torch.tensor(made.sample_gradients)))
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

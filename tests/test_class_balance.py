"""BiC, LUCIR and X-DER against slow versions, one sample at a time in double precision."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import blobs, composed, learner, method_for, mlp
from test_class_incremental import next_draw, revealed, rows_of
from torch import Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.config import compose
from cl_bench.config.check import check_config
from cl_bench.core.herding import Equal
from cl_bench.core.types import Batch, Task
from cl_bench.data.stream import with_held_out

CAPACITY = "buffer.capacity=12"


def after_first_task(name: str, *words: str, held_out: bool = False) -> tuple[Any, Any, Any]:
    """Stream, learner and method in double precision, at the beginning of the second task."""
    torch.manual_seed(0)
    stream, made = blobs("class"), learner(mlp().double())
    if held_out:
        stream = with_held_out(stream, 0.3, 0)
    method = method_for(name, revealed(made, stream, 0), *words)
    method.begin_task(stream.tasks[0])
    for rows in stream.tasks[0].chunks(8):
        method.observe(rows)
    if held_out:
        method.validate(stream.held_out[0])
    method.end_task(stream.tasks[0])
    revealed(made, stream, 1)
    method.begin_task(stream.tasks[1])
    return stream, made, method


def ones(rows: Batch) -> list[Batch]:
    return [rows.rows(slice(i, i + 1)) for i in range(len(rows.y))]


def step_is(method: Any, new: Batch, loss: Tensor, theta: Tensor, fixed: slice | None) -> None:
    """The step on `new` has this loss and goes along its gradient, but for some head rows."""
    made = method.learner
    (slope,) = torch.autograd.grad(loss, theta)
    if fixed is not None:
        made.heads.rows_of(slope)[fixed] = 0
        bias = made.heads.bias_of(slope)
        bias[fixed] = 0
    before = made.flat.theta.detach().clone()
    torch.testing.assert_close(method.observe(new).double(), loss.detach(), rtol=1e-6, atol=1e-7)
    moved = made.flat.theta.detach() - before
    torch.testing.assert_close(moved, -0.1 * slope, rtol=1e-5, atol=1e-8)


def test_lucir_equals_its_formula() -> None:
    """Cosines, the direction of the features, and a margin for old classes; the learned eta."""
    words = "method.replay=4", "method.less_forget=3", "method.margin=0.7", CAPACITY
    stream, made, method = after_first_task("lucir", *words)
    teacher = method.teacher
    made.flat.theta.detach().add_(0.02)
    method.eta.fill_(1.3)
    new = rows_of(stream.tasks[1], 6)
    union = new.cat(next_draw(method, 4))
    theta = made.flat.theta.detach().clone().requires_grad_()
    eta = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    rows = made.heads.rows_of(theta)
    entropy, kept, hinges = [], [], []
    for one in ones(union):
        feature = made.features_and_logits(theta, one)[0][0]
        before = made.features_and_logits(teacher.theta, one)[0][0].detach()
        cosines = [feature @ rows[k] / feature.norm() / rows[k].norm() for k in range(4)]
        y = int(one.y)
        entropy.append(F.cross_entropy(eta * torch.stack(cosines)[None], one.y))
        kept.append(1 - feature @ before / feature.norm() / before.norm())
        if y < 2:  # of a class of the first task, against both new ones
            hinges += [(0.7 - cosines[y] + cosines[k]).clamp(min=0) for k in (2, 3)]
    assert hinges, "no exemplar was drawn"
    means = [torch.stack(each).mean() for each in (entropy, kept, hinges)]
    total = means[0] + 3 * math.sqrt(2 / 2) * means[1] + means[2]
    (slope,) = torch.autograd.grad(means[0], eta, retain_graph=True)
    step_is(method, new, total, theta, slice(0, 2))
    torch.testing.assert_close(method.eta, 1.3 - 0.1 * slope)


def test_lucir_predicts_by_cosines_and_begins_with_directions_of_means() -> None:
    stream, made, method = after_first_task("lucir", CAPACITY)
    theta, rows = made.flat.theta.detach(), made.heads.rows_of(made.flat.theta.detach())
    images = rows_of(stream.tasks[1], 30)
    features = F.normalize(made.features(images), dim=1)
    length = rows[:2].norm(dim=1).mean()
    for k in (2, 3):
        mean = features[images.y == k].mean(0)
        torch.testing.assert_close(rows[k], mean / mean.norm() * length)
    found = method.predict(images)
    cosines = F.normalize(made.features(images), dim=1) @ F.normalize(rows, dim=1).T
    assert found[:, :4].argmax(1).equal(cosines[:, :4].argmax(1))
    ((_, snapshot),) = method.networks()
    torch.testing.assert_close(made.snapshot_logits(snapshot, images), found)
    assert not torch.equal(snapshot.theta, theta), "its head has other rows"


def test_bic_corrects_by_steps_of_momentum() -> None:
    """The steps, written out; the head then gives the corrected logits."""
    words = "buffer.capacity=40", "method.held_out=0.3", "method.steps=50", "method.rate=0.2"
    stream, made, method = after_first_task("bic", *words, held_out=True)
    for rows in stream.tasks[1].chunks(8):
        method.observe(rows)
    before, drawn = made.flat.theta.detach().clone(), made.rng.get_state()
    unseen = method._balanced(stream.held_out[1])
    old, new = unseen.rows(slice(0, 9)), unseen.rows(slice(9, None))
    assert old.x.equal(method.unseen.stored().x) and len(old.y) == 9, "all that were held out"
    assert new.y.bincount(minlength=4)[2:].tolist() in ([5, 4], [4, 5]), "as many, where there are"
    of_the_task = {image.numpy().tobytes() for image in stream.held_out[1].x}
    assert len({image.numpy().tobytes() for image in new.x} & of_the_task) == 9
    made.rng.set_state(drawn)
    method.validate(stream.held_out[1])
    assert method.unseen.stored().y.bincount().tolist() == [3, 3, 3, 3], "12 in all"
    logits = made.logits(before, unseen)[:, :4].detach()
    pair, velocity = torch.tensor([1.0, 0.0], dtype=torch.float64), 0.0
    for step in range(50):
        z = torch.cat([logits[:, :2], pair[0] * logits[:, 2:] + pair[1]], 1)
        slope = (z.softmax(1) - F.one_hot(unseen.y, 4))[:, 2:] / 18
        g = torch.stack([(slope * logits[:, 2:]).sum(), slope.sum() + 0.1 * pair[1]])
        velocity = 0.9 * velocity + g
        pair = pair - 0.2 * 0.1 ** sum(step >= end for end in (15, 30, 40, 45)) * velocity
    assert (method.alpha, method.beta) == pytest.approx(tuple(pair.tolist()))
    after = made.logits(made.flat.theta.detach(), unseen).detach()
    torch.testing.assert_close(after[:, :2], logits[:, :2])
    torch.testing.assert_close(after[:, 2:4], method.alpha * logits[:, 2:] + method.beta)
    torch.testing.assert_close(after[:, 4:], made.logits(before, unseen)[:, 4:].detach())


@pytest.mark.parametrize("name", ["wa", "bic"])
def test_a_task_in_which_all_classes_come_again_has_no_old_ones(name: str) -> None:
    """As with `stream=blurry stream.disjoint=0`: the loss is the cross-entropy alone."""
    words = ("buffer.capacity=40",) if name == "bic" else (CAPACITY,)
    stream, _, method = after_first_task(name, *words, held_out=name == "bic")
    one, two = stream.tasks[:2]
    x, y, t = (torch.cat(pair) for pair in ((one.x, two.x), (one.y, two.y), (one.t, two.t)))
    method.begin_task(Task(1, x, y, t))
    assert method.observe(rows_of(stream.tasks[1], 8)).isfinite() and not bool(method.past.any())


def test_bic_is_bounded_where_images_are_separable() -> None:
    """Few images that a large alpha classifies ever better: the number of steps bounds it."""
    stream, _, method = after_first_task(
        "bic", "buffer.capacity=40", "method.held_out=0.3", held_out=True
    )
    rows = rows_of(stream.tasks[1], 4)
    logits = torch.full((4, 6), -1.0)
    logits[torch.arange(4), rows.y] = 1.0
    new = torch.tensor([False, False, True, True, False, False])
    alpha, beta = method._fitted(logits, rows, new)
    assert 2 < alpha < 5 and abs(beta) < 2


@pytest.mark.parametrize(
    ("size", "trained_on", "unseen"),
    [("buffer.capacity=40", 28, 12), ("buffer.per_class=10", 28, 12), ("buffer.per_class=3", 8, 4)],
)
def test_bic_never_trains_on_what_it_corrects_by(size: str, trained_on: int, unseen: int) -> None:
    """Neither are those images in the memory that it replays, nor in the tasks."""
    stream, _, method = after_first_task("bic", size, "method.held_out=0.3", held_out=True)
    for rows in stream.tasks[1].chunks(8):
        method.observe(rows)
    method.validate(stream.held_out[1])
    method.end_task(stream.tasks[1])
    assert len(method.memory) == trained_on and len(method.unseen) == unseen
    assert method.capacity() == {"stored": trained_on + unseen}
    trained = {image.numpy().tobytes() for task in stream.tasks for image in task.x}
    assert {image.numpy().tobytes() for image in method.memory.stored().x} <= trained
    assert not {image.numpy().tobytes() for image in method.unseen.stored().x} & trained


BIC = ("method=bic", "dataset=seqcifar100", "scenario=class", "tracking=none")


def test_bic_needs_a_share_of_the_memory_for_each_class() -> None:
    with pytest.raises(
        UserError,
        match=r"each of 100 classes needs a sample in a part of 50 samples "
        r"\(method\.held_out=0\.1 divides the memory\); use at least 995",
    ):
        check_config(composed(*BIC, "buffer.capacity=500"))
    check_config(composed(*BIC, "buffer.capacity=995"))
    check_config(composed(*BIC, "buffer.per_class=2"))
    with pytest.raises(UserError, match=r"buffer\.per_class=1: method=bic keeps method\.held_out"):
        check_config(composed(*BIC, "buffer.per_class=1"))
    with pytest.raises(UserError, match="use a memory with a capacity, such as buffer=herding"):
        check_config(composed(*BIC, "buffer=everything"))


def slow_scaled(old: list[float], new: list[float], y: int, classes: list[int]) -> list[float]:
    """X-DER's update of the logits of one sample for some classes."""
    found, largest = list(old), max(new[k] for k in classes)
    for k in classes:
        if largest <= old[y]:
            found[k] = new[k]
        elif old[y] > 0:
            found[k] = new[k] * 0.85 * old[y] / largest
        else:
            found[k] = new[k] - (largest - old[y])
    return found


def test_xder_updates_logits_as_a_toy_case_does() -> None:
    """Of the true class 3.0: future logits up to 6 become at most 0.85 * 3; smaller ones stay."""
    made = learner(mlp())
    method = method_for("xder", made, CAPACITY)
    old = torch.tensor([[3.0, 1.0, 0.5, 0.2, 0.0, 0.0], [2.0, 1.0, 0.5, 0.2, 0.0, 0.0]])
    new = torch.tensor([[9.0, 9.0, 6.0, -3.0, 1.0, 0.0], [9.0, 9.0, 1.5, -3.0, 1.0, 0.0]])
    future = torch.tensor([False, False, True, True, True, True])
    found = method._scaled(old, new, torch.tensor([0, 0]), future)
    torch.testing.assert_close(found[0], torch.tensor([3.0, 1.0, 2.55, -1.275, 0.425, 0.0]))
    torch.testing.assert_close(found[1], torch.tensor([2.0, 1.0, 1.5, -3.0, 1.0, 0.0]))
    g = torch.Generator().manual_seed(0)
    old, new = (torch.randn(50, 6, generator=g, dtype=torch.float64) for _ in range(2))
    y = torch.randint(0, 2, (50,), generator=g)
    found = method._scaled(old, new, y, future)
    slow = [
        slow_scaled(o, n, int(k), [2, 3, 4, 5])
        for o, n, k in zip(old.tolist(), new.tolist(), y, strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(slow, dtype=torch.float64))


XDER = ("method.replay=5", "method.alpha=0.7", "method.beta=0.4", "method.constraint=0.6")


def xder_loss(made: Any, theta: Tensor, new: Batch, first: Batch, second: Batch) -> Tensor:
    """All of the loss but for the contrast: classes 0, 1 earlier, 2, 3 present, 4, 5 future."""

    def logits(rows: Batch) -> list[Tensor]:
        return [made.logits(theta, one)[0] for one in ones(rows)]

    stream = [-z[2:4].log_softmax(0)[int(y) - 2] for z, y in zip(logits(new), new.y, strict=True)]
    assert first.logits is not None
    gaps = [(z - kept).square().mean() for z, kept in zip(logits(first), first.logits, strict=True)]
    labelled = [
        -z[:2].log_softmax(0)[int(y)] for z, y in zip(logits(second), second.y, strict=True)
    ]
    past = []
    for z in logits(new):
        p = z[:4].softmax(0)
        past.append(p[:2].max().detach() + 0.3 - p[2:].max())
    future = [z[4:].max() + 0.3 - z[2:4].max() for z in logits(new)]
    seen: set[bytes] = set()
    for one in (*ones(first), *ones(second)):
        if one.x.numpy().tobytes() not in seen:
            seen.add(one.x.numpy().tobytes())
            (z,) = logits(one)
            future.append(z[4:].max() + 0.3 - z[:2].max())

    def violations(found: list[Tensor]) -> Tensor:
        above = [each for each in found if each > 0]
        return torch.stack(above).mean() if above else theta.new_zeros(())

    hinges = violations(past) + violations(future)
    means = [torch.stack(each).mean() for each in (stream, gaps, labelled)]
    return means[0] + 0.7 * means[1] + 0.4 * means[2] + 0.6 * hinges


def test_xder_equals_its_formula() -> None:
    stream, made, method = after_first_task("xder", *XDER, "method.consistency=0", CAPACITY)
    made.flat.theta.detach().add_(0.02)
    new = rows_of(stream.tasks[1], 6)
    state = made.rng.get_state()
    draws = [method.memory.draw(5) for _ in range(2)]
    made.rng.set_state(state)
    assert set(draws[0].tolist()) & set(draws[1].tolist()), "no sample was drawn twice"
    first, second = (method.memory.rows.rows(draw) for draw in draws)
    theta = made.flat.theta.detach().clone().requires_grad_()
    total = xder_loss(made, theta, new, first, second)
    step_is(method, new, total, theta, None)


def test_xder_contrasts_two_views_by_their_future_logits() -> None:
    """What `consistency` adds to the loss; without augmentation both views are the same."""
    losses = []
    for weight in (0.0, 0.5):
        words = "method.consistency=0", "method.temperature=2", "method.replay=4"
        stream, made, method = after_first_task("xder", *XDER[1:], *words, CAPACITY)
        method.consistency = weight
        new = rows_of(stream.tasks[1], 6)
        state = made.rng.get_state()
        for _ in range(2):
            method.memory.draw(4)
        views = new.cat(method.memory.sample(4))
        made.rng.set_state(state)
        with torch.no_grad():
            found = F.normalize(made.logits(made.flat.theta, views)[:, 4:], dim=1).repeat(2, 1)
        losses.append(float(method.observe(new)))
    y, terms = views.y.repeat(2), []
    for i in range(20):
        others = [j for j in range(20) if j != i]
        powers = {j: math.exp(float(found[i] @ found[j]) / 2) for j in others}
        own = [math.log(powers[j] / sum(powers.values())) for j in others if y[j] == y[i]]
        terms.append(-sum(own) / len(own))
    assert losses[1] - losses[0] == pytest.approx(0.5 * sum(terms) / 20)


def test_xder_updates_what_it_replays_less_and_less_often() -> None:
    """At the n-th replay in a task with probability 1 / n; logits of earlier classes stay."""
    _, _, method = after_first_task("xder", *XDER, "method.consistency=0", CAPACITY)
    rows, changes = method.memory.rows, [0, 0, 0]
    for _ in range(300):
        method.replays.zero_()
        index = torch.tensor([0, 4, 7, 4, 9])
        for n in range(3):
            before = rows.logits.clone()
            method._update_stored(index, torch.randn(5, 6).to(before))
            changed = (rows.logits != before).any(1)
            assert rows.logits[:, :2].equal(before[:, :2])
            assert set(changed.nonzero().flatten().tolist()) <= {0, 4, 7, 9}
            changes[n] += int(changed[0])
        assert method.replays[[0, 4, 7, 9]].tolist() == [3, 3, 3, 3]
    assert changes[0] == 300 and 110 < changes[1] < 190 and 65 < changes[2] < 135


def test_xder_stores_samples_with_the_logits_of_the_end_of_their_task() -> None:
    stream, made, method = after_first_task("xder", *XDER, "method.consistency=0", CAPACITY)
    for rows in stream.tasks[1].chunks(8):
        method.observe(rows)
    kept = method.memory.stored()
    method.end_task(stream.tasks[1])
    rows = method.memory.stored()
    assert rows.y.bincount().tolist() == [3, 3, 3, 3] and rows.logits is not None
    now = made.logits(made.flat.theta.detach(), rows).detach().tolist()
    place = {x.numpy().tobytes(): i for i, x in enumerate(kept.x)}
    for i, x in enumerate(rows.x):
        y = int(rows.y[i])
        if y < 2:
            old = kept.logits[place[x.numpy().tobytes()]].tolist()
            wanted = slow_scaled(old, now[i], y, [2, 3, 4, 5])
        else:
            wanted = slow_scaled(now[i], now[i], y, [0, 1])
        assert rows.logits[i].tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_xder_never_replaces_logits_of_a_samples_own_task() -> None:
    """Not where its class comes again, either: that logit would shrink at each replay."""
    stream, _, method = after_first_task("xder", *XDER, "method.consistency=0", CAPACITY)
    again = Task(1, stream.tasks[1].x, stream.tasks[1].y.clone(), stream.tasks[1].t)
    again.y[:5] = 0
    method.end_task(again)
    again.y[0] = 1
    method.begin_task(Task(2, again.x, again.y, again.t + 1))
    assert method.present[:4].all() and method.earlier[:4].any()
    rows = method.memory.rows
    index = torch.arange(len(method.memory))
    before = rows.logits.clone()
    method._update_stored(index, torch.randn(len(index), 6).to(before) + 9)
    own = method.owned[rows.t]
    assert rows.logits[own].equal(before[own]) and not rows.logits.equal(before)


@pytest.mark.parametrize("memory", ["reservoir", "greedy", "ring", "balanced", "scored"])
def test_xder_needs_a_memory_that_chooses_at_the_end_of_a_task(memory: str) -> None:
    with pytest.raises(UserError, match=r"use buffer=(equal or herding|reservoir)"):
        check_config(composed("method=xder", f"buffer={memory}", "dataset=seqmnist5k"))


def test_lucir_keeps_old_rows_under_weight_decay() -> None:
    """Whatever the optimizer adds to their gradient."""
    torch.manual_seed(0)
    stream = blobs("class")
    made = learner(mlp(), None, partial(torch.optim.Adam, lr=0.05), 0.1)
    method = method_for("lucir", revealed(made, stream, 0), CAPACITY)
    for task in stream.tasks[:2]:
        revealed(made, stream, task.id)
        method.begin_task(task)
        before = made.heads.rows_of(made.flat.theta.detach()).clone()
        for rows in task.chunks(8):
            method.observe(rows)
        method.end_task(task)
    after = made.heads.rows_of(made.flat.theta.detach())
    assert after[:2].equal(before[:2]) and not after[2:4].equal(before[2:4])


LATE = [
    (
        "method=agem buffer.capacity=2 stream.first=3",
        "each of 3 tasks needs a sample; use at least 3",
    ),
    ("method=xder buffer.capacity=5 stream.first=3", "buffer.capacity=5: each of 6 classes needs"),
    (
        "method=bic buffer.capacity=19 method.held_out=0.5",
        "in a part of 9 samples (method.held_out=0.5 divides the memory); use at least 20",
    ),
    ("method=lucir schedule.warm_up=head", "schedule.warm_up=head: fits logits that are linear"),
    ("method=lucir schedule.clip=1", "schedule.clip"),
    ("method=gdumb schedule.fresh_optimizer=false", "schedule.fresh_optimizer=false: GDumb trains"),
    *(
        (
            f"method=er model=reduced_resnet18 optimizer=adam schedule.fresh_optimizer=false "
            f"schedule.batch_norm={mode}",
            f"schedule.batch_norm={mode}: with schedule.fresh_optimizer=false",
        )
        for mode in ("frozen", "folded")
    ),
]


@pytest.mark.parametrize(("words", "said"), LATE, ids=[each[0] for each in LATE])
def test_what_is_refused_before_any_data_is_read(words: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        check_config(composed("dataset=seqmnist5k", "scenario=class", *words.split()))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("method=icarl buffer.per_class=20 buffer.capacity=100", True),
        ("method=gem buffer.per_task=10 buffer.capacity=100", True),
        ("method=icarl buffer.per_class=20 buffer.capacity=null", False),
        ("method=icarl buffer.per_class=20", False),
    ],
)
def test_one_size_of_a_memory_is_typed(words: str, refused: bool) -> None:
    """Of two, one would have no effect."""
    cfg = compose.composed_by_hydra(*words.split(), with_hydra=True)
    hydra = compose.take_hydra(cfg)
    if not refused:
        compose.fill_in(cfg, hydra)
        return
    with pytest.raises(UserError, match=r"buffer\.capacity=100: are two sizes of one memory"):
        compose.fill_in(cfg, hydra)


def test_an_equal_memory_keeps_random_samples_and_their_logits() -> None:
    stream, memory = blobs("class"), Equal(8, "all", False, torch.Generator().manual_seed(0))
    drawn = set()
    for _ in range(20):
        memory.groups, memory.rows = [], None
        memory.begin_task(stream.tasks[0])
        memory.choose(stream.tasks[0], lambda _: torch.empty(0))
        rows = memory.stored()
        assert rows.y.bincount().tolist() == [4, 4] and rows.logits is None
        assert len({x.numpy().tobytes() for x in rows.x}) == 8
        drawn.update(x.numpy().tobytes() for x in rows.x)
    assert len(drawn) > 25, "of 30"
    memory.rows = rows._replace(logits=torch.arange(8.0).unsqueeze(1))
    second = Task(1, stream.tasks[1].x, stream.tasks[1].y, stream.tasks[1].t)
    memory.choose(second, lambda _: torch.empty(0))
    found = memory.stored()
    assert found.logits is not None and found.logits.flatten().tolist() == [0, 1, 4, 5, 0, 0, 0, 0]

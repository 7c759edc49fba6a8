"""Methods for class-incremental streams, against slow versions and brute force."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import blobs, composed, learner, method_for, mlp
from torch import Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.config.check import check_config
from cl_bench.core.greedy import Greedy
from cl_bench.core.herding import Equal, Herding, herded
from cl_bench.core.types import Batch, Task
from cl_bench.data.stream import sequential
from cl_bench.models.added import with_random_features
from cl_bench.probes.nearest_mean import NearestMean
from cl_bench.testing.contract import check_stops
from cl_bench.testing.small_run import SmallRun


def rows_of(task: Task, count: int) -> Batch:
    return task.batch(torch.arange(count))


def revealed(made: Any, stream: Any, now: int) -> Any:
    made.begin_task(stream.live(now), torch.tensor([now]), stream.live_at_end)
    return made


def next_draw(method: Any, count: int) -> Batch:
    """What the memory will give at the next draw, which this one does not change."""
    rng = method.learner.rng
    state = rng.get_state()
    drawn = method.memory.sample(count)
    rng.set_state(state)
    return drawn


@pytest.mark.parametrize("forward", ["apart", "together"])
@pytest.mark.parametrize("scenario", ["class", "task", "data"])
def test_er_ace_equals_its_formula(scenario: str, forward: str) -> None:
    """New samples over the classes of their batch, old ones over all that compete for them."""
    torch.manual_seed(0)
    stream, made = blobs(scenario), learner(mlp().double())
    options = "method.replay=4", "buffer.capacity=8", f"method.forward={forward}"
    method = method_for("er_ace", revealed(made, stream, 0), *options)
    method.observe(rows_of(stream.tasks[0], 8))
    revealed(made, stream, 1)
    new = rows_of(stream.tasks[1], 6)
    old = next_draw(method, 4)
    theta = made.flat.theta.detach().clone().requires_grad_()

    def mean_loss(rows: Batch, allowed: set[int] | None) -> Tensor:
        losses = []
        for x, y, t in zip(*rows[:3], strict=True):
            live = stream.live(1)[t].nonzero().flatten().tolist()
            classes = sorted(live if allowed is None else {*live} & allowed)
            one = Batch(x[None], y[None], t[None])
            logits = made.logits(theta, one)[0, classes]
            losses.append(-logits.log_softmax(0)[classes.index(int(y))])
        return torch.stack(losses).mean()

    total = mean_loss(new, {*new.y.tolist()}) + mean_loss(old, None)
    (slope,) = torch.autograd.grad(total, theta)
    before = made.flat.theta.detach().clone()
    torch.testing.assert_close(method.observe(new), total.detach())
    torch.testing.assert_close(made.flat.theta.detach(), before - 0.1 * slope)


def test_er_ace_leaves_old_rows_of_the_head_alone_without_replay() -> None:
    """A batch of new classes has no gradient in the head's rows of old ones."""
    stream, made = blobs("class"), learner(mlp())
    method = method_for("er_ace", revealed(made, stream, 2))
    before = made.heads.rows_of(made.flat.theta.detach()).clone()
    method.observe(rows_of(stream.tasks[2], 8))
    moved = (made.heads.rows_of(made.flat.theta.detach()) - before).abs().sum(1) > 0
    assert moved.tolist() == [False] * 4 + [True] * 2


@pytest.mark.parametrize("count", [1, 2, 3])
def test_herding_chooses_as_brute_force_does(count: int) -> None:
    """After each choice the mean of the chosen is as near as one more sample can bring it."""
    features = F.normalize(torch.randn(7, 4, generator=torch.Generator().manual_seed(3)), dim=1)
    chosen: list[int] = []
    for number in range(1, count + 1):
        gaps = {
            i: float((features.mean(0) - features[[*chosen, i]].sum(0) / number).norm())
            for i in range(7)
            if i not in chosen
        }
        chosen.append(min(gaps, key=lambda i: gaps[i]))
    assert herded(features, count).tolist() == chosen


def test_herding_is_the_authors_rule_for_features_of_length_one() -> None:
    """argmax <w, x> with w <- w + mean - x, as in the authors' code."""
    features = F.normalize(torch.randn(20, 5, generator=torch.Generator().manual_seed(4)), dim=1)
    mean, w, chosen = features.mean(0), features.mean(0), []
    for _ in range(8):
        scores = features @ w
        scores[chosen] = -torch.inf
        chosen.append(int(scores.argmax()))
        w = w + mean - features[chosen[-1]]
    assert herded(features, 8).tolist() == chosen


def test_a_herding_memory_is_shared_by_the_classes() -> None:
    """Each class keeps its first exemplars when others come; the oldest choice stays first."""
    assert Herding.unused_options({"capacity": 13}) == {"insert", "per_class"}
    herding_keeps(Herding(13, "all", False, torch.Generator()), (6, 3, 2))


def test_a_herding_memory_has_as_many_samples_of_each_class() -> None:
    """With `per_class`; of a class with fewer samples it has all of them."""
    herding_keeps(Herding(13, "all", False, torch.Generator(), per_class=4), (4, 4, 4))
    options = {"capacity": 13, "per_class": 4}
    assert Herding.unused_options(options) == {"insert", "capacity"}
    assert Herding.max_samples(options, tasks=3, classes=6) == 24
    assert Herding.max_samples(options, tasks=3, classes=None) is None
    memory, (task, *_) = Equal(13, "all", False, torch.Generator(), 999), blobs("class").tasks
    memory.choose(task, lambda _: torch.empty(0))
    assert len(memory) == len(task)


def herding_keeps(memory: Herding, shares: tuple[int, ...]) -> None:
    """Each class has so many samples after each task: the first ones that herding chooses."""
    stream = blobs("class")

    def features(batches: Any) -> Tensor:
        pixels = torch.cat([each.x for each in batches]).flatten(1).float()
        return F.normalize(pixels, dim=1)

    kept: dict[int, list[Tensor]] = {}
    for task, share in zip(stream.tasks, shares, strict=True):
        memory.begin_task(task)
        memory.add(rows_of(task, 8))
        memory.choose(task, features)
        memory.end_task()
        rows = memory.stored()
        for label in rows.y.unique().tolist():
            own = rows.x[rows.y == label]
            assert len(own) == share
            before = kept.get(label, [*own])
            assert all(a.equal(b) for a, b in zip(own, before, strict=False))
            kept[label] = [*own]
        first = task.y == task.y[0]
        found = herded(
            features([task.rows(first.nonzero().squeeze(1)).batch(torch.arange(int(first.sum())))]),
            share,
        )
        expected = task.x[first][found]
        assert rows.x[rows.y == task.y[0]].equal(expected)
    assert len(memory) == 6 * shares[-1]


@pytest.mark.parametrize(
    ("words", "classes"), [(("method=icarl",), 100), (("method=er", "buffer=herding"), 100)]
)
def test_a_memory_has_a_sample_for_each_class(words: tuple[str, ...], classes: int) -> None:
    wrong = "dataset=seqcifar100", f"buffer.capacity={classes - 1}"
    with pytest.raises(
        UserError,
        match=rf"buffer.capacity=99: each of {classes} classes needs a sample; use at least 100",
    ):
        check_config(composed(*words, *wrong))
    check_config(composed(*words, "dataset=seqcifar100", f"buffer.capacity={classes}"))


def test_a_memory_has_a_sample_for_each_class_of_each_task_in_data_il() -> None:
    words = "method=er", "buffer.capacity=150", "dataset=pmnist"
    with pytest.raises(UserError, match=r"each of 200 classes of each task needs a sample"):
        check_config(composed(*words, "buffer=herding"))
    with pytest.raises(UserError, match=r"it has its share of each class after the first task"):
        check_config(composed(*words, "buffer=greedy"))


def test_a_memory_that_grows_with_the_classes_is_refused_where_it_is_too_large() -> None:
    """Of 20 tasks that have all 10 classes it has 200 times as many."""
    words = "method=er", "buffer=equal", "dataset=pmnist", "buffer.per_class=10"
    needed = 200 * 10 * 28 * 28 / 2**20
    check_config(composed(*words, f"budget_mib={needed + 0.1}"))
    with pytest.raises(UserError, match=r"buffer\.per_class=10: its images take 1\.495 MiB"):
        check_config(composed(*words, f"budget_mib={needed - 0.1}"))


def test_a_memory_of_exemplars_has_no_logits() -> None:
    with pytest.raises(UserError, match=r"keeps no logits, which the method replays"):
        check_config(composed("method=der", "buffer=herding", "scenario=class"))


def trained(name: str, tasks: int, *words: str) -> tuple[Any, Any, Any]:
    """A method after so many tasks of a class-incremental stream, in double precision."""
    torch.manual_seed(0)
    stream, made = blobs("class"), learner(mlp().double())
    method = method_for(name, made, "buffer.capacity=12", "method.replay=4", *words)
    for task in stream.tasks[:tasks]:
        revealed(made, stream, task.id)
        method.begin_task(task)
        for rows in task.chunks(8):
            method.observe(rows)
        method.end_task(task)
    return method, made, stream


def test_icarl_equals_its_formula() -> None:
    """The labels for classes of this task, the old network's outputs for the others."""
    method, made, stream = trained("icarl", 1)
    teacher = made.flat.theta.detach().clone()
    revealed(made, stream, 1)
    method.begin_task(stream.tasks[1])
    made.flat.theta.detach().add_(0.01)
    new = rows_of(stream.tasks[1], 6)
    union = new.cat(next_draw(method, 4))
    theta = made.flat.theta.detach().clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for x, y, t in zip(*union[:3], strict=True):
        one = Batch(x[None], y[None], t[None])
        now, before = made.logits(theta, one)[0], made.logits(teacher, one)[0].detach()
        for k in range(4):
            target = before[k].sigmoid() if k < 2 else torch.tensor(float(y == k))
            p = now[k].sigmoid()
            total = total - (target * p.log() + (1 - target) * (1 - p).log()) / (10 * 4)
    (slope,) = torch.autograd.grad(total, theta)
    before = made.flat.theta.detach().clone()
    found = method.observe(new)
    torch.testing.assert_close(found.double(), total.detach(), rtol=1e-5, atol=1e-6)
    moved = made.flat.theta.detach() - before
    torch.testing.assert_close(moved, -0.1 * slope, rtol=1e-4, atol=1e-6)


def test_icarl_predicts_the_nearest_mean_of_exemplars() -> None:
    """By distances to means of length 1, one image at a time; its networks predict the same."""
    method, made, stream = trained("icarl", 3)
    rows = method.memory.stored()
    made.net.eval()
    means = []
    for k in range(6):
        own = [F.normalize(made.features(rows.rows(rows.y == k)), dim=1)]
        means.append(F.normalize(torch.cat(own).mean(0), dim=0))
    for test in stream.tests:
        batch = rows_of(test, len(test))
        found = F.normalize(made.features(batch), dim=1)
        nearest = torch.cdist(found, torch.stack(means)).argmin(1)
        assert method.predict(batch).argmax(1).equal(nearest)
    (name, network), *others = method.networks()
    assert not name and not others
    assert made.snapshot_logits(network, batch).equal(method.predict(batch))


def test_icarl_predicts_by_its_outputs_within_a_task() -> None:
    method, made, stream = trained("icarl", 1)
    method.begin_task(stream.tasks[1])
    batch = rows_of(stream.tests[0], 5)
    assert method.predict(batch).equal(made.logits(made.flat.theta, batch))


def test_wa_equals_its_formula() -> None:
    """(1 - a) cross-entropy + a distillation over old classes; then new rows are scaled."""
    method, made, stream = trained("wa", 1, "method.temperature=3.0")
    teacher = made.flat.theta.detach().clone()
    revealed(made, stream, 1)
    method.begin_task(stream.tasks[1])
    made.flat.theta.detach().add_(0.02)
    new = rows_of(stream.tasks[1], 6)
    union = new.cat(next_draw(method, 4))
    theta = made.flat.theta.detach().clone().requires_grad_()
    now, before = made.logits(theta, union)[:, :4], made.logits(teacher, union)[:, :2].detach()
    kept = -((before / 3).softmax(1) * (now[:, :2] / 3).log_softmax(1)).sum(1).mean()
    total = 0.5 * F.cross_entropy(now, union.y) + 0.5 * kept
    (slope,) = torch.autograd.grad(total, theta)
    start = made.flat.theta.detach().clone()
    torch.testing.assert_close(method.observe(new).double(), total.detach(), rtol=1e-5, atol=1e-6)
    moved = made.flat.theta.detach() - start
    torch.testing.assert_close(moved, -0.1 * slope, rtol=1e-4, atol=1e-6)
    before = made.heads.rows_of(made.flat.theta.detach()).clone()
    method.end_task(stream.tasks[1])
    norms, scaled = before.norm(dim=1), made.heads.rows_of(made.flat.theta.detach())
    torch.testing.assert_close(scaled[2:4], before[2:4] * norms[:2].mean() / norms[2:4].mean())
    assert scaled[:2].equal(before[:2]) and scaled[4:].equal(before[4:])


def test_mir_replays_what_the_new_batch_would_raise_most() -> None:
    """The candidates' losses at a step along the new batch's gradient, one after the other."""
    torch.manual_seed(0)
    stream, made = blobs("data"), learner(mlp().double())
    words = "buffer.capacity=20", "method.replay=3", "method.candidates=3"
    method = method_for("mir", revealed(made, stream, 0), *words)
    for rows in stream.tasks[0].chunks(8):
        method.observe(rows)
    new = rows_of(stream.tasks[1], 6)
    drawn = next_draw(method, 9)
    theta = made.flat.theta.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(made.loss(theta, new), theta)
    raised = []
    for i in range(9):
        one = drawn.rows(slice(i, i + 1))
        ahead, here = made.loss(theta - 0.1 * slope, one), made.loss(theta, one)
        raised.append((ahead - here).item())
    chosen = sorted(range(9), key=lambda i: -raised[i])[:3]
    total = made.loss(theta, new) + made.loss(theta, drawn.rows(torch.tensor(chosen)))
    (slope,) = torch.autograd.grad(total, theta)
    start = made.flat.theta.detach().clone()
    torch.testing.assert_close(method.observe(new), total.detach())
    torch.testing.assert_close(made.flat.theta.detach() - start, -0.1 * slope)


def test_a_greedy_memory_balances_its_classes() -> None:
    """By the algorithm, one sample at a time; the same random victims."""
    rng = torch.Generator().manual_seed(1)
    memory = Greedy(10, "all", False, torch.Generator().manual_seed(1))
    labels = torch.randint(0, 4, (60,), generator=torch.Generator().manual_seed(2)).sort().values
    x = torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1)
    stored: list[tuple[int, int]] = []  # (sample, class)
    order: list[int] = []
    for i, label in enumerate(labels.tolist()):
        order += [] if label in order else [label]
        counts = {k: sum(1 for _, other in stored if other == k) for k in order}
        if counts[label] >= 10 // len(order):
            continue
        if len(stored) < 10:
            stored.append((i, label))
            continue
        largest = max(order, key=lambda k: counts[k])
        victims = [place for place, (_, other) in enumerate(stored) if other == largest]
        stored[victims[int(torch.randint(len(victims), (), generator=rng))]] = (i, label)
    for start in range(0, 60, 7):
        some = slice(start, start + 7)
        memory.add(Batch(x[some], labels[some], torch.zeros_like(labels[some])))
    rows = memory.stored()
    assert sorted(rows.y.tolist()) == sorted(label for _, label in stored)
    assert {rows.y.tolist().count(k) for k in range(4)} <= {2, 3}
    assert [int(v) for v in x[rows.x.flatten().long()].flatten()] == rows.x.flatten().tolist()
    assert labels[rows.x.flatten().long()].equal(rows.y)


def test_gdumb_trains_the_first_network_on_its_memory() -> None:
    """The same steps as plain training on the stored samples, from the first network."""
    stream, made = blobs("class"), learner(mlp().double())
    words = "buffer.capacity=12", "method.epochs=4", "method.batch_size=5", "method.last=0.1"
    start = made.flat.theta.detach().clone()
    method = method_for("gdumb", made, *words)
    for task in stream.tasks[:2]:
        revealed(made, stream, task.id)
        method.begin_task(task)
        for rows in task.chunks(8):
            method.observe(rows)
        state = made.rng.get_state()
        method.end_task(task)
    after = made.flat.theta.detach().clone()
    rows, theta = method.memory.stored(), start.clone().requires_grad_()
    made.rng.set_state(state)
    rates = [0.1, 1.0, 1.0, 0.55]  # the first epoch, and falls of 1 and 2 epochs
    for factor in rates:
        for part in torch.randperm(12, generator=made.rng).split(5):
            (slope,) = torch.autograd.grad(made.loss(theta, rows.rows(part)), theta)
            theta = (theta - 0.1 * factor * slope).detach().requires_grad_()
    torch.testing.assert_close(after, theta.detach())
    assert made.sample_gradients == 2 * 4 * 12


@pytest.mark.parametrize("name", ["ncm", "slda"])
def test_feature_classifiers_equal_their_formulas(name: str) -> None:
    """The nearest mean, and the class of largest Gaussian likelihood with one covariance."""
    torch.manual_seed(0)
    stream, made = blobs("class"), learner(mlp().double())
    method = method_for(name, revealed(made, stream, 2), "method.shrinkage=0.3")
    theta = made.flat.theta.detach().clone()
    found, labels = [], []
    for task in stream.tasks:
        method.begin_task(task)
        for rows in task.chunks(7):
            method.observe(rows)
            found.append(made.features(rows))
            labels.append(rows.y)
        for rows in task.chunks(7):  # a second epoch adds nothing
            method.observe(rows)
    x, y = torch.cat(found), torch.cat(labels)
    means = torch.stack([x[y == k].mean(0) for k in range(6)])
    matrix = torch.eye(x.shape[1], dtype=torch.float64)
    if name == "slda":
        gaps = x - means[y]
        matrix = torch.linalg.inv(0.7 * gaps.T @ gaps / len(x) + 0.3 * matrix)
    for test in stream.tests:
        rows = rows_of(test, len(test))
        gaps = made.features(rows)[:, None] - means
        distances = torch.einsum("bki,ij,bkj->bk", gaps, matrix, gaps)
        assert method.predict(rows).argmax(1).equal(distances.argmin(1))
    assert made.flat.theta.detach().equal(theta) and made.sample_gradients == 0


@pytest.mark.parametrize("name", ["ncm", "slda"])
def test_a_network_adapts_to_the_first_task(name: str) -> None:
    """As fine-tuning does; the sums are those of all tasks in the features of this network."""
    adapted = SmallRun(lambda made: method_for(name, made, "method.adapt=true"), "class")()
    one = partial(sequential, first=1)
    first = SmallRun(lambda made: method_for("finetune", made), "class", arranged=one)()
    method: Any = adapted.made
    made, other = method.learner, first.made.learner
    assert made.flat.theta.equal(other.flat.theta) and not method.adapting
    assert made.sample_gradients == other.sample_gradients > 0
    sums = torch.zeros_like(method.sums)
    for task in adapted.stream.tasks:
        rows = rows_of(task, len(task))
        sums.index_add_(0, rows.y, made.features(rows).double())
    torch.testing.assert_close(method.sums, sums)
    assert (
        method.count.tolist()
        == torch.bincount(
            torch.cat([task.y for task in adapted.stream.tasks]), minlength=6
        ).tolist()
    )


@pytest.mark.parametrize("name", ["ncm", "ranpac"])
def test_a_run_that_adapts_stops_and_continues(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "method": lambda made: method_for(name, made, "method.adapt=true"),
        "scenario": "task",
    }
    check_stops(tmp_path, [3, 8, 6], **options)


def test_what_cannot_adapt() -> None:
    words = "method=ncm", "method.adapt=true", "dataset=seqmnist5k", "scenario=class"
    with pytest.raises(UserError, match=r"method\.adapt=true: .*, which stream=online does not"):
        check_config(composed(*words, "stream=online", "schedule.epochs=1"))
    made = learner(with_random_features(mlp(), 4))
    for name, parameter in made.net.named_parameters():
        parameter.requires_grad_("head" in name)
    with pytest.raises(UserError, match=r"method=ncm with method\.adapt=true trains the features"):
        method_for("ncm", made, "method.adapt=true").check_network(blobs("class").tasks[0])


def test_the_nearest_mean_of_a_network() -> None:
    """The probe against a loop over classes and images, on the tasks so far."""
    stream, made = blobs("class"), learner(mlp())
    revealed(made, stream, 1)
    found = NearestMean(7)(made, stream, stream.tasks[1])["nearest_mean"]
    seen = [rows_of(task, len(task)) for task in stream.tasks[:2]]
    x, y = made.unit_features(seen), torch.cat([rows.y for rows in seen])
    means = [F.normalize(x[y == k].mean(0), dim=0) for k in range(4)]
    hits = []
    for test in stream.tests[:2]:
        rows = rows_of(test, len(test))
        for image, label in zip(made.unit_features([rows]), rows.y.tolist(), strict=True):
            gaps = [float((image - mean).norm()) for mean in means]
            hits.append(gaps.index(min(gaps)) == label)
    assert found == sum(hits) / len(hits)


def test_the_probe_works_in_each_scenario() -> None:
    for scenario in ("data", "task", "class"):
        run = SmallRun(lambda made: method_for("er", made), scenario, probe=NearestMean(7))()
        found = [row["nearest_mean"] for row in run.rows if row["event"] == "probe"]
        assert len(found) == 3 and all(0 <= value <= 1 for value in found)


def packnet_after(tasks: int, **options: Any) -> tuple[Any, Any, list[Tensor]]:
    """PackNet after some tasks, and the logits of each task's images right after the task."""
    torch.manual_seed(0)
    stream, made = blobs("task"), learner(mlp(hidden=[20, 20]), **options)
    method = method_for("packnet", made, "method.share=0.4", "method.prune_after=1")
    found = []
    for task in stream.tasks[:tasks]:
        revealed(made, stream, task.id)
        made.task = task
        method.begin_task(task)
        for _ in range(2):
            for rows in task.chunks(8):
                method.observe(rows)
        method.end_task(task)
        found.append(method.predict(rows_of(stream.tests[task.id], 20)))
    return method, stream, found


@pytest.mark.parametrize("optimizer", [None, partial(torch.optim.Adam, lr=0.01)])
def test_packnet_forgets_nothing(optimizer: Any) -> None:
    """The logits of each task's classes are the same bit for bit after all tasks.

    What was trained last is what is kept: pruned weights are 0 to the end, whatever the optimizer.
    """
    method, stream, found = packnet_after(3, optimizer=optimizer)
    flat = method.learner.flat
    owners, weights = flat.views(method.owner), flat.views(flat.theta.detach())
    assert not any(weights[name][owners[name] == 0].any() for name in method.names)
    for test, logits in zip(stream.tests, found, strict=True):
        own = slice(2 * test.id, 2 * test.id + 2)
        assert method.predict(rows_of(test, 20))[:, own].equal(logits[:, own])


def test_packnet_prunes_the_smallest_free_weights_of_each_layer() -> None:
    """A share of what is free, rounded; what a task has kept is never pruned."""
    method, _, _ = packnet_after(2)
    flat = method.learner.flat
    owners, weights = flat.views(method.owner), flat.views(flat.theta.detach())
    for name in method.names:
        total = owners[name].numel()
        free = round(0.4 * total)
        assert int((owners[name] == 1).sum()) == total - free
        assert int((owners[name] == 2).sum()) == free - round(0.4 * free)
        assert not weights[name][owners[name] == 0].any()
    one, _, _ = packnet_after(1)
    assert one.capacity()["used"] == pytest.approx(0.6, abs=0.01)


def test_packnet_leaves_epochs_to_retrain() -> None:
    with pytest.raises(UserError, match=r"method.prune_after=20: of schedule.epochs=20 some must"):
        check_config(composed("method=packnet", "dataset=seqcifar100", "method.prune_after=20"))


@pytest.mark.parametrize("name", ["icarl", "wa"])
def test_classes_that_come_again_are_learned_by_their_labels(name: str) -> None:
    """On a blurred stream a class is old only where it does not come."""
    stream, made = blobs("class"), learner(mlp())
    method = method_for(name, revealed(made, stream, 0), "buffer.capacity=12")
    method.begin_task(stream.tasks[0])
    method.observe(rows_of(stream.tasks[0], 8))
    method.end_task(stream.tasks[0])
    revealed(made, stream, 1)
    mixed = Task(1, stream.tasks[1].x, stream.tasks[1].y.clone(), stream.tasks[1].t)
    mixed.y[0] = 1  # an image of a class of the first task
    method.begin_task(mixed)
    assert method.past.tolist() == [True] + [False] * 5
    assert method.now.tolist() == [True] * 4 + [False] * 2
    assert method.observe(rows_of(mixed, 8)).isfinite()
    method.end_task(mixed)

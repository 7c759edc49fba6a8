"""Streams without clean boundaries, tests along the way, and what they refuse."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DEVICES, blobs, class_of, composed, method_for, names
from torch import Generator

import cl_bench
from cl_bench.base.exceptions import UserError
from cl_bench.config import boundaries
from cl_bench.config.check import check_config
from cl_bench.core.types import Stream, Task
from cl_bench.data.boundaries import blurry, online
from cl_bench.engine.evaluation import Evaluation
from cl_bench.testing import contract
from cl_bench.testing.small_run import SmallRun, batch_norm, perceptron, scheduled

TASK_FREE = [name for name in names("method") if name != "joint" and class_of(name).task_free]
EVERY_20 = Evaluation("seen", "test", 0.1, False, every=20, batch_size=7)


def blurred(tasks: int, each: int, seed: int = 0, **options: Any) -> tuple[Stream, Stream]:
    """A stream of `tasks` tasks of two classes with `each` images, and the blurred one."""
    clean = blobs("class", tasks, each)
    chosen = {"first": None, "disjoint": 0.5, "blur": 0.1, "boundaries": True, "seed": seed}
    return clean, blurry(clean, **{**chosen, **options})  # type: ignore[arg-type]


def images_of(tasks: list[Task]) -> Counter[bytes]:
    return Counter(image.numpy().tobytes() for task in tasks for image in task.x)


def test_every_image_comes_once() -> None:
    """Blurring moves images between tasks: none is lost, none is new, each keeps its label."""
    clean, found = blurred(5, 40, blur=0.3)
    assert images_of(clean.tasks) == images_of(found.tasks)
    labels = {
        x.numpy().tobytes(): int(y) for t in clean.tasks for x, y in zip(t.x, t.y, strict=True)
    }
    for task in found.tasks:
        assert (task.t == task.id).all()
        kept = [labels[x.numpy().tobytes()] for x in task.x]
        assert kept == task.y.tolist()
    assert found.tests is clean.tests


def test_the_shares_of_i_blurry() -> None:
    """N % of each task's classes stay there; M % of the images of the others are dealt out evenly.

    A share 1 / T of what is dealt out comes back to its own task.
    """
    tasks, each, blur = 5, 400, 0.3
    clean, found = blurred(tasks, each, blur=blur)
    alone = found.description["disjoint_classes_of_task"]
    assert isinstance(alone, list) and [len(classes) for classes in alone] == [1] * tasks
    for task, (classes,) in enumerate(alone):
        assert [int((t.y == classes).sum()) > 0 for t in found.tasks] == [
            t == task for t in range(tasks)
        ]
    moved, kept = 0, []
    for task in range(tasks):
        (other,) = {2 * task, 2 * task + 1} - {*alone[task]}
        there = [int((t.y == other).sum()) for t in found.tasks]
        total = int((clean.tasks[task].y == other).sum())
        taken = round(blur * total)
        moved += taken
        kept.append(each - taken)
        # hypergeometric; four standard deviations of a binomial distribution, which has more
        slack = 4 * (taken / tasks * (1 - 1 / tasks)) ** 0.5
        assert sum(there) == total
        assert abs(there[task] - (total - taken * (1 - 1 / tasks))) < slack
        assert all(abs(n - taken / tasks) < slack for t, n in enumerate(there) if t != task)
    dealt = [len(task) - k for task, k in zip(found.tasks, kept, strict=True)]
    assert sum(dealt) == moved and max(dealt) - min(dealt) <= 1


def test_without_blur_or_with_all_classes_disjoint_nothing_changes() -> None:
    unchanged: list[dict[str, Any]] = [{"blur": 0.0}, {"disjoint": 1.0, "blur": 1.0}]
    for options in unchanged:
        clean, found = blurred(3, 30, **options)
        for one, two in zip(clean.tasks, found.tasks, strict=True):
            assert one.x.equal(two.x) and one.y.equal(two.y) and one.t.equal(two.t)
        assert found.classes.equal(clean.classes)


def test_the_draws_follow_the_seed_alone() -> None:
    one, two, other = (blurred(4, 50, seed=seed)[1] for seed in (3, 3, 4))
    assert all(a.x.equal(b.x) for a, b in zip(one.tasks, two.tasks, strict=True))
    assert not all(a.y.equal(b.y) for a, b in zip(one.tasks, other.tasks, strict=True))


def test_classes_compete_once_they_have_been_seen() -> None:
    """In class-IL a class competes from the first task in which one of its images comes."""
    _, found = blurred(4, 200, blur=0.2)
    for now in range(4):
        seen = torch.cat([task.y for task in found.tasks[: now + 1]]).unique().tolist()
        assert found.live(now)[0].nonzero().flatten().tolist() == seen


def test_tasks_with_classes_in_common_are_not_blurred() -> None:
    with pytest.raises(UserError, match="stream=blurry: tasks have classes in common"):
        blurry(blobs("data"), None, 0.5, 0.1, True, 0)


def test_parts_are_learned_in_their_order() -> None:
    """Batches as of the tasks one after the other, from the same generator; resumed anywhere."""
    stream = blobs("class", 3, 30)
    (task,) = online(stream, None).tasks
    assert task.parts == (30, 30, 30) and task.batches_per_epoch(8) == 12
    assert task.part_starts(8) == {0: 0, 4: 1, 8: 2}
    rng = Generator().manual_seed(1)
    apart = [batch for part in stream.tasks for batch in part.batches(8, rng)]
    for start in (0, 1, 4, 7, 11):
        whole = list(task.batches(8, Generator().manual_seed(1), start=start))
        assert len(whole) == 12 - start
        for one, two in zip(whole, apart[start:], strict=True):
            assert one.x.equal(two.x) and one.y.equal(two.y) and one.t.equal(two.t)
    assert stream.tasks[0].part_starts(8) == {}


def test_what_needs_no_boundary_is_the_same_without_one() -> None:
    """Plain SGD has no state: fine-tuning ends alike, told of boundaries or not."""
    for scenario in ("data", "class"):
        runs = [
            SmallRun(
                partial(method_for, "finetune"), scenario, schedule=scheduled(), arranged=arranged
            )()
            for arranged in (lambda stream: stream, partial(online, first=None))
        ]
        assert runs[0].theta.equal(runs[1].theta)
        pair = [run.progress.matrix for run in runs]
        torch.testing.assert_close(pair[0].values, pair[1].values, rtol=0, atol=0, equal_nan=True)
        assert len(runs[1].stream.tasks) == 1


def test_the_method_is_not_told() -> None:
    """Its hooks are called once each, and the optimizer keeps its momentum."""
    made: list[Any] = []

    def method(learner: Any) -> Any:
        found, calls = method_for("finetune", learner), []
        found.begin_task = lambda task: calls.append(("begin", len(task)))
        found.end_task = lambda task: calls.append(("end", len(task)))
        made.append((calls, learner))
        return found

    options: dict[str, Any] = {"arranged": partial(online, first=None), "learner": batch_norm}
    SmallRun(method, "class", schedule=scheduled(), **options)()
    calls, learner = made[0]
    assert calls == [("begin", 90), ("end", 90)]
    (state,) = learner.optimizer.state_dict()["state"].values()
    assert int(state["step"]) == 12  # not those of the last task alone


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", TASK_FREE)
def test_task_free_methods_repeat_and_continue(name: str, device: str, tmp_path: Path) -> None:
    """On a blurred stream without boundaries: stopped within a part, at its end, and killed."""
    arranged = partial(blurry, first=None, disjoint=0.5, blur=0.3, boundaries=False, seed=0)
    options: dict[str, Any] = {
        "method": partial(method_for, name),
        "scenario": "class",
        "device": device,
        "learner": perceptron,
        "schedule": scheduled(batch_size=6),
        "evaluation": EVERY_20,
        "arranged": arranged,
    }
    one, two = (SmallRun(**options)() for _ in range(2))
    contract.check_repeats(one, two)
    starts = sorted(one.stream.tasks[0].part_starts(6))
    stops = [2, starts[1] - 2, 1]  # within the first part, at its end, and a step after it
    straight = contract.check_stops(tmp_path, stops, **options)
    assert straight.progress.along and straight.theta.equal(one.theta)


def test_some_methods_are_task_free() -> None:
    assert {"finetune", "er", "der", "derpp", "mer", "lamaml", "emcl"} <= {*TASK_FREE}
    assert not {"ewc", "dlcft", "lwf", "gem", "si", "halrp"} & {*TASK_FREE}
    assert boundaries._task_free_methods() == TASK_FREE  # those that a refusal names


def test_tests_along_the_way() -> None:
    """A test every 20 images, on the classes seen so far; the mean is AUC, and no seed moves."""
    tested: list[dict[str, Any]] = [{"evaluation": EVERY_20}, {}]
    runs = [
        SmallRun(partial(method_for, "er"), "class", schedule=scheduled(batch_size=8), **options)()
        for options in tested
    ]
    along = runs[0].progress.along
    # 30 images a task in batches of 8, 8, 8, 6; a test follows the batch that passes a multiple
    assert [images for images, _ in along] == [24, 46, 60, 84]
    assert runs[0].progress.summary()["AUC"] == pytest.approx(sum(a for _, a in along) / 4)
    assert "AUC" not in runs[1].progress.summary()
    assert runs[0].theta.equal(runs[1].theta)
    # at image 60 the second task has just ended
    after_two = runs[0].progress.matrix.values[1, :2].mean()
    assert along[2][1] == pytest.approx(float(after_two))


def test_classes_of_later_tasks_count_once_seen() -> None:
    """The accuracy is that on all test images of the classes that came, by their labels."""
    from cl_bench.engine.evaluation import accuracy_on_seen

    arranged = partial(blurry, first=None, disjoint=0.0, blur=0.5, boundaries=True, seed=0)
    run = SmallRun(partial(method_for, "er"), "class", arranged=arranged)()
    made, stream = run.made, run.stream
    assert "ACC_task" not in run.progress.summary(), "tasks with classes in common tell none apart"
    for now in range(3):
        made.learner.reveal(stream.live(now), torch.tensor([now]), None)
        seen = stream.classes[: now + 1].any(0)
        hits = total = 0
        with made.learner.evaluating():
            for test in stream.tests:
                for batch in test.chunks(1):
                    if seen[batch.y].item():
                        logits = made.predict(batch).masked_fill(~stream.live(now)[0], -torch.inf)
                        hits += int((logits.argmax(-1) == batch.y).sum())
                        total += 1
        assert total >= 20 * (now + 1)
        assert accuracy_on_seen(made, stream, now, 7) == pytest.approx(hits / total)


REFUSED = [
    (["stream=blurry", "method=er", "scenario=task"], "stream=blurry: classes come in several"),
    (["stream=online", "method=er", "scenario=task"], "stream=online: scenario=task tells"),
    (["stream=online", "method=ewc"], "stream=online: the method EWC must be told"),
    (["stream=online", "method=er", "buffer=ring"], "stream=online: the buffer must be told"),
    (["stream=online", "schedule.epochs=2"], "schedule.epochs=2: stream=online shows"),
    (["stream=online", "schedule.warm_up=head"], "schedule.warm_up=head: stream=online"),
    (
        ["stream=blurry", "stream.boundaries=false", "method=gem", "scenario=class"],
        "stream.boundaries=false: the method GEM",
    ),
    (["stream=blurry", "stream.blur=1.5", "scenario=class"], "stream.blur=1.5"),
    (["evaluation.every=30000"], "at most 4000 training images are learned"),
    (["evaluation.every=9000", "stream.first=1"], "at most 800 training images are learned"),
]


@pytest.mark.parametrize(("overrides", "line"), REFUSED)
def test_what_does_not_go_together(overrides: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        check_config(composed("dataset=seqmnist5k", "scenario=class", *overrides))
    assert line in str(caught.value)


@pytest.mark.usefixtures("pictures")
def test_a_blurred_run_from_python(tmp_path: Path) -> None:
    """The signature of i-Blurry on the bundled digits: record, table, metrics."""
    options = "method=er", "dataset=seqmnist5k", "scenario=class", "dataset.train_per_task=100"
    more = "stream=blurry", "stream.boundaries=false", "evaluation.every=100", "tracking=none"
    run = cl_bench.run(*options, *more, f"output_dir={tmp_path}")
    assert list(run.along.images) == sorted({*run.along.images}) and len(run.along) == 5
    assert run.metrics["AUC"] == pytest.approx(run.along.accuracy.mean())
    assert all(b > a for a, b in pairwise(run.along.images))
    assert (run.folder / "along.png").is_file()
    assert len(run.record.measured["train_seconds"]) == 1
    assert run.accuracy.iloc[-1].notna().all()

"""Early stopping: which epoch is kept, exactly that one, stopped and continued, and refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from conftest import composed, method_for
from torch import Tensor

import cl_bench
from cl_bench.base.exceptions import StopRun, UserError
from cl_bench.config.check import check_config
from cl_bench.core.types import Stream, Task
from cl_bench.data.stream import with_held_out
from cl_bench.engine import checkpoint, early_stopping
from cl_bench.testing.small import scheduled
from cl_bench.testing.small_run import SmallRun, batch_norm

EPOCHS, PATIENCE = 6, 2
FOUND = [  # accuracies after the epochs of each task that are trained, and the best epoch
    ([0.5, 0.6, 0.6, 0.4], 2),  # two epochs that are not better, of which one is as good
    ([0.9, 0.1, 0.2], 1),
    ([0.1, 0.2, 0.1, 0.3, 0.4, 0.2], 5),  # all epochs, and the last one is not the best
]
STEPS = 3 * sum(len(found) for found, _ in FOUND)  # 24 of 30 images are trained on, 8 at a time


def small(name: str = "ewc", **options: Any) -> SmallRun:
    given: dict[str, Any] = {
        "schedule": scheduled(epochs=EPOCHS, patience=PATIENCE, holdout=0.2),
        "arranged": partial(with_held_out, fraction=0.2, seed=0),
    }
    return SmallRun(partial(method_for, name), "task", **(given | options))


class Script:
    """In place of the validation: accuracies that are given, and the states that they were of."""

    def __init__(self) -> None:
        self.left = [list(found) for found, _ in FOUND]
        self.theta: dict[tuple[int, int], Tensor] = {}  # after each task and epoch
        self.real = early_stopping.accuracies

    def __call__(self, method: Any, tests: list[Task], batch_size: int) -> list[float]:
        (test,) = tests
        assert 0 <= self.real(method, tests, batch_size)[0] <= 1
        epoch = len(FOUND[test.id][0]) - len(self.left[test.id]) + 1
        self.theta[test.id, epoch] = method.learner.flat.theta.detach().clone()
        return [self.left[test.id].pop(0)]


def test_a_task_ends_after_the_patience_in_its_best_epoch() -> None:
    """In the state of the first of equally good epochs; later epochs count as spent."""
    script, ends = Script(), []
    run = small()
    run.method = with_noted_ends(run.method, ends)
    with patch.object(early_stopping, "accuracies", script):
        run()
    assert run.progress.best_epochs == [best for _, best in FOUND]
    assert [tuple(left) for left in script.left] == [(), (), ()]
    assert run.progress.steps == STEPS
    assert run.made.learner.sample_gradients >= 24 * STEPS / 3
    for task, (_, best) in enumerate(FOUND):
        assert ends[task].equal(script.theta[task, best])
        others = {epoch for at, epoch in script.theta if at == task} - {best}
        assert not any(ends[task].equal(script.theta[task, epoch]) for epoch in others)
    rows = [row for row in run.rows if row["event"] == "validation"]
    assert [(row["task"], row["accuracy"]) for row in rows] == [
        (task, one) for task, (found, _) in enumerate(FOUND) for one in found
    ]


def with_noted_ends(method: Any, ends: list[Tensor]) -> Any:
    """A method that notes its parameters when its `end_task` is called."""

    def made(learner: Any) -> Any:
        one = method(learner)
        real = one.end_task

        def end_task(task: Task) -> None:
            ends.append(learner.flat.theta.detach().clone())
            real(task)

        one.end_task = end_task
        return one

    return made


@pytest.mark.parametrize("name", ["si", "er", "halrp", "dlcft", "gem", "emcl", "lwf"])
def test_the_state_of_the_best_epoch_is_that_of_fewer_epochs(name: str) -> None:
    """A task of which the second of three epochs is kept, and a task of two epochs: one state."""
    options: dict[str, Any] = {"learner": batch_norm} if name in ("si", "er", "lwf") else {}
    names = ["method.growth=null"] if name == "halrp" else []
    run = partial(SmallRun, lambda learner: method_for(name, learner, *names), "task", **options)
    first = partial(_first_task_held_out, fraction=0.2)
    with patch.object(early_stopping, "accuracies", lambda *_: [next(found)]):
        found = iter([0.5, 0.6, 0.4])
        stopped = run(schedule=scheduled(epochs=3, patience=1), arranged=first)()
    fewer = run(schedule=scheduled(epochs=2), arranged=first)()
    assert stopped.progress.best_epochs == [2]
    one, two = (checkpoint.state_of(r.made) for r in (stopped, fewer))
    one["learner"].pop("sample_gradients")
    two["learner"].pop("sample_gradients")
    pairs = [*zip(checkpoint.tensors(one), checkpoint.tensors(two), strict=True)]
    assert len(pairs) >= 2 and all(a.equal(b) for a, b in pairs)


def _first_task_held_out(stream: Stream, fraction: float) -> Stream:
    from cl_bench.data.stream import sequential

    return with_held_out(sequential(stream, 1), fraction, 0)


@pytest.mark.parametrize("stop_at", [2, 3, 5, 6, 12, 14, 21, STEPS - 1])
def test_stopped_and_continued(stop_at: int, tmp_path: Path) -> None:
    """At any step, the state of the best epoch included: the same end, bit for bit."""
    whole = small("si", learner=batch_norm)
    with patch.object(early_stopping, "accuracies", Script()):
        whole()
    with patch.object(early_stopping, "accuracies", Script()):
        with pytest.raises(StopRun):
            small("si", learner=batch_norm, folder=tmp_path, stop_at=stop_at)()
        again = small("si", learner=batch_norm, folder=tmp_path)()
    assert again.theta.equal(whole.theta)
    assert again.progress.best_epochs == whole.progress.best_epochs
    pair = again.progress.matrix.values, whole.progress.matrix.values
    torch.testing.assert_close(*pair, rtol=0, atol=0, equal_nan=True)
    states = [checkpoint.tensors(checkpoint.state_of(run.made)) for run in (whole, again)]
    assert all(a.equal(b) for a, b in zip(*states, strict=True))


def test_held_out_images_are_stratified_and_not_trained_on() -> None:
    run = small()()
    for task, held_out in zip(run.stream.tasks, run.stream.held_out, strict=True):
        assert (len(task), len(held_out)) == (24, 6)
        both = torch.cat([task.y, held_out.y])
        for label in both.unique():
            share = (held_out.y == label).sum() - 0.2 * (both == label).sum()
            assert abs(share) < 1
        for image in held_out.x:
            assert not (task.x == image).flatten(1).all(1).any()
    assert len(run.stream.tests) == 3


TINY = ("dataset=seqmnist5k", "dataset.train_per_task=60", "schedule.batch_size=10")


def test_a_run_with_patience(tmp_path: Path) -> None:
    """The record has the epochs and the images; joint training and a longer stream work, too."""
    options = (*TINY, "tracking=none", f"output_dir={tmp_path}", "schedule.epochs=8")
    more = "schedule.patience=1", "schedule.holdout=0.25"
    run = cl_bench.run("method=ewc", *options, *more)
    assert run.record.best_epochs is not None and len(run.record.best_epochs) == 5
    assert all(1 <= epoch < 8 for epoch in run.record.best_epochs)
    assert run.record.stream["train_images"] == [45] * 5
    assert run.record.stream["held_out_images"] == [15] * 5
    plain = cl_bench.run("method=ewc", *options)
    assert plain.record.best_epochs is None and "held_out_images" not in plain.record.stream
    joint = cl_bench.run("method=joint", *options, *more)
    assert joint.record.best_epochs is not None and len(joint.record.best_epochs) == 1
    parent = cl_bench.run("method=ewc", *options, *more, "stream.first=2")
    child = cl_bench.run("method=ewc", *options, *more, continue_from=parent.folder)
    assert child.record.theta_sha256 == run.record.theta_sha256
    assert child.record.best_epochs == run.record.best_epochs


@pytest.mark.parametrize(
    ("line", "overrides"),
    [
        ("schedule.epochs=1; use more epochs or", ["schedule.patience=1"]),
        ("use at most 4, more epochs, or", ["schedule.patience=5", "schedule.epochs=5"]),
        ("as schedule.epochs=[3, 2]", ["schedule.patience=3", "schedule.epochs=[3,2]"]),
        ("schedule.patience=0: must be", ["schedule.patience=0", "schedule.epochs=3"]),
        (
            "schedule.holdout=0.001: 0 of 60 training images",
            ["schedule.patience=1", "schedule.epochs=3", "schedule.holdout=0.001"],
        ),
    ],
)
def test_what_is_refused(line: str, overrides: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        check_config(composed(*TINY, *overrides))
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("found", "ended"),
    [
        ([], False),
        ([0.5], False),
        ([0.5, 0.5], False),
        ([0.5, 0.5, 0.5], True),
        ([0.1, 0.3, 0.2], False),
        ([0.1, 0.3, 0.2, 0.3], True),
        ([0.1, 0.3, 0.2, 0.4], False),
    ],
)
def test_ties_and_patience(found: list[float], ended: bool) -> None:
    """The task goes on for two epochs after the first of the best ones."""
    session = SimpleNamespace(
        schedule=scheduled(epochs=9, patience=2), progress=SimpleNamespace(validated=found)
    )
    assert early_stopping.ended(session) is ended  # type: ignore[arg-type]

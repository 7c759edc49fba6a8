"""Runs that go on from a finished run: exact, refused where they do not fit, and named."""

from __future__ import annotations

import json
import shlex
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import class_of, method_for, one_of_each_class

import cl_bench
from cl_bench.base.exceptions import UserError
from cl_bench.data.stream import sequential
from cl_bench.engine import checkpoint
from cl_bench.engine.going_on import grown
from cl_bench.report.commands import find_command
from cl_bench.report.runs import finished_runs
from cl_bench.results.folder import Folder
from cl_bench.results.records import read_all
from cl_bench.testing.small_run import SmallRun

CPU = torch.device("cpu")
KINDS = sorted({*one_of_each_class("emcl_replay", "derpp")} - {"joint"})
TINY = (
    "dataset=seqmnist5k",
    "dataset.train_per_task=40",
    "tracking=none",
    "schedule.batch_size=20",
)


def on_the_toy(name: str, **options: Any) -> SmallRun:
    scenario = "class" if "class" in class_of(name).scenarios else "task"
    overrides = ["method.growth=null"] if name == "halrp" else []  # its heads alone are too large
    return SmallRun(lambda learner: method_for(name, learner, *overrides), scenario, **options)


def move(parent: Path, child: Path, with_method: bool) -> None:
    """Write the parent's last checkpoint as the child's, with room for three tasks."""
    child.mkdir()
    state = checkpoint.load(Folder(parent).checkpoint, CPU, {})
    assert state is not None
    state["progress"] = grown(state["progress"], 3)
    if not with_method:
        del state["method"]
    checkpoint.save(state, Folder(child).checkpoint)
    shutil.copy(Folder(parent).metrics, Folder(child).metrics)


@pytest.mark.parametrize("name", KINDS)
def test_every_method_goes_on_exactly(name: str, tmp_path: Path) -> None:
    """Two tasks, and then a third: the parameters and accuracies of three tasks in one run."""
    whole = on_the_toy(name)()
    (tmp_path / "parent").mkdir()
    on_the_toy(name, arranged=partial(sequential, first=2), folder=tmp_path / "parent")()
    move(tmp_path / "parent", tmp_path / "child", with_method=True)
    child = on_the_toy(name, folder=tmp_path / "child")()
    assert child.theta.equal(whole.theta)
    states = [checkpoint.tensors(checkpoint.state_of(run.made)) for run in (whole, child)]
    assert all(one.equal(two) for one, two in zip(*states, strict=True))
    one, two = whole.progress.matrix.values, child.progress.matrix.values
    assert two[1, 2].isnan()  # the parent did not know of the third task
    measured = ~two.isnan()
    assert int(measured.sum()) >= 6 and one[measured].equal(two[measured])


@pytest.mark.parametrize("name", KINDS)
def test_every_method_goes_on_from_another(name: str, tmp_path: Path) -> None:
    """After two tasks of fine-tuning a method begins with its third as its own first."""
    (tmp_path / "parent").mkdir()
    scenario = on_the_toy(name).scenario
    before = SmallRun(
        partial(method_for, "finetune"),
        scenario,
        arranged=partial(sequential, first=2),
        folder=tmp_path / "parent",
    )()
    move(tmp_path / "parent", tmp_path / "child", with_method=False)
    child = on_the_toy(name, folder=tmp_path / "child")()
    assert child.progress.done == 3 and child.theta.isfinite().all()
    pair = child.progress.matrix.values[:2, :2], before.progress.matrix.values
    torch.testing.assert_close(*pair, rtol=0, atol=0, equal_nan=True)
    assert child.progress.matrix.values[2].isfinite().all()
    assert len(child.theta) > len(before.theta) or not child.theta.equal(before.theta)


def run(tmp_path: Path, *overrides: str, **values: Any) -> cl_bench.Run:
    return cl_bench.run(*TINY, f"output_dir={tmp_path}", *overrides, **values)


def test_a_finished_run_goes_on(tmp_path: Path) -> None:
    """Three tasks, then five, then by another method; each record names its parent."""
    whole = run(tmp_path / "whole", "method=ewc")
    parent = run(tmp_path, "method=ewc", "stream.first=2")
    pattern = f"continue_from='{parent.folder.parent}/seed${{seed}}'"
    child = run(tmp_path, "method=ewc", pattern)
    assert child.record.theta_sha256 == whole.record.theta_sha256
    assert child.record.parent == {"hash": parent.record.hash, "seed": 0}
    assert child.record.hash != whole.record.hash
    assert child.metrics["ACC"] == whole.metrics["ACC"]
    assert child.record.gradients_per_sample == whole.record.gradients_per_sample
    rows = [json.loads(line) for line in (child.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows if row["event"] == "task"] == [0, 1, 2, 3, 4]
    first = (parent.folder / "metrics.jsonl").read_bytes()
    assert (child.folder / "metrics.jsonl").read_bytes().startswith(first)
    again = run(tmp_path, "method=ewc", pattern)
    assert again.folder == child.folder  # found, not made again

    other = run(tmp_path, "method=er", "stream.first=3", f"continue_from={parent.folder}")
    assert other.accuracy.iloc[1:3, :2].equals(parent.accuracy.iloc[1:3, :2])
    assert "parts" not in other.record.code  # it is not said to be made by two codes
    third = run(tmp_path, "method=er", f"continue_from={other.folder}")
    assert third.record.parent == {"hash": other.record.hash, "seed": 0}
    assert third.accuracy.iloc[-1].notna().all()


def test_another_seed_has_another_parent(tmp_path: Path) -> None:
    """With ${seed} in the folder, the seeds are runs of one config."""
    parents = [run(tmp_path, "stream.first=2", f"seed={seed}") for seed in (0, 1)]
    assert parents[0].folder.parent == parents[1].folder.parent
    pattern = f"continue_from='{parents[0].folder.parent}/seed${{seed}}'"
    children = [run(tmp_path, pattern, f"seed={seed}") for seed in (0, 1)]
    assert children[0].record.hash == children[1].record.hash
    assert [child.record.seed for child in children] == [0, 1]
    again = run(tmp_path, continue_from=parents[1].folder, seed=1)  # a path, of one seed
    assert again.folder == children[1].folder


def test_the_report_names_the_parent_by_its_hash(tmp_path: Path) -> None:
    """Rows that go on from no run say nothing of it, and the command of one that does is found."""
    parent = run(tmp_path, "stream.first=2", "seed=1")
    child = run(tmp_path, continue_from=parent.folder, seed=1)
    runs = finished_runs(read_all(tmp_path))
    assert [r.config.get("continue_from") for r in runs if r.hash == parent.record.hash] == [None]
    assert [r.config["continue_from"] for r in runs if r.hash == child.record.hash] == [
        parent.record.hash
    ]
    command = find_command(json.loads((child.folder / "record.json").read_text()))
    assert command is not None
    again = run(tmp_path, *shlex.split(command), "seed=1")
    assert again.folder == child.folder


def test_blurred_tasks_go_on(tmp_path: Path) -> None:
    """Three of five blurred tasks, and then all: the parameters of one run."""
    blurred = ("method=er", "scenario=class", "stream=blurry")
    whole = run(tmp_path / "whole", *blurred)
    parent = run(tmp_path, *blurred, "stream.first=3")
    child = run(tmp_path, *blurred, f"continue_from={parent.folder}")
    assert child.record.theta_sha256 == whole.record.theta_sha256
    assert (
        parent.record.stream["disjoint_classes_of_task"]
        == (whole.record.stream["disjoint_classes_of_task"][:3])
    )


def test_auc_needs_all_tests_along_the_way(tmp_path: Path) -> None:
    """It is left out where the first run made none, or others; what was tested stays."""
    every = "evaluation.every=40"
    whole = run(tmp_path / "whole", every)
    for options, measured in (([], False), (["evaluation.every=20"], False), ([every], True)):
        parent = run(tmp_path, "stream.first=2", *options)
        child = run(tmp_path, every, continue_from=parent.folder)
        assert ("AUC" in child.metrics) is measured
        assert child.along.images.iloc[-1] == 200
    assert child.metrics["AUC"] == whole.metrics["AUC"]
    first = run(tmp_path, "stream.first=1")
    third = run(tmp_path, every, "stream.first=3", continue_from=first.folder)
    assert "AUC" not in run(tmp_path, every, continue_from=third.folder).metrics


def test_metrics_of_unequal_tasks_go_on(tmp_path: Path) -> None:
    """And a method that replays otherwise, which is no state of it."""
    options = "method=derpp", "scenario=class", "dataset.tasks=[4,3,3]"
    whole = run(tmp_path / "whole", *options)
    parent = run(tmp_path, *options, "stream.first=2")
    child = run(tmp_path, *options, continue_from=parent.folder)
    for name in ("ACC_images", "AIA_images"):
        assert child.metrics[name] == whole.metrics[name] is not None
    other = run(tmp_path, *options, "method.draws=1", continue_from=parent.folder)
    back = run(tmp_path, *options, "stream.first=2", "method.draws=1")
    assert run(tmp_path, *options, continue_from=back.folder).folder != other.folder


def test_a_run_without_boundaries_does_not_go_on(tmp_path: Path) -> None:
    parent = run(tmp_path, "method=er", "scenario=class", "stream=online", "stream.first=2")
    options = "method=er", "scenario=class", "stream=online"
    with pytest.raises(UserError, match=r"told of no boundary .*only a run with boundaries"):
        run(tmp_path, *options, continue_from=parent.folder)
    parent = run(tmp_path, "method=er", "scenario=class", "stream.first=2")
    with pytest.raises(UserError, match=r"this stream hides its boundaries.*use stream=sequential"):
        run(tmp_path, *options, continue_from=parent)  # the run itself


def test_a_refused_run_leaves_no_folder(tmp_path: Path) -> None:
    parent = run(tmp_path, "stream.first=2")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="at least one more"):
        run(tmp_path, "stream.first=2", continue_from=parent.folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    """In one line, before training; the parent is not touched."""
    parent = run(tmp_path, "method=ewc", "stream.first=2")
    before = sorted((p, p.stat().st_mtime_ns) for p in parent.folder.iterdir())
    on = f"continue_from={parent.folder}"
    for line, overrides in (
        ("seed 0, this one 1; use seed=0", [on, "method=ewc", "seed=1"]),
        ("model.hidden=[50]: continue_from=", [on, "method=ewc", "model.hidden=[50]"]),
        (
            "scenario=class: continue_from=",
            [on, "method=ewc", "scenario=class"],
        ),
        ("method.strength=1.0; what the method keeps", [on, "method=ewc", "method.strength=7"]),
        ("learned 2 tasks, and this stream has 2; it", [on, "method=ewc", "stream.first=2"]),
        (
            "differs is dataset.seed=4 (before: dataset.seed=0)",
            [on, "method=ewc", "dataset.seed=4"],
        ),
        (
            "schedule.patience=1 (before: schedule.patience=null)",
            [on, "method=ewc", "schedule.epochs=3", "schedule.patience=1"],
        ),
        ("task 0 of that run is another one", [on, "method=ewc", "scenario.order=[1,0,2,3,4]"]),
        (
            "schedule.fresh_optimizer=false: a finished run keeps no state of its optimizer",
            [on, "method=ewc", "schedule.fresh_optimizer=false"],
        ),
        ("there is no finished run in this folder", [f"continue_from={tmp_path}/nothing"]),
        ("there is no finished run in this folder", ["continue_from=/dev/null"]),
        ("continue_from=[1]: must be a text", ["continue_from=[1]"]),
    ):
        with pytest.raises(UserError) as caught:
            run(tmp_path, *overrides)
        assert line in str(caught.value), str(caught.value)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in parent.folder.iterdir())
    (parent.folder / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"continue_from=.*checkpoint.pt: is not a checkpoint"):
        run(tmp_path, on, "method=ewc")
    (parent.folder / "checkpoint.pt").unlink()
    with pytest.raises(UserError, match=r"continue_from=.*checkpoint.pt: is missing"):
        run(tmp_path, on, "method=ewc")
    (parent.folder / "record.json").write_text('{"hash": 3}')
    with pytest.raises(UserError, match=r"record.json is damaged"):
        run(tmp_path, on, "method=ewc")


def test_images_that_a_method_holds_out_are_named(tmp_path: Path) -> None:
    """BiC keeps some images of each task from training, so that its tasks are other ones."""
    parent = run(tmp_path, "method=er", "scenario=class", "stream.first=2")
    with pytest.raises(UserError, match=r"the images that this run keeps from training \(schedule"):
        run(tmp_path, "method=bic", "scenario=class", continue_from=parent.folder)


def test_what_is_no_state_may_change(tmp_path: Path) -> None:
    """The number of stored samples in a step, which follows the batch; and options without use."""
    for method in ("er", "lwf"):
        parent = run(tmp_path, f"method={method}", "stream.first=2")
        on = (f"method={method}", "schedule.batch_size=5")
        child = run(tmp_path, *on, continue_from=parent.folder)
        assert child.config.method.replay == 5 and parent.config.method.replay == 20


APART = ("dataset=pmnist5k", "dataset.train_per_task=40", "tracking=none", "scenario=task")


def head_of(run: cl_bench.Run) -> Any:
    return run.network().get_submodule("head")


def test_the_head_gets_rows_for_new_classes(tmp_path: Path) -> None:
    """At a rate of nearly nothing: the old rows are the parent's, the new ones a new network's."""
    options = (*APART, f"output_dir={tmp_path}", "optimizer.lr=1e-30")
    parent, new = (cl_bench.run(*options, f"dataset.tasks={tasks}") for tasks in (2, 3))
    child = cl_bench.run(*options, "dataset.tasks=3", continue_from=parent.folder)
    heads = [head_of(run) for run in (parent, new, child)]
    assert [tuple(head.weight.shape) for head in heads] == [(20, 100), (30, 100), (30, 100)]
    for old, fresh, both in zip(*(head.parameters() for head in heads), strict=True):
        torch.testing.assert_close(both, torch.cat([old, fresh[20:]]), rtol=0, atol=1e-20)
    bodies = [run.network().get_submodule("features") for run in (parent, new, child)]
    for old, fresh, both in zip(*(body.parameters() for body in bodies), strict=True):
        torch.testing.assert_close(both, old, rtol=0, atol=1e-20)
        assert fresh.dim() == 1 or not both.equal(fresh)  # biases begin at zero


def test_new_classes_are_learned(tmp_path: Path) -> None:
    """Heads apart: of the old tasks' rows nothing changes, and the new task is learned."""
    options = (*APART, f"output_dir={tmp_path}", "schedule.epochs=20")
    parent = cl_bench.run("method=finetune", *options, "dataset.tasks=2")
    for name in ("finetune", "er", "ewc"):
        more = "dataset.tasks=3", f"method={name}"
        child = cl_bench.run(*more, *options, continue_from=parent.folder)
        assert head_of(child).weight[:20].equal(head_of(parent).weight)
        assert child.accuracy.iloc[1:3, :2].equals(parent.accuracy.iloc[1:3, :2])
        assert float(child.accuracy.iloc[-1, -1]) > 0.4
    again = cl_bench.run(*more, *options, continue_from=parent.folder)
    assert again.folder == child.folder


def test_what_a_method_keeps_does_not_grow(tmp_path: Path) -> None:
    options = (*APART, f"output_dir={tmp_path}")
    parent = cl_bench.run("method=ewc", *options, "dataset.tasks=2")
    with pytest.raises(UserError, match="has 20 classes, this stream has 30, and what the method"):
        cl_bench.run("method=ewc", *options, "dataset.tasks=3", continue_from=parent.folder)
    child = cl_bench.run("method=si", *options, "dataset.tasks=3", continue_from=parent.folder)
    assert child.accuracy.iloc[-1].notna().all()
    with pytest.raises(UserError, match="this stream has 3; it needs at least one more"):
        cl_bench.run("method=ewc", *options, "dataset.tasks=3", continue_from=child.folder)
    tangent = "model.linearize=true", "model.activation=leaky_relu", "model.head_mode=linearized"
    parent = cl_bench.run(*options, *tangent, "dataset.tasks=2")
    with pytest.raises(UserError, match="20 classes, and its head cannot be widened"):
        cl_bench.run(*options, *tangent, "dataset.tasks=3", continue_from=parent.folder)

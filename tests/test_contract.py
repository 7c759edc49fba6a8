"""What every method owes, whatever the scenario: conf/method/*.yaml times three."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DEVICES, SCENARIOS, blobs, composed, learner, machine, method_for, mlp, names
from test_flat import whole
from torch import Tensor

from cl_bench import checkpoint, config, experiment
from cl_bench.experiment import Evaluation, Progress, Schedule
from cl_bench.host import Host
from cl_bench.record import Folder
from cl_bench.runtime import Stop, StopRun
from cl_bench.tracking import Null
from cl_bench.types import Batch, Stream, Task

METHODS = names("method")
SCHEDULE = Schedule(epochs=2, batch_size=8)  # 30 samples a task: the last batch is short
EVALUATION = Evaluation(when="seen", split="test", holdout=0.1, batch_size=7)
STEPS = 24  # of three tasks


def serves(name: str, scenario: str) -> bool:
    node = composed(f"method={name}").method
    return scenario in config.get_object(node["_target_"]).scenarios


PAIRS = [(name, s) for name in METHODS for s in SCENARIOS if serves(name, s)]


@dataclass
class Run:
    """One run on blobs; `stop_at` steps after its start it is asked to stop."""

    name: str
    scenario: str
    device: str = "cpu"
    folder: Path | None = None
    stop_at: int | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self) -> Run:
        rt = machine(self.device)
        torch.manual_seed(5)
        made = learner(mlp(), rt, transform=None)
        self.method = method_for(self.name, made)
        stream = blobs(self.scenario, device=rt.device)
        self.stream = config.build(composed(f"method={self.name}").stream, stream=stream)
        self.progress = Progress.start(self.stream)
        global_state = torch.get_rng_state()
        stop = Stop()
        stop.before = dict.fromkeys(Stop.signals, 0)
        if self.folder is None:
            host: Any = Recorder(self, rt, stop)
        else:
            host = Host(Folder(self.folder), rt, self.method, self.progress, Null(), stop, 5)
            host.advance = lambda n: self._count(stop)
        self.left = self.stop_at
        parts = self.method, self.stream, rt.order, SCHEDULE, EVALUATION, self.progress, host
        with nullcontext() if self.folder is None else host.shown(STEPS, self.name):
            experiment.run(*parts)
        assert torch.get_rng_state().equal(global_state), "a draw from the global generator"
        return self

    def _count(self, stop: Stop) -> None:
        if self.left is not None:
            self.left -= 1
            if not self.left:
                stop.pending = Stop.signals[0]

    @property
    def theta(self) -> Tensor:
        return self.method.learner.flat.theta.detach()


class Recorder:
    """A host without a folder."""

    every = 5

    def __init__(self, run: Run, rt: Any, stop: Stop) -> None:
        self.run, self.seconds = run, rt.seconds

    def log(self, row: dict[str, Any]) -> None:
        self.run.rows.append(row)

    def advance(self, steps: int) -> None: ...
    def save(self) -> None: ...
    def stop(self) -> None: ...

    def stopping(self) -> bool:
        return False


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "scenario"), PAIRS)
def test_runs_and_repeats(name: str, scenario: str, device: str) -> None:
    one, two = Run(name, scenario, device)(), Run(name, scenario, device)()
    assert one.theta.equal(two.theta) and one.theta.isfinite().all()
    matrices = one.progress.matrix.values, two.progress.matrix.values
    torch.testing.assert_close(*matrices, rtol=0, atol=0, equal_nan=True)
    losses = [row["loss"] for row in one.rows if row["event"] == "step"]
    assert losses and all(loss == loss for loss in losses)
    assert one.rows == two.rows or any(row["event"] == "task" for row in one.rows)
    assert one.rows[-1]["metrics"]["LA"] > 0.3 or name == "joint", "blobs are easy to learn"


@pytest.mark.parametrize(("name", "scenario"), PAIRS)
def test_views_stay_whole_and_state_stays_on_the_device(name: str, scenario: str) -> None:
    run = Run(name, scenario)()
    made = run.method.learner
    assert whole(made.flat, made.net)
    state = checkpoint.state_of(run.method)["method"]
    assert all(t.device == made.flat.theta.device for t in checkpoint._tensors(state))
    assert checkpoint.nbytes(run.method) >= 0


@pytest.mark.parametrize(("name", "scenario"), PAIRS)
@pytest.mark.parametrize("stop_at", [3, 8, 23])
def test_stop_and_continue(name: str, scenario: str, stop_at: int, tmp_path: Path) -> None:
    """In the first task, at its last step, before the very end: nothing shows."""
    straight = Run(name, scenario, folder=tmp_path / "a")
    (tmp_path / "a").mkdir()
    straight()
    (tmp_path / "b").mkdir()
    with pytest.raises(StopRun):
        Run(name, scenario, folder=tmp_path / "b", stop_at=stop_at)()
    resumed = Run(name, scenario, folder=tmp_path / "b")()
    assert resumed.theta.equal(straight.theta)
    matrices = resumed.progress.matrix.values, straight.progress.matrix.values
    torch.testing.assert_close(*matrices, rtol=0, atol=0, equal_nan=True)
    lines = [(tmp_path / part / "metrics.jsonl").read_text() for part in "ab"]
    assert lines[0] == lines[1]
    states = [checkpoint.state_of(r.method)["method"] for r in (straight, resumed)]
    for one, two in zip(*(checkpoint._tensors(s) for s in states), strict=True):
        assert one.equal(two)


@pytest.mark.parametrize(("name", "scenario"), PAIRS)
def test_sees_no_test_data_and_no_other_task(name: str, scenario: str) -> None:
    """Test sets and finished tasks are poisoned: whoever kept a reference learns from noise."""
    clean = Run(name, scenario)()
    poisoned = Run(name, scenario)
    observe, end_task = experiment.learn, experiment.measure

    def learn(method: Any, stream: Stream, task: Task, *rest: Any) -> None:
        copies = [(t.x.clone(), t.y.clone()) for t in stream.tests]
        for test in stream.tests:
            test.x.fill_(255)
            test.y.zero_()
        observe(method, stream, task, *rest)
        task.x.fill_(255)
        task.y.zero_()
        for test, (x, y) in zip(stream.tests, copies, strict=True):
            test.x.copy_(x)
            test.y.copy_(y)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "learn", learn)
        poisoned()
    assert experiment.measure is end_task
    assert poisoned.theta.equal(clean.theta)


@pytest.mark.parametrize("name", METHODS)
def test_evaluation_leaves_no_trace(name: str) -> None:
    run = Run(name, "data")()
    before = run.theta.clone(), run.method.learner.rng.get_state()
    first = experiment.accuracies(run.method, run.stream.tests, 5)
    second = experiment.accuracies(run.method, run.stream.tests, 1000)
    assert first == second, "accuracy does not depend on the evaluation's batch size"
    assert run.theta.equal(before[0]) and run.method.learner.rng.get_state().equal(before[1])


def test_accuracy_counts_every_sample_once() -> None:
    run = Run("finetune", "class")()
    test = run.stream.tests[1]
    rows = Batch(test.x, test.y, test.t)
    run.method.learner.net.eval()
    with torch.no_grad():
        logits = run.method.predict(rows)
    hits = sum(int(logits[i].argmax() == rows.y[i]) for i in range(len(rows.y)))
    assert experiment.accuracies(run.method, [test], 7) == [hits / len(rows.y)]


def test_masks_decide_what_competes() -> None:
    """Class-IL can do no better than task-IL with the same parameters."""
    run = Run("finetune", "class")()
    wide = experiment.accuracies(run.method, run.stream.tests, 50)
    run.method.learner.reveal(SCENARIOS["task"](run.stream.classes, 2), 2)
    narrow = experiment.accuracies(run.method, run.stream.tests, 50)
    assert all(n >= w for n, w in zip(narrow, wide, strict=True)) and narrow != wide


def test_which_entries_are_measured() -> None:
    def shape(scenario: str, when: Any) -> list[str]:
        run = Run("finetune", scenario)
        with pytest.MonkeyPatch.context() as patch:
            chosen = Evaluation(when, "test", 0.1, 50)
            patch.setattr(__import__(__name__), "EVALUATION", chosen)
            run()
        rows = [run.progress.matrix.initial, *run.progress.matrix.values]
        return ["".join("." if v != v else "x" for v in row.tolist()) for row in rows]

    assert shape("data", "seen") == [".xx", "xx.", "xxx", "xxx"]
    assert shape("data", "all") == ["xxx", "xxx", "xxx", "xxx"]
    assert shape("data", "final") == ["...", "x..", ".x.", "xxx"]
    assert shape("task", "seen") == [".xx", "xx.", "xxx", "xxx"]
    assert shape("class", "seen") == ["...", "x..", "xx.", "xxx"]


def test_joint_learns_everything_at_once() -> None:
    run = Run("joint", "task")()
    assert len(run.stream.tasks) == 1 and run.progress.steps == 2 * -(-90 // 8)
    assert run.progress.matrix.values[:2].isnan().all() and run.progress.matrix.acc > 0.6


def test_first_task_is_the_same_for_all() -> None:
    """No past, nothing to protect: finetune, ER's first batches aside, EWC and A-GEM agree."""
    first = {
        name: Run(name, "task")().progress.matrix.values[0, 0].item()
        for name in ("finetune", "ewc", "agem")
    }
    assert len(set(first.values())) == 1

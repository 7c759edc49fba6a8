"""A run on the toy stream, by the code that makes real runs, which can be stopped at any step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from cl_bench.base.signals import StopSignals
from cl_bench.core import runtime
from cl_bench.core.learner import Learner
from cl_bench.core.types import Stream, Task
from cl_bench.data.augment import Transform
from cl_bench.data.stream import with_held_out
from cl_bench.engine import experiment
from cl_bench.engine.evaluation import Evaluation
from cl_bench.engine.host import RunHost
from cl_bench.engine.resume import Start, find_start
from cl_bench.engine.schedule import Schedule
from cl_bench.engine.session import Host, Progress, Session
from cl_bench.methods.base import Method
from cl_bench.models.linearized import Linearized
from cl_bench.results.folder import Folder
from cl_bench.results.source_code import Code
from cl_bench.results.tracking import Null
from cl_bench.testing.small import NormNet, blobs, identity, learner, machine, mlp, scheduled

STEPS = 24  # of three tasks with two epochs of 30 samples; the last batch of an epoch is short
EVALUATION = Evaluation("seen", "test", holdout=0.1, predictions=False, every=None, batch_size=7)
LearnerOn = Callable[[runtime.Runtime], Learner]


class Killed(Exception):
    """Raised in place of a kill without warning."""


def perceptron(rt: runtime.Runtime) -> Learner:
    """A perceptron, by plain SGD."""
    return learner(mlp(), rt)


def tangent(rt: runtime.Runtime) -> Learner:
    """A perceptron that is linearised at its first parameters, with weight decay, by Adam."""
    net = Linearized(mlp(activation="leaky_relu"), "bilinear")
    return learner(net, rt, lambda p: torch.optim.Adam(p, lr=0.01), 0.01, identity(rt.device))


def batch_norm(rt: runtime.Runtime) -> Learner:
    """Everything that has a state: batch norm, Adam's moments, draws of the augmentation."""
    transform = Transform([0.2], [0.5], 4, 1, True, None, 0.0, "anew", rt.device)
    return learner(NormNet(), rt, lambda p: torch.optim.Adam(p, lr=0.01), 0.01, transform)


@dataclass
class SmallRun:
    """A run of three tasks with 8 steps each; call it to make it.

    `method` makes the method on a learner. With a `folder`, rows and checkpoints are written there,
    and a run that was stopped in it is continued. `stop_at` steps after its start the run is asked
    to stop (StopRun), or with `killed` ended without warning (Killed).
    """

    method: Callable[[Learner], Method]
    scenario: str
    device: str = "cpu"
    folder: Path | None = None
    stop_at: int | None = None
    killed: bool = False
    save_every: float = 600.0  # seconds between two checkpoints within a task
    learner: LearnerOn = perceptron
    machine: dict[str, Any] = field(default_factory=lambda: {"channels_last": "auto"})
    compiler: Callable[..., Any] | None = None  # of gradients and inner loops
    probe: Any = None
    schedule: Schedule = field(default_factory=lambda: scheduled(epochs=2))
    evaluation: Evaluation = EVALUATION
    arranged: Callable[[Stream], Stream] = lambda stream: stream  # e.g. all tasks at once
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self) -> SmallRun:
        rt = machine(self.device, **self.machine)
        rt.compiler = self.compiler
        runtime.seed_global(5)  # of the network's first parameters
        made = self.learner(rt)
        del made.heads.live, made._decay_mask  # a run's own learner has none before it starts
        self.made = self.method(made)
        self.stream = self.arranged(blobs(self.scenario, device=rt.device))
        if self.made.uses_held_out:
            self.stream = with_held_out(self.stream, 0.1, 0)
        self.made.check_network(self.stream.tasks[0])
        self.progress = Progress.start(self.stream)
        global_state = torch.get_rng_state()
        host = self._host(rt)
        parts = self.schedule, self.evaluation, rt.order, self.progress, host, self.probe
        bar = host.progress_bar(STEPS, "") if isinstance(host, RunHost) else nullcontext()
        with bar:
            experiment.run(Session(self.made, self.stream, *parts))
        assert torch.get_rng_state().equal(global_state), (
            "the method draws from PyTorch's global generator; draw from learner.rng"
        )
        if self.folder is not None:
            lines = Folder(self.folder).metrics.read_text().splitlines()
            self.rows = [json.loads(line) for line in lines]
        return self

    def _host(self, rt: runtime.Runtime) -> Host:
        if self.folder is None:
            return _RowsInMemory(self.rows, rt)
        stop = StopSignals()
        stop.before = dict.fromkeys(StopSignals.signals, 0)
        start = begin(self.folder, rt, device=self.device, data="blobs")
        start.resume(self.made, self.progress, rt)
        parts = Folder(self.folder), rt, self.made, self.progress, Null(), stop
        host = RunHost(*parts, 5, self.save_every, start)
        host.advance = lambda steps: self.advanced(stop)
        self.left = self.stop_at
        return host

    def advanced(self, stop: StopSignals) -> None:
        """Called after each step: asks for the stop, or raises Killed, when its time has come."""
        if self.left is None:
            return
        self.left -= 1
        if not self.left and self.killed:
            raise Killed
        if not self.left:
            stop.pending = StopSignals.signals[0]

    @property
    def theta(self) -> Tensor:
        """All parameters that the method predicts with."""
        return torch.cat([network.theta for _, network in self.made.networks()])

    @property
    def summary(self) -> dict[str, float]:
        """ACC, LA and the other metrics at the end."""
        return self.progress.matrix.summary()


def begin(folder: Path, rt: runtime.Runtime, **identity: str) -> Start:
    """What a run in this folder starts from."""
    return find_start(Folder(folder), identity, Code("one", {}), rt.device, "cpu", "stop", False)


class _RowsInMemory(Host):
    """A host without a folder, which keeps the rows in a list."""

    def __init__(self, rows: list[dict[str, Any]], rt: runtime.Runtime) -> None:
        super().__init__(rt.seconds, log_every=5)
        self.rows = rows

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


@contextmanager
def foreign_data_as_noise() -> Iterator[None]:
    """While a run trains on a task, all test sets are noise, and so is the task afterwards."""
    learn = experiment.learn

    def learn_among_noise(session: Session, task: Task) -> None:
        tests = session.stream.tests
        copies = [(test.x.clone(), test.y.clone()) for test in tests]
        for test in tests:
            test.x.fill_(255)
            test.y.zero_()
        learn(session, task)
        task.x.fill_(255)
        task.y.zero_()
        for test, (x, y) in zip(tests, copies, strict=True):
            test.x.copy_(x)
            test.y.copy_(y)

    with patch.object(experiment, "learn", learn_among_noise):
        yield

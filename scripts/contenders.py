"""The contenders of the benchmarks, and the rounds in which they take turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from cl_bench.config.build import build, make_method, make_network, make_stream
from cl_bench.config.compose import composed
from cl_bench.core.types import Task
from cl_bench.engine import experiment
from cl_bench.engine.evaluation import accuracies
from cl_bench.engine.session import Host, Progress, Session


class Contender:
    """A method with its own network, trained by the loop of this package."""

    def __init__(self, *overrides: str) -> None:
        cfg = composed(*overrides)
        self.machine = build(cfg.runtime, seed=0)
        self.machine.close()  # so that the next contender gets the same GPU
        self.stream = make_stream(cfg, self.machine.device)
        self.method = make_method(cfg, self.machine, self.stream)
        self.schedule, self.evaluation = build(cfg.schedule), build(cfg.evaluation)
        self.host = Host(self.machine.seconds, log_every=10**9)
        self.planned = 0  # steps that were planned ahead (runtime.graphs)
        self.end_task, self.method.end_task = self.method.end_task, lambda task: None

    def train(self, task: Task) -> float:
        """Train on one task, without the method's `end_task`; returns the seconds."""
        progress, order = Progress.start(self.stream), self.machine.order
        rest = self.schedule, self.evaluation, order, progress, self.host
        experiment.learn(Session(self.method, self.stream, *rest), task)
        self.planned += progress.planned
        return progress.train_seconds[-1]

    def finish(self, task: Task) -> float:
        """Call the method's `end_task`, such as its curvature; returns the seconds."""
        started = self.machine.seconds()
        self.end_task(task)
        return self.machine.seconds() - started

    def evaluate(self, test: Task, size: int) -> float:
        """Test on one task; returns the seconds."""
        live = self.stream.live(test.id)
        self.method.learner.reveal(live, test.t.unique(), self.stream.live_at_end)
        started = self.machine.seconds()
        accuracies(self.method, [test], size)
        return self.machine.seconds() - started


class Bare:
    """A plain PyTorch loop with the data, network, loss, optimizer and precision of its `twin`."""

    def __init__(self, twin: Contender, cfg: DictConfig) -> None:
        self.machine, stream = twin.machine, twin.stream
        shape = tuple(stream.transform.view(stream.tasks[0].x[:1]).shape[1:])
        net = make_network(cfg.model, shape, stream.num_classes)
        self.net = self.machine.place(net)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=cfg.optimizer.lr)
        self.size, self.stream = cfg.schedule.batch_size, stream
        self.channels_last = self.machine.channels_last and stream.tasks[0].x.ndim == 4
        self.masked = not bool(stream.live(0).all())

    def train(self, task: Task) -> float:
        """Train on one task; returns the seconds."""
        started = self.machine.seconds()
        order = torch.randperm(len(task)).to(task.y.device)
        own = self.stream.live(task.id)[task.id].nonzero().flatten()
        first, last = int(own.min()), int(own.max()) + 1
        self.net.train()
        for index in order.split(self.size):
            x, y = self._images(task.x[index]), task.y[index]
            self.optimizer.zero_grad()
            with self.machine.autocast():
                logits = self.net(x).float()
            if self.masked:
                logits, y = logits[:, first:last], y - first
            F.cross_entropy(logits, y).backward()
            self.optimizer.step()
        return self.machine.seconds() - started

    @torch.inference_mode()
    def evaluate(self, test: Task, size: int) -> float:
        """Test on one task; returns the seconds."""
        started = self.machine.seconds()
        self.net.eval()
        hits = torch.zeros((), dtype=torch.long, device=test.y.device)
        for i in range(0, len(test), size):
            x, y = self._images(test.x[i : i + size]), test.y[i : i + size]
            with self.machine.autocast():
                hits += (self.net(x).argmax(1) == y).sum()
        hits.item()
        return self.machine.seconds() - started

    def _images(self, raw: Tensor) -> Tensor:
        """Pixels as floats from 0 to 1, in the layout of the run."""
        x = raw.float().div_(255)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


def rounds(tasks: list[Task], runners: dict[str, Callable[[Task], float]]) -> dict[str, float]:
    """The median seconds of each runner over the tasks; on each task all runners take turns."""
    for run in runners.values():  # warm up: allocator, kernels, compiled graphs
        run(tasks[0])
    taken: dict[str, list[float]] = {name: [] for name in runners}
    for task in tasks:
        for name, run in runners.items():
            taken[name].append(run(task))
    return {name: statistics.median(seconds) for name, seconds in taken.items()}

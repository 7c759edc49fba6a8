"""Measures the same training by this package, by a bare PyTorch loop and by Avalanche.

`pip install avalanche-lib` beside this package; without it the command says so in a line. All get
the same images, network, optimizer, batch size and order of tasks. Augmentation is off, and
Avalanche has its images as floats already. What a method does after a task counts too; nothing is
tested. Penalties have a strength of 1, which costs the same as any. The optimizer is plain SGD, and
each task has one epoch.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from contenders import Bare, Contender, composed
from ratios import Ratios
from torch import Tensor, nn
from torch.utils.data import Dataset

from cl_bench.base.exceptions import UserError
from cl_bench.config.build import make_network
from cl_bench.core.optim import PLAIN_SGD
from cl_bench.core.types import Task

MEMORY = ("buffer=reservoir", "buffer.capacity=200")
OURS: dict[str, tuple[str, ...]] = {
    "finetune": (),
    "er": MEMORY,
    "derpp": MEMORY,
    "derpp method.forward=together": MEMORY,  # one forward pass, as Avalanche has it
    "derpp method.forward=together method.draws=1": MEMORY,  # and its one draw for both terms
    "agem": ("buffer=ring", "buffer.per_task=100"),
    "ewc_online": ("method.strength=1",),
    "si": ("method.strength=1",),
    "lwf": (),
}


def theirs(size: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """The names of Avalanche's strategies and their options, for batches of `size`."""
    return {
        "finetune": ("Naive", {}),
        "er": ("Replay", {"mem_size": 200}),
        "derpp": ("DER", {"mem_size": 200, "batch_size_mem": size, "alpha": 0.1, "beta": 0.5}),
        "agem": ("AGEM", {"patterns_per_exp": 100, "sample_size": size}),
        "ewc_online": ("EWC", {"ewc_lambda": 1.0, "mode": "online", "decay_factor": 1.0}),
        "si": ("SynapticIntelligence", {"si_lambda": 1.0}),
        "lwf": ("LwF", {"alpha": 1.0, "temperature": 2.0}),
    }


class Images(Dataset):
    """A task's images as floats, with their labels."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.targets = x, y.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i], self.targets[i]


class Avalanche:
    """One of Avalanche's strategies on the tasks of a contender of this package."""

    def __init__(self, twin: Contender, cfg: Any, strategy: str, options: dict[str, Any]) -> None:
        names = "training", "training.plugins", "benchmarks", "benchmarks.utils"
        loaded = (importlib.import_module(f"avalanche.{name}") for name in names)
        training, plugins, benchmarks, utils = loaded
        self.machine, stream = twin.machine, twin.stream
        shape = tuple(stream.transform.view(stream.tasks[0].x[:1]).shape[1:])
        net = self.machine.place(make_network(cfg.model, shape, stream.num_classes))
        sgd = torch.optim.SGD(net.parameters(), lr=cfg.optimizer.lr)
        size = cfg.schedule.batch_size
        self.strategy = getattr(training, strategy)(
            model=net,
            optimizer=sgd,
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=size,
            train_epochs=1,
            evaluator=plugins.EvaluationPlugin(loggers=[]),
            **options,
        )
        make = utils.classification_dataset._make_taskaware_classification_dataset
        images = [Images(stream.transform.view(task.x), task.y) for task in stream.tasks]
        data = [make(each, task_labels=0) for each in images]
        made = benchmarks.benchmark_from_datasets(train=data)  # as its own benchmarks are made
        self.experiences = list(benchmarks.with_task_labels(made).train_stream)

    def train(self, task: Task) -> float:
        """Train on one task, with what follows it; returns the seconds."""
        started = self.machine.seconds()
        self.strategy.train(self.experiences[task.id], num_workers=0)
        return self.machine.seconds() - started


def peers(overrides: list[str], tasks: int, found: Ratios) -> None:
    """Print and keep how many times as long each takes as the bare loop; whole tasks."""
    base = _comparable(["runtime.threads=1", "runtime.channels_last=false", *overrides])
    cfg = composed(*base)
    logging.disable()
    ours = {n: Contender(*f"method={n}".split(), *given, *base) for n, given in OURS.items()}
    plain = ours["finetune"]
    runners: dict[str, Callable[[Task], float]] = {"bare": Bare(plain, cfg).train}
    runners |= {name: partial(whole, each) for name, each in ours.items()}
    for name, (strategy, options) in theirs(cfg.schedule.batch_size).items():
        runners[f"{name}, Avalanche"] = Avalanche(plain, cfg, strategy, options).train
    warnings.simplefilter("ignore")  # after Avalanche, which sets it otherwise
    first, *chosen = plain.stream.tasks[: tasks + 1]
    for run in runners.values():  # so that there is a past task
        run(first)
    taken: dict[str, list[float]] = {name: [] for name in runners}
    for task in chosen:
        for name, run in runners.items():
            taken[name].append(run(task))
    seconds = {name: statistics.median(each) for name, each in taken.items()}
    print(f"\n{len(first)} images a task, median of {len(chosen)} tasks after the first")
    print(f"{'':46}{'cl_bench':>10}{'Avalanche':>12}   of the bare loop")
    for name in ours:
        peer = f"{name.split()[0]}, Avalanche"
        own, other = (seconds[n] / seconds["bare"] for n in (name, peer))
        print(f"{name:46}{own:10.2f}{other:12.2f}")
        found.add(f"method={name}", "cost of a task over the bare loop's", own)
        found.add(f"method={name}", "cost of a task over the bare loop's, Avalanche", other)


def _comparable(base: list[str]) -> list[str]:
    """The overrides without augmentation; UserError for what the peers would do otherwise."""
    if importlib.util.find_spec("avalanche") is None:
        raise UserError("--peers: Avalanche is not installed; pip install avalanche-lib")
    cfg = composed(*base)
    plain_sgd = cfg.optimizer._target_ in PLAIN_SGD and not cfg.optimizer.get("momentum")
    if not plain_sgd or cfg.optimizer.weight_decay or cfg.schedule.epochs != 1:
        raise UserError("--peers: compares plain SGD without weight decay, one epoch a task")
    off = {"crop": "null", "flip": "false", "padding": "0", "brightness": "0"}
    chosen = cfg.dataset.transform
    return [*base, *(f"dataset.transform.{k}={v}" for k, v in off.items() if chosen.get(k))]


def whole(made: Contender, task: Task) -> float:
    """The seconds of a task and of what follows it."""
    return made.train(task) + made.finish(task)

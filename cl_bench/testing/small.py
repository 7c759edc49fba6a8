"""Small parts of a run: a stream of noisy images, networks, and a learner on them.

An image has 1 x 4 x 4 pixels, there are 6 classes, and 3 tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import patch

import torch
from torch import Generator, Tensor, nn

from cl_bench.config.build import build
from cl_bench.config.compose import composed
from cl_bench.core import runtime
from cl_bench.core.criteria import CrossEntropy
from cl_bench.core.learner import Learner
from cl_bench.core.optim import SGD
from cl_bench.core.types import Batch, Stream, Task
from cl_bench.data import scenario
from cl_bench.data.augment import Transform
from cl_bench.engine.schedule import Schedule
from cl_bench.models.head import head_of
from cl_bench.models.mlp import MLP

CPU = torch.device("cpu")
SHAPE = (1, 4, 4)
SCENARIOS = {"data": scenario.data_il, "task": scenario.task_il, "class": scenario.class_il}


def identity(device: torch.device = CPU, channels: int = 1) -> Transform:
    """The transform x / 255."""
    return Transform([0.0] * channels, [1.0] * channels, None, 0, False, None, 0.0, "anew", device)


def machine(device: str = "cpu", **changes: Any) -> runtime.Runtime:
    """A runtime with seed 0, in single precision, without compilation."""
    options: dict[str, Any] = {
        "seed": 0,
        "device": device,
        "precision": "fp32",
        "channels_last": False,
        "compile": False,
        "graphs": False,
        "deterministic": False,
        "tf32": False,
        "benchmark": False,
        "threads": 1,
        "per_gpu": None,
    }
    with patch.object(runtime, "_free_memory"), patch.object(runtime, "_reset_memory_counters"):
        return runtime.start(**{**options, **changes})


def mlp(classes: int = 6, shape: tuple[int, ...] = SHAPE, **changes: Any) -> MLP:
    """A perceptron with 16 hidden units."""
    options: dict[str, Any] = {"activation": "relu", "init": "xavier", "head_init": "same"}
    return MLP(shape, classes, **{"hidden": [16], **options, **changes})


class NormNet(nn.Module):
    """Two convolutions with batch norm: (B, 1, 4, 4) -> (B, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv_norm_relu(1, 4), *_conv_norm_relu(4, 6), nn.Flatten())
        self.head = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def _conv_norm_relu(channels: int, out: int) -> list[nn.Module]:
    norm = nn.BatchNorm2d(out)
    norm._buffers["num_batches_tracked"] = None  # as in this package's own networks
    stride = 1 if channels == 1 else 2
    return [nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False), norm, nn.ReLU()]


def learner(
    net: Any,
    rt: runtime.Runtime | None = None,
    optimizer: Callable[[Iterable[nn.Parameter]], Any] | None = None,
    weight_decay: float = 0.0,
    transform: Any = None,
) -> Learner:
    """A learner on `net` with plain SGD of rate 0.1, in a first task in which all classes compete.

    `net` has a linear layer `head`.
    """
    rt = rt or machine()
    optimizer = optimizer or (lambda params: SGD(params, lr=0.1, momentum=0.0))
    spatial = any(isinstance(module, nn.Conv2d) for module in net.modules())
    transform = transform or identity(rt.device, channels=3 if spatial else 1)
    made = Learner(rt.place(net), CrossEntropy(), optimizer, weight_decay, transform, rt)
    live = torch.ones(3, head_of(net).out_features, dtype=torch.bool, device=rt.device)
    made.begin_task(live, torch.tensor([0]), None)
    return made


def method_for(name: str, made: Learner, *overrides: str) -> Any:
    """The method `method=<name>` with these overrides, on a learner."""
    return build(composed(f"method={name}", *overrides).method, learner=made)


def scheduled(**changes: Any) -> Schedule:
    """A schedule of one epoch in batches of 8, with a constant rate."""
    options = {"epochs": 1, "batch_size": 8, "batch_norm": "train", "annealing": "none"}
    more = {"milestones": [], "warm_up": "none", "decay": 0.5, "ramp": 0.0, "clip": None}
    more |= {"patience": None, "holdout": 0.1}
    return Schedule(**(options | more | changes))  # type: ignore[arg-type]


def batch(count: int = 12, classes: int = 6, shape: tuple[int, ...] = SHAPE) -> Batch:
    """Random pixels, labels and tasks, the same at every call."""
    g = Generator().manual_seed(7)
    x = torch.randint(0, 256, (count, *shape), generator=g, dtype=torch.uint8)
    y = torch.randint(0, classes, (count,), generator=g)
    return Batch(x, y, torch.randint(0, 3, (count,), generator=g))


def blobs(
    name: str, tasks: int = 3, each: int = 30, device: torch.device = CPU, seed: int = 0
) -> Stream:
    """A stream in the scenario `name`, of two classes a task (data-IL: of all), easy to tell apart.

    Each class is noise about an image of its own. A task has 30 images for training, 20 for tests.
    """
    g = Generator().manual_seed(seed)
    classes = torch.zeros(tasks, 2 * tasks, dtype=torch.bool)
    for t in range(tasks):
        classes[t, 2 * t : 2 * t + 2] = True
    if name == "data":
        classes[:] = True
    centres = torch.randint(0, 200, (2 * tasks, *SHAPE), generator=g)

    def draw(t: int, count: int) -> Task:
        own = classes[t].nonzero().squeeze(1)
        y = own[torch.randint(len(own), (count,), generator=g)]
        noise = torch.randint(0, 56, (count, *SHAPE), generator=g)
        x = (centres[y] + noise).to(torch.uint8)
        return Task(t, x.to(device), y.to(device), torch.full((count,), t).to(device))

    trains = [draw(t, each) for t in range(tasks)]
    tests = [draw(t, 20) for t in range(tasks)]
    description: dict[str, object] = {"dataset": "blobs"}
    return Stream(trains, tests, classes.to(device), SCENARIOS[name], identity(device), description)

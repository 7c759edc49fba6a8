"""A toy stream of coloured blobs, and what it takes to run methods on it without a download."""

from __future__ import annotations

import copy
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from forks import Command
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from torch import Generator, nn

from cl_bench.config import backbone, compose
from cl_bench.config.build import build
from cl_bench.config.nodes import CONF
from cl_bench.core import runtime
from cl_bench.core.criteria import CrossEntropy
from cl_bench.core.learner import Learner
from cl_bench.core.optim import SGD
from cl_bench.core.types import Batch, Stream, Task
from cl_bench.data import scenario
from cl_bench.data.augment import Transform
from cl_bench.engine.schedule import Schedule
from cl_bench.models.fold import fold
from cl_bench.models.mlp import MLP
from cl_bench.models.resnet import ResNet18

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    ),
]
SCENARIOS = {
    "data": scenario.data_il,
    "task": scenario.task_il,
    "class": scenario.class_il,
}


def pytest_collection_finish() -> None:
    """What all tests share is not gone through again by each collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def no_power_loss() -> None:
    """A killed process loses nothing that it has written: no test waits for the disk."""
    os.fsync = lambda _: None


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors: a second thread only costs, and bits depend on the number of threads."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test writes to the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with MNIST/ and cifar100/, to be read only."""
    given, unpack = os.environ.get("CL_BENCH_TEST_DATA"), ROOT.parent / "shared/data/unpack.py"
    if given:
        yield Path(given).absolute()
    elif not unpack.is_file():
        pytest.skip(f"no real data: neither CL_BENCH_TEST_DATA nor {unpack}")
    else:
        dest = tmp_path_factory.mktemp("real")
        command = [sys.executable, str(unpack), str(dest), "mnist", "cifar100"]
        subprocess.run(command, check=True, capture_output=True)
        yield dest
        shutil.rmtree(dest)


def linked(home: Path, real: Path, name: str) -> str:
    """`home` as a data_dir in which only `name` is real."""
    if not (real / name).is_dir():
        pytest.skip(f"no {name} in {real}")
    (home / name).parent.mkdir(exist_ok=True)
    (home / name).symlink_to(real / name)
    return str(home)


@pytest.fixture
def rng() -> Generator:
    return Generator().manual_seed(0)


def identity(device: torch.device = CPU, channels: int = 1) -> Transform:
    """x / 255 and nothing else."""
    return Transform([0.0] * channels, [1.0] * channels, None, 0, False, None, 0.0, "anew", device)


def machine(device: str = "cpu", **changes: Any) -> runtime.Runtime:
    """A runtime in its plainest form, seed 0."""
    options: dict[str, Any] = {
        "device": device,
        "precision": "fp32",
        "channels_last": False,
        "compile": False,
        "deterministic": False,
        "threads": 1,
    }
    with patch.object(
        runtime, "_reset_memory_counters"
    ):  # which collects garbage, for the peak of memory
        return runtime.start(seed=0, **{**options, **changes})


def mlp(classes: int = 6, shape: tuple[int, ...] = (1, 4, 4), **changes: Any) -> MLP:
    options: dict[str, Any] = {
        "hidden": [16],
        "activation": "relu",
        "init": "xavier",
        "head_init": "same",
    }
    return MLP(shape, classes, **{**options, **changes})


def resnet(
    classes: int = 6,
    shape: tuple[int, ...] = (3, 8, 8),
    width: int = 4,
    norm: Any = "batch",
    activation: Any = "relu",
) -> nn.Module:
    net = ResNet18(shape, classes, width, activation, "torch", "same")
    return fold(net, torch.zeros(1, *shape)) if norm == "folded" else net


def learner(
    net: Any,
    rt: runtime.Runtime | None = None,
    optimizer: Callable[[Iterable[nn.Parameter]], Any] | None = None,
    weight_decay: float = 0.0,
    transform: Any = None,
) -> Learner:
    """A learner on `net` by plain SGD, all classes live."""
    rt = rt or machine()
    optimizer = optimizer or (lambda params: SGD(params, lr=0.1, momentum=0.0))
    spatial = any(isinstance(module, nn.Conv2d) for module in net.modules())
    transform = transform or identity(rt.device, channels=3 if spatial else 1)
    made = Learner(rt.place(net), CrossEntropy(), optimizer, weight_decay, transform, rt)
    classes = net.head.out_features
    made.begin_task(
        torch.ones(3, classes, dtype=torch.bool, device=rt.device), torch.tensor([0]), None
    )
    return made


def scheduled(**changes: Any) -> Schedule:
    """A schedule of one epoch in batches of 8, and nothing else."""
    options = {"epochs": 1, "batch_size": 8, "batch_norm": "train", "annealing": "none"}
    more = {"milestones": [], "warm_up": "none", "decay": 0.5, "ramp": 0.0, "clip": None}
    return Schedule(**(options | more | changes))  # type: ignore[arg-type]


def batch(count: int = 12, classes: int = 6, shape: tuple[int, ...] = (1, 4, 4)) -> Batch:
    """Random pixels and labels, the same at every call."""
    g = Generator().manual_seed(7)
    x = torch.randint(0, 256, (count, *shape), generator=g, dtype=torch.uint8)
    y = torch.randint(0, classes, (count,), generator=g)
    return Batch(x, y, torch.randint(0, 3, (count,), generator=g))


def blobs(
    name: str, tasks: int = 3, each: int = 30, device: torch.device = CPU, seed: int = 0
) -> Stream:
    """Three tasks of two classes (in data-IL: of six), each class noise about its own image."""
    g = Generator().manual_seed(seed)
    classes = torch.zeros(tasks, 2 * tasks, dtype=torch.bool)
    for t in range(tasks):
        classes[t, 2 * t : 2 * t + 2] = True
    if name == "data":
        classes[:] = True
    centres = torch.randint(0, 200, (2 * tasks, 1, 4, 4), generator=g)

    def draw(t: int, count: int) -> Task:
        own = classes[t].nonzero().squeeze(1)
        y = own[torch.randint(len(own), (count,), generator=g)]
        noise = torch.randint(0, 56, (count, 1, 4, 4), generator=g)
        x = (centres[y] + noise).to(torch.uint8)
        where = torch.full((count,), t)
        return Task(t, x.to(device), y.to(device), where.to(device))

    trains = [draw(t, each) for t in range(tasks)]
    tests = [draw(t, 20) for t in range(tasks)]
    description: dict[str, object] = {"dataset": "blobs"}
    return Stream(trains, tests, classes.to(device), SCENARIOS[name], identity(device), description)


@cache
def _of_groups(words: tuple[str, ...]) -> DictConfig:
    return compose.composed_by_hydra(*words)


def composed(*overrides: str) -> DictConfig:
    """The config of a command line. The same choice of groups is composed once a process.

    Values are then set in a copy, by the function that Hydra sets them by.
    """
    groups = tuple(word for word in overrides if _chooses(word))
    values = [word for word in overrides if word not in groups]
    parsed = OverridesParser.create().parse_overrides(values)
    if any(one.is_sweep_override() or one.is_hydra_override() for one in parsed):
        return compose.composed(*overrides)
    cfg = copy.deepcopy(_of_groups(groups))
    ConfigLoaderImpl._apply_overrides_to_config(parsed, cfg)
    backbone.apply(cfg, overrides)
    return cfg


def _chooses(word: str) -> bool:
    """Whether an override chooses an option of a group."""
    key = word.lstrip("+~").partition("=")[0]
    return "@" in key or (bool(key) and (CONF / key).is_dir())


def names(group: str) -> list[str]:
    """The options of a config group, those in its folders too."""
    root = CONF / group
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml"))


def method_for(name: str, made: Learner, *overrides: str) -> Any:
    """conf/method/<name>.yaml on a learner of the test's own."""
    return build(composed(f"method={name}", *overrides).method, learner=made)


def compiles(rt: runtime.Runtime) -> None:
    """By the graph that inductor would get, without the wait for it; as if none came before."""
    torch.compiler.reset()
    rt.compiler = lambda f: torch.compile(f, backend="aot_eager", fullgraph=True)


def command(*overrides: str, where: Path, **environment: str) -> Command:
    """`python -m cl_bench.run ...` in its own process, offline, its outputs under `where`."""
    offline = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    cache = str(where.parent / "cache")
    here = {"NETRC": os.devnull, "OMP_NUM_THREADS": "1", "CL_BENCH_DATA": cache}
    words = ["cl_bench.run", *overrides, f"output_dir={where}"]
    return Command(words, ROOT, {**offline, **here, **environment})


def finished(process: Command) -> tuple[int, str, str]:
    """Exit code, standard output, standard error; it is killed after five minutes."""
    timer = threading.Timer(300, process.send_signal, (signal.SIGKILL,))
    timer.start()
    out, err = process.communicate()
    timer.cancel()
    return process.wait(), out, err

"""What the tests share: the parts of `cl_bench.testing`, configs, commands, and real data."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Command
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from torch import Generator, nn

from cl_bench.config import backbone, compose
from cl_bench.config.boundaries import method_class
from cl_bench.config.build import build
from cl_bench.config.nodes import CONF, resolved
from cl_bench.core import runtime
from cl_bench.core.learner import Learner
from cl_bench.models.fold import fold
from cl_bench.models.resnet import ResNet18
from cl_bench.results import figures, source_code
from cl_bench.testing.small import (
    CPU as CPU,
)
from cl_bench.testing.small import (
    SCENARIOS as SCENARIOS,
)
from cl_bench.testing.small import (
    batch as batch,
)
from cl_bench.testing.small import (
    blobs as blobs,
)
from cl_bench.testing.small import (
    identity as identity,
)
from cl_bench.testing.small import (
    learner as learner,
)
from cl_bench.testing.small import (
    machine as machine,
)
from cl_bench.testing.small import (
    mlp as mlp,
)
from cl_bench.testing.small import (
    scheduled as scheduled,
)

ROOT = Path(__file__).parents[1]
FEWER_STEPS = ("method.batches=2", "method.replay=3")  # of MER, for each sample
SLOW = (f"--config-dir={ROOT / 'tests/conf'}", "method=slow_er")  # for runs to interrupt
DRAWN = {"draw_run": figures.draw_run, "draw_confusions": figures.draw_confusions}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    ),
]


def pytest_collection_finish() -> None:
    """What all tests share is not gone through again by each collection of garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # configs are many small objects, few of them in cycles


@pytest.fixture(autouse=True, scope="session")
def no_power_loss() -> None:
    """A killed process loses nothing that it has written: no test waits for the disk."""
    os.fsync = lambda _: None


@pytest.fixture(autouse=True, scope="session")
def quick_runs() -> None:
    """Runs in this process draw no pictures, and leave the memory of the one before it: half a run.

    `pictures` draws them; commands, which are other processes, do both.
    """
    figures.draw_run = lambda *_: {}
    figures.draw_confusions = lambda *_: {}
    runtime._free_memory = lambda: None
    runtime._reset_memory_counters = lambda _: None


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, drawn in DRAWN.items():
        monkeypatch.setattr(figures, name, drawn)


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


def resnet(
    classes: int = 6,
    shape: tuple[int, ...] = (3, 8, 8),
    width: int = 4,
    norm: Any = "batch",
    activation: Any = "relu",
) -> nn.Module:
    net = ResNet18(shape, classes, width, activation, "torch", "same")
    return fold(net, torch.zeros(1, *shape)) if norm == "folded" else net


def two_blocks(activation: Any = "relu") -> ResNet18:
    """Two of ResNet-18's eight blocks, of which one has a shortcut: quicker to compile."""
    net = ResNet18((3, 8, 8), 6, 4, activation, "torch", "same")
    net.blocks, net.head = nn.Sequential(net.blocks[0], net.blocks[2]), nn.Linear(8, 6)
    return net


@cache
def _of_groups(words: tuple[str, ...]) -> bytes:
    """A pickle, which is read several times as fast as a config is copied."""
    return pickle.dumps(compose.composed_by_hydra(*words))


def composed(*overrides: str) -> DictConfig:
    """The config of a command line. The same choice of groups is composed once a process.

    Values are then set in a copy, by the function that Hydra sets them by.
    """
    groups = tuple(word for word in overrides if _chooses(word))
    values = [word for word in overrides if word not in groups]
    parsed = OverridesParser.create().parse_overrides(values)
    if any(one.is_sweep_override() or one.is_hydra_override() for one in parsed):
        return compose.composed(*overrides)
    cfg: DictConfig = pickle.loads(_of_groups(groups))
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


class_of = cache(method_class)  # of an option of the group `method`


def one_of_each_class(*others: str) -> list[str]:
    """The first option of each class of methods, and `others`, sorted."""
    classes = {class_of(name): name for name in reversed(names("method"))}
    return sorted({*classes.values(), *others})


def method_for(name: str, made: Learner, *overrides: str) -> Any:
    """conf/method/<name>.yaml on a learner of the test's own; MER takes fewer steps a sample."""
    fewer = FEWER_STEPS if name == "mer" else ()
    return build(group_of("method", f"method={name}", *fewer, *overrides), learner=made)


def group_of(group: str, *overrides: str) -> DictConfig:
    """A resolved group of a config by itself; it is composed once a process."""
    return OmegaConf.create(_plain_group(group, overrides))


@cache
def _plain_group(group: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    return resolved(composed(*overrides)[group])


def compiler() -> Callable[[Callable[..., Any]], Any]:
    """By the graph that inductor would get, without the wait for it; as if none came before."""
    torch.compiler.reset()
    return lambda f: torch.compile(f, backend="aot_eager", fullgraph=True)


def forget_sources() -> None:
    """What this process knows of source files, as a new one knows nothing."""
    source_code._source_file.cache_clear()
    source_code.read_source.cache_clear()
    source_code._contents.clear()


def compiles(rt: Any) -> None:
    rt.compiler = compiler()


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

"""Several processes that train together, by gloo on the CPU: the results of one process."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, SLOW, finished, identity, learner, machine, mlp, names, resnet, scheduled
from forks import Command
from hydra.types import RunMode
from pretended_cuda import PretendedCuda
from test_l2p import prompted
from test_pretended_cuda import FEWER, KINDS, short_run
from torch import nn

import cl_bench
from cl_bench.base.exceptions import UserError
from cl_bench.config.compose import composed_by_hydra, take_hydra
from cl_bench.core import devices
from cl_bench.core.learner import Learner
from cl_bench.engine import job
from cl_bench.models.layers import Dropout
from cl_bench.models.linearized import Linearized
from cl_bench.testing.small import NormNet

Found = dict[str, Any]
LOCAL = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}  # whatever this host's name


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def in_processes(
    number: int, folder: Path, work: Mapping[str, Callable[[], Any]]
) -> list[dict[str, Any]]:
    """What each of `work` returns in each of several forks, which torchrun seems to have started.

    A fork that fails ends with its traceback, and so does this process. For each work the forks
    meet at another port, since one that is not quite free yet may still answer.
    """
    ports, pids = {name: free_port() for name in work}, []
    for rank in range(number):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which do nothing here
            pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        status = 1
        try:
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number}
            os.environ |= {name: str(value) for name, value in own.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test", **LOCAL}
            found = {}
            for name, make in work.items():
                os.environ["MASTER_PORT"] = ports[name]
                found[name] = make()
            torch.save(found, folder / f"rank{rank}.pt")
            status = 0
        except BaseException:
            (folder / f"rank{rank}.txt").write_text(traceback.format_exc())
        finally:
            os._exit(status)
    ended, left = [], {*pids}
    while left:
        pid, status = os.wait()
        ended.append(status)
        left.discard(pid)
        for other in left if status else ():  # they would wait for the failed one
            os.kill(other, signal.SIGKILL)
    told = [file.read_text() for file in sorted(folder.glob("rank*.txt"))]
    assert not any(ended), "\n".join(told)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(number)]


def outcome(name: str, *overrides: str, **options: Any) -> Found:
    """The end of a small run."""
    run = short_run(name, *overrides, device="cpu", **options)()
    learner = run.made.learner
    found = {
        "theta": run.theta.double(),
        "statistics": [b.double() for b in learner.net.buffers()],
        "accuracies": run.progress.matrix.values,
        "gradients": learner.sample_gradients,
    }
    learner.machine.close()
    return found


def assert_same(cases: dict[str, Callable[[], Found]], folder: Path, number: int = 2) -> None:
    """Each case in several processes, and in one."""

    wrong, alones = [], {case: make() for case, make in cases.items()}
    for found in in_processes(number, folder, cases):
        for case, alone in alones.items():
            try:
                torch.testing.assert_close(found[case]["theta"], alone["theta"], **CLOSE)
                for one, two in zip(found[case]["statistics"], alone["statistics"], strict=True):
                    torch.testing.assert_close(one, two, **CLOSE)
                # a test image at the boundary may go either way
                gap = (found[case]["accuracies"] - alone["accuracies"]).nan_to_num().abs().max()
                assert gap <= 0.05, gap
                assert found[case]["gradients"] == alone["gradients"]
            except AssertionError as error:
                wrong.append(f"{case}: {error}")
    assert not wrong, "\n".join(wrong)


CLOSE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-8}


def perceptron(rt: Any) -> Learner:
    return learner(mlp().double(), rt)


def residual(rt: Any) -> Learner:
    """Two of a ResNet's blocks, with batch norm; Adam would follow the sign of rounding errors."""
    net: Any = resnet(shape=(1, 4, 4)).double()
    net.blocks, net.head = nn.Sequential(net.blocks[0], net.blocks[2]), nn.Linear(8, 6).double()
    return learner(net, rt, transform=identity(rt.device))


def tangent(rt: Any) -> Learner:
    return learner(Linearized(mlp().double(), "bilinear"), rt)


def convolutions(rt: Any) -> Learner:
    return learner(NormNet().double(), rt, transform=identity(rt.device))


def prompts(rt: Any) -> Learner:
    return learner(prompted(4, 2, 2).double(), rt, transform=identity(rt.device))


NETWORKS = {"mlp": perceptron, "resnet": residual, "tangent": tangent}


def test_every_method(tmp_path: Path) -> None:
    pairs = {name: (name, perceptron) for name in KINDS} | {"prompts": ("l2p", prompts)}
    cases = {
        key: lambda pair=pair: outcome(pair[0], learner=pair[1]) for key, pair in pairs.items()
    }
    assert_same(cases, tmp_path)


def test_batch_norm_sees_the_whole_batch(tmp_path: Path) -> None:
    """In one forward pass, in three, with a teacher, frozen, and with a second network."""
    cases = {
        name: lambda name=name: outcome(name, learner=residual)
        for name in ("finetune", "er", "der", "lwf", "ewc", "halrp", "agem")
    }
    assert_same(cases, tmp_path)


def test_every_curvature(tmp_path: Path) -> None:
    """Each process sums over its own part of the task, with the labels that one would draw."""
    cases: dict[str, Callable[[], Found]] = {}
    for name in names("curvature"):
        if name == "layer_hessian":
            words = ("halrp", f"curvature={name}", "method.importance=norm")
            cases[name] = lambda words=words: outcome(*words, learner=perceptron)
        else:
            cases[name] = lambda name=name: outcome(
                "ewc", f"curvature={name}", "method.strength=3", learner=convolutions
            )
    cases["tangent"] = lambda: outcome("dlcft", learner=tangent)
    assert_same(cases, tmp_path)


def test_shares_of_no_sample(tmp_path: Path) -> None:
    """Three processes, batches of two images and of one: some have no share."""
    options = {"schedule": scheduled(epochs=1, batch_size=2)}
    cases = {
        "two": lambda: outcome("finetune", learner=residual, **options),
        "one": lambda: outcome("finetune", learner=convolutions, schedule=scheduled(batch_size=1)),
        "steps on one image": lambda: outcome("mer", *FEWER["mer"], learner=perceptron, **options),
    }
    assert_same(cases, tmp_path, number=3)


def test_what_several_processes_refuse(tmp_path: Path) -> None:
    def refused(make: Callable[[], object]) -> str | None:
        try:
            make()
        except UserError as error:
            return str(error)
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        return None

    tried: dict[str, Callable[[], object]] = {
        "dropout": lambda: learner(with_one_more(Dropout(0.5)), machine()),
        "own norm": lambda: learner(with_one_more(OwnNorm(3)), machine()),
        "no statistics": lambda: learner(
            with_one_more(nn.BatchNorm1d(3, track_running_stats=False)), machine()
        ),
        "compile": lambda: machine(compile=True),
        "sweep": lambda: job.make_plan(*configured()),
        "study": lambda: job.run_study(None),  # type: ignore[arg-type]
        "python": lambda: cl_bench.run(f"output_dir={tmp_path}"),
    }
    work = {name: lambda make=make: refused(make) for name, make in tried.items()}
    for found in in_processes(2, tmp_path, work):
        starts = ("torchrun: ", "runtime.compile=true: ")
        assert all(str(line).startswith(starts) for line in found.values()), found


class OwnNorm(nn.BatchNorm1d):
    """Like timm's batch norm with an activation in it."""


def with_one_more(module: nn.Module) -> Any:
    net = mlp()
    net.add_module("more", module)
    return net


def configured() -> tuple[Any, Any]:
    """A config and Hydra's settings, as in a job of a sweep."""
    cfg = composed_by_hydra("tracking=none", with_hydra=True)
    hydra = take_hydra(cfg)
    hydra.mode = RunMode.MULTIRUN
    return cfg, hydra


def test_each_process_has_a_gpu() -> None:
    with PretendedCuda(devices=2):
        assert [devices.of_rank("auto", rank).index for rank in range(2)] == [0, 1]
        with pytest.raises(UserError, match="process 2 of this machine has no GPU of its own"):
            devices.of_rank("cuda", 2)
    assert devices.of_rank("cpu", 3) == torch.device("cpu")


RUN = ("dataset.tasks=2", "dataset.train_per_task=200", "tracking=none", "runtime.threads=1")
RUN += ("runtime.device=cpu", "schedule.batch_size=11")  # whose shares differ


def started(where: Path, *overrides: str) -> Command:
    """`torchrun --nproc_per_node=2 -m cl_bench.run ...`"""
    options = ["--nproc_per_node=2", f"--master_port={free_port()}", "--monitor_interval=0.1"]
    words = ["torch.distributed.run", *options, "-m", "cl_bench.run", *RUN, *overrides]
    return Command([*words, f"output_dir={where}"], ROOT, {**os.environ, **LOCAL})


def record(where: Path) -> dict[str, Any]:
    (file,) = where.rglob("record.json")
    return json.loads(file.read_text())


def test_torchrun_makes_the_run_of_one_process(tmp_path: Path) -> None:
    """Once; the same command again shows it."""
    word = "method=ewc"
    code, out, err = finished(started(tmp_path / "two", word))
    assert code == 0, err
    assert out.count("files: ") == 1, "one of them prints"
    run = cl_bench.run(*RUN, word, output_dir=str(tmp_path / "one"), figures=False)
    found, alone = record(tmp_path / "two"), record(tmp_path / "one")
    assert found["hash"] == alone["hash"]
    for key in ("gradients_per_sample", "state_bytes", "parameters"):
        assert found[key] == alone[key], key
    gap = torch.tensor(found["accuracy"][1]) - torch.tensor(alone["accuracy"][1])
    assert gap.abs().max() <= 0.005, "a few images at most"
    theirs = cl_bench.load(run.folder.parents[5] / "two" / run.folder.relative_to(tmp_path / "one"))
    for one, two in zip(run.network().parameters(), theirs.network().parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    code, out, err = finished(started(tmp_path / "two", word))
    assert code == 0 and out.count("not repeated") == 1, err


TO_STOP = (*SLOW, "schedule.epochs=4", "log_every=2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The final parameters of a run that was not stopped, as their hash."""
    where = tmp_path_factory.mktemp("whole")
    assert finished(started(where, *TO_STOP))[0] == 0
    return record(where)["theta_sha256"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_of_two_processes_goes_on(how: signal.Signals, whole: str, tmp_path: Path) -> None:
    """Stopped within a task, or killed after one: the record of a run that was not."""
    parts = tmp_path / "parts"
    process = started(parts, *TO_STOP)
    rows = lambda: [f.read_text().count("\n") for f in parts.rglob("metrics.jsonl")]  # noqa: E731
    last = time.monotonic() + 120
    while not (rows() and rows()[0] > 45) and time.monotonic() < last:
        time.sleep(0.01)
    if how is signal.SIGKILL:
        (status,) = parts.rglob("status.json")
        os.kill(json.loads(status.read_text())["pid"], how)
    else:
        os.kill(process.pid, how)
    code, _, err = finished(process)
    assert code != 0 and not [*parts.rglob("record.json")], err
    code, _, err = finished(started(parts, *TO_STOP))
    assert code == 0 and "continues at" in err, err
    assert record(parts)["theta_sha256"] == whole

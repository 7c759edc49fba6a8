"""Which device a run gets, and how runs share GPUs; the GPUs are pretended."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from conftest import composed, machine
from forks import Command
from pretended_cuda import PretendedCuda

from cl_bench.base.exceptions import UserError
from cl_bench.config.name import config_hash
from cl_bench.core import devices

GPU = [torch.device("cuda", index) for index in range(3)]


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_what_a_name_means() -> None:
    with PretendedCuda(devices=2):
        assert devices.usable("auto") == devices.usable("cuda") == GPU[:2]
        assert devices.usable("cuda:1") == [GPU[1]]
        assert devices.usable("cpu") == [torch.device("cpu")]
    with PretendedCuda(kind="mps"):
        assert devices.usable("auto") == [torch.device("cpu")], "mps only where it is asked for"
        assert devices.usable("mps") == [torch.device("mps")]


@pytest.mark.parametrize(
    ("name", "number", "line"),
    [
        ("cuda:2", 2, "there are cuda:0 to cuda:1; use auto, or cpu"),
        ("cuda:1", 1, "there is cuda:0 alone; use"),
        ("cuda:256", 2, "there are cuda:0 to cuda:1; use"),
        ("mps", 1, "Apple's GPU is not available here; use"),
        ("cuda", 0, "no CUDA device is available; use"),
        ("cuda:0", 0, "no CUDA device is available; use"),
    ],
)
def test_a_device_that_is_not_there(name: str, number: int, line: str) -> None:
    with PretendedCuda(devices=number), pytest.raises(UserError) as caught:
        devices.usable(name)
    assert str(caught.value).startswith(f"runtime.device={name}: {line}")


def test_runs_spread_over_the_gpus() -> None:
    with PretendedCuda(devices=3), ExitStack() as first, ExitStack() as others:
        assert devices.take("auto", None, first) == GPU[0]
        assert [devices.take("auto", None, others) for _ in range(3)] == [GPU[1], GPU[2], GPU[0]]
        assert devices.take("cuda:2", None, others) == GPU[2]
        first.close()  # runs on the GPUs now: 1, 1, 2
        assert devices.take("cuda", None, others) == GPU[0]
        assert devices.take("cuda", None, others) == GPU[1], "2, 1, 2 before"


def test_runs_at_later_places_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that ended leave places free, and those that are left are counted all the same."""
    with PretendedCuda(devices=2), ExitStack() as own:
        stacks = [ExitStack() for _ in range(6)]
        assert [devices.take("auto", None, stack).index for stack in stacks] == [0, 1, 0, 1, 0, 1]
        for ended in (stacks[0], stacks[1], stacks[3]):
            ended.close()  # two are left on the first GPU, and one on the second
        assert devices.take("auto", 2, own) == GPU[1]
        monkeypatch.setattr(devices.time, "sleep", lambda _: stacks[2].close())
        assert devices.take("auto", 2, own) == GPU[0], "it waited until one ended there"
        for stack in stacks:
            stack.close()


def test_a_run_gives_its_gpu_back() -> None:
    with PretendedCuda(devices=2) as pretended:
        first, second = machine("auto"), machine("cuda")
        assert (first.device, second.device) == (GPU[0], GPU[1]) and pretended.device == GPU[1]
        first.close()
        third = machine("cuda")
        assert third.device == GPU[0]
        for one in (second, third):
            one.close()


def test_a_run_waits_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With per_gpu=1 the third run on two GPUs begins when the first one ends."""
    monkeypatch.setattr(devices, "POLL", 0.01)
    with PretendedCuda(devices=2), ExitStack() as first, ExitStack() as others:
        for stack in (first, others):
            devices.take("auto", 1, stack)
        asked = threading.Event()
        monkeypatch.setattr(devices.time, "sleep", lambda _: (asked.set(), first.close()))
        assert devices.take("auto", 1, others) == GPU[0] and asked.is_set()
    said = capfd.readouterr().err
    assert said == "waits for a GPU: each has 1 run (runtime.per_gpu=1)\n"


def test_options_of_cuda_hold_for_one_run() -> None:
    """tf32 and benchmark; false is the hash that the config had before there were these."""
    machine(tf32=True, benchmark=True)
    flags = lambda: (  # noqa: E731
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.benchmark,
    )
    assert flags() == (True,) * 3
    machine()
    assert flags() == (False,) * 3
    with pytest.raises(UserError, match=r"runtime\.benchmark=true: which algorithm is the fastest"):
        machine(benchmark=True, deterministic=True)
    hashes = {config_hash(composed(f"runtime.{name}=true")) for name in ("tf32", "benchmark")}
    assert len(hashes) == 2 and config_hash(composed()) not in hashes


TAKER = """
import sys, tempfile
from contextlib import ExitStack
from unittest import mock
import torch
from cl_bench.core import devices
tempfile.tempdir = sys.argv[1]
names = dict(is_available=lambda: True, device_count=lambda: 2)
names["get_device_properties"] = lambda device: mock.Mock(uuid=device.index)
with mock.patch.multiple(torch.cuda, **names), ExitStack() as held:
    print(devices.take("auto", 1, held), flush=True)
    while True:
        devices.time.sleep(1)
"""


def test_runs_of_other_processes_count(tmp_path: Path) -> None:
    """Two processes take two GPUs; that of one that is killed is free again."""
    script = tmp_path / "taker.py"
    script.write_text(TAKER)

    def started() -> tuple[Command, str]:
        process = Command([str(script), str(tmp_path)], tmp_path, {**os.environ})
        return process, process.stdout.readline().strip()

    running = [started(), started()]
    assert [where for _, where in running] == ["cuda:0", "cuda:1"]
    os.kill(running[0][0].pid, signal.SIGKILL)
    running[0][0].wait()
    running.append(started())
    assert running[2][1] == "cuda:0"
    for process, _ in running[1:]:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def test_which_gpu_is_no_part_of_a_config() -> None:
    named = [
        config_hash(composed(*words))
        for words in (
            ("runtime.device=cuda",),
            ("runtime.device=cuda:3",),
            ("runtime.device=cuda", "runtime.per_gpu=2"),
        )
    ]
    assert len({*named}) == 1 and config_hash(composed()) != named[0]

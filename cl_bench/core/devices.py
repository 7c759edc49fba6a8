"""The devices of this machine, and the share of a GPU that a run takes.

Runs spread over the GPUs: each takes the one that the fewest runs of this user are at, whichever
command or sweep they belong to. A run notes that by locking a file, which the system unlocks when
the process ends, however it ends.
"""

from __future__ import annotations

import getpass
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.base.files import LockedError

DeviceName = Annotated[
    str,
    Field(
        pattern=r"^(auto|cpu|mps|cuda(:(0|[1-9]\d{0,2}))?)$",
        description="auto, cpu, cuda, cuda:<number> or mps",
    ),
]
POLL = 1.0  # seconds between two tries to get a GPU that other runs have


def usable(name: str) -> list[torch.device]:
    """The devices that a run with runtime.device=`name` may use: each GPU with auto and cuda.

    Raises UserError where there is none.
    """
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise _missing(name, "Apple's GPU is not available here")
        return [torch.device("mps")]
    number = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    gpus = [torch.device("cuda", index) for index in range(number)]
    if name == "cpu" or (name == "auto" and not gpus):
        return [torch.device("cpu")]
    if not gpus:
        raise _missing(name, "no CUDA device is available")
    if ":" not in name:
        return gpus
    wanted = int(name.partition(":")[2])
    if wanted >= number:
        there = "is cuda:0 alone" if number == 1 else f"are cuda:0 to cuda:{number - 1}"
        raise _missing(name, f"there {there}")
    return [gpus[wanted]]


def _missing(name: str, reason: str) -> UserError:
    return UserError(f"runtime.device={name}: {reason}; use auto, or cpu")


def of_rank(name: str, local_rank: int) -> torch.device:
    """The device of one of several processes of a run: each has a GPU of its own, or the CPU."""
    devices = usable(name)
    if devices[0].type == "mps":
        raise UserError("torchrun: runtime.device=mps has one process; use cpu")
    if devices[0].type == "cpu":
        return devices[0]
    if local_rank >= len(devices):
        raise UserError(
            f"torchrun: process {local_rank} of this machine has no GPU of its own; use "
            f"--nproc_per_node={len(devices)} or runtime.device=cpu"
        )
    return devices[local_rank]


def take(name: str, per_gpu: int | None, held: ExitStack) -> torch.device:
    """The device for a run, which stays taken until `held` is closed.

    per_gpu  the most runs at the same time on a GPU; where all GPUs have as many, wait until one of
             them ends. None: any number
    """
    devices = usable(name)
    if devices[0].type != "cuda":
        return devices[0]
    folder = Path(tempfile.gettempdir()) / f"cl_bench-{getattr(os, 'getuid', getpass.getuser)()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    told = False
    while True:
        with files.locked(folder / "choice", wait=True):
            runs_on = {device: _taken(folder, device) for device in devices}
            device = min(devices, key=lambda each: len(runs_on[each]))
            if per_gpu is None or len(runs_on[device]) < per_gpu:
                free = next(place for place in count() if place not in runs_on[device])
                held.enter_context(files.locked(folder / f"{_identity(device)}.{free}"))
                return device
        if not told:
            runs = f"{per_gpu} run{'s' * (per_gpu != 1)} (runtime.per_gpu={per_gpu})"
            print(f"waits for a GPU: each has {runs}", file=sys.stderr)
        told = True
        time.sleep(POLL)


def _taken(folder: Path, device: torch.device) -> set[int]:
    """The places on a GPU that runs have: the numbers of its files that are locked."""
    found, name = set(), _identity(device)
    known = {file.name.removeprefix(f"{name}.").partition(".")[0] for file in folder.iterdir()}
    for place in map(int, filter(str.isdecimal, known)):
        try:
            with files.locked(folder / f"{name}.{place}"):
                pass
        except LockedError:
            found.add(place)
    return found


def _identity(device: torch.device) -> str:
    """The GPU's own identity, the same in processes that see other GPUs or another order."""
    return str(torch.cuda.get_device_properties(device).uuid)

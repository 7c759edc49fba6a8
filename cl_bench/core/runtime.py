"""The machine: device, generators, precision, compiler, memory, signals. No other file reads it."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Generator, Tensor, nn

from cl_bench.base.bounds import Seed
from cl_bench.base.exceptions import UserError

STATUS = Path("/proc/self/status")
THREADS = torch.get_num_threads()  # PyTorch's choice for this process
LIMITS = (  # of a container, in bytes, or `max`
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
Precision = Literal["fp32", "bf16"]


@dataclass
class Runtime:
    """What a run may use of the machine; generators apart, so that methods see equal streams."""

    device: torch.device
    precision: Precision
    channels_last: bool
    compiler: Callable[[Callable], Callable] | None
    order: Generator  # CPU: the order of training samples
    memory: Generator  # CPU: what a method draws
    draws: Generator  # device: augmentation

    def autocast(self) -> AbstractContextManager:
        """bfloat16 where it is safe; needs no loss scaling."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def place(self, net: nn.Module) -> nn.Module:
        """The network on the device, its 4-D weights in channels_last where that is wanted."""
        net = net.to(self.device)
        return net.to(memory_format=torch.channels_last) if self.channels_last else net

    def generator(self) -> Generator:
        """One more generator on the device, of no consequence for the run."""
        return Generator(self.device)

    def seconds(self) -> float:
        """A clock that has waited for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def peak_mib(self) -> float:
        """Most memory held since `start`: on CUDA what was allocated, else the whole process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        if STATUS.exists():
            (line,) = (x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM"))
            return int(line.split()[1]) / 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes

    def machine_info(self) -> dict[str, Any]:
        """What the record says of the machine."""
        cuda = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if cuda else "cpu"
        return {"device": name, "threads": torch.get_num_threads()}

    def state(self) -> dict[str, Tensor]:
        """The generators' states, for a checkpoint."""
        return {name: rng.get_state() for name, rng in self._generators().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put the generators back where `state` found them."""
        for name, rng in self._generators().items():
            rng.set_state(state[name].cpu())

    def _generators(self) -> dict[str, Generator]:
        return {"order": self.order, "memory": self.memory, "draws": self.draws}


def start(
    seed: Seed,
    device: Literal["auto", "cpu", "cuda"],
    precision: Precision,
    channels_last: bool | Literal["auto"],
    compile: bool,
    deterministic: bool,
    threads: Annotated[int, Ge(1), Le(1024)] | None,
) -> Runtime:
    """Set the process up for one run; nothing is left over from a run before it."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("runtime.device=cuda: no CUDA device is available; use cpu or auto")
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    where = torch.device("cuda" if cuda else "cpu")
    torch.set_num_threads(threads or THREADS)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():  # which loads the compiler
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32, on every device; bf16 is the fast way
    _start_over(where)
    _seed_global(seed)
    cpu = torch.device("cpu")
    if compile:
        torch.compiler.reset()  # graphs of a run before it count against this one's
    compiler = (lambda f: torch.compile(f, fullgraph=True)) if compile else None
    made = [_generator(seed, n, at) for n, at in enumerate((cpu, cpu, where))]
    last = (precision == "bf16" or not cuda) if channels_last == "auto" else channels_last
    return Runtime(where, precision, last, compiler, *made)


def _start_over(device: torch.device) -> None:
    """Count memory from here: a sweep's earlier runs in this process are gone, and do not count."""
    gc.collect()  # what refers to itself
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc keeps freed memory: else a sweep grows, run by run
        trim(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def _seed_global(seed: int) -> None:
    """For the network's initial weights; a method that draws from here fails a test."""
    random.seed(seed)
    torch.manual_seed(seed)


def _generator(seed: int, stream: int, device: torch.device) -> Generator:
    """Its own stream for each seed and use; the CPU's generator takes 32 bits: seed < 2^24."""
    return Generator(device).manual_seed((seed << 8) + stream + 1)


def memory() -> int | None:
    """The bytes of memory that this process may have; None where the machine does not say."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    limits = [file.read_text().strip() for file in LIMITS if file.is_file()]
    return min([there, *(int(limit) for limit in limits if limit.isdecimal())])

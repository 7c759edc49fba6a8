"""The machine of a run: device, random generators, precision, compiler, memory.

No other module but `devices` and `graphs` asks PyTorch or the system about the machine.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Generator, Tensor, nn

from cl_bench.base.bounds import Count, Seed
from cl_bench.base.exceptions import UserError
from cl_bench.core import devices, parallel
from cl_bench.core.devices import DeviceName
from cl_bench.core.graphs import Graphs
from cl_bench.core.parallel import ALONE, Processes

STATUS = Path("/proc/self/status")
THREADS = torch.get_num_threads()  # PyTorch's choice for this process
LIMITS = (  # memory limits of a container: a number of bytes, or `max`
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
Precision = Literal["fp32", "bf16"]


@dataclass
class Runtime:
    """What a run uses of the machine.

    Each purpose has a generator of its own: a method that draws more does not change the order of
    samples or the augmentation, so that all methods train on the same batches.
    """

    device: torch.device
    precision: Precision
    channels_last: bool
    compiler: Callable[[Callable], Callable] | None
    order: Generator  # CPU: the order of training samples
    memory: Generator  # CPU: the draws of a method and its buffer
    draws: Generator  # device: augmentation
    held: ExitStack  # what the run takes of the machine until `close`, such as its share of a GPU
    processes: Processes = ALONE  # that train together
    planned: bool = False  # whether steps are planned ahead, where their method allows it
    graphs: Graphs | None = None  # captures the planned steps; None: each is a call

    def close(self) -> None:
        """Give back what the run takes of the machine."""
        self.held.close()

    def autocast(self) -> AbstractContextManager:
        """PyTorch's autocast to bfloat16 with precision=bf16; it needs no loss scaling."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def place(self, net: nn.Module) -> nn.Module:
        """Move a network to the device, in channels_last format if the run uses it."""
        net = net.to(self.device)
        return net.to(memory_format=torch.channels_last) if self.channels_last else net

    def generator(self) -> Generator:
        """A new generator on the device, whose draws do not change those of the run."""
        return Generator(self.device)

    def seconds(self) -> float:
        """The time in seconds, after the device has finished all work so far."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def peak_mib(self) -> float:
        """Peak memory in MiB since `start`: allocated on CUDA, or of the whole process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        if STATUS.exists():
            (line,) = (x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM"))
            return int(line.split()[1]) / 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes

    def machine_info(self) -> dict[str, Any]:
        """The device's name and the number of threads, for the record."""
        cuda = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if cuda else self.device.type
        return {"device": name, "threads": torch.get_num_threads()}

    def state(self) -> dict[str, Tensor]:
        """The generators' states, for a checkpoint."""
        return {name: rng.get_state() for name, rng in self._generators().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Set the generators to the states that `state` returned."""
        for name, rng in self._generators().items():
            rng.set_state(state[name].cpu())

    def _generators(self) -> dict[str, Generator]:
        return {"order": self.order, "memory": self.memory, "draws": self.draws}


def start(
    seed: Seed,
    device: DeviceName,
    precision: Precision,
    channels_last: bool | Literal["auto"],
    compile: bool,
    graphs: bool,
    deterministic: bool,
    tf32: bool,
    benchmark: bool,
    threads: Annotated[int, Ge(1), Le(1024)] | None,
    per_gpu: Count | None,
) -> Runtime:
    """Set up the process for one run, independently of earlier runs in it.

    tf32       CUDA multiplies float32 with 10 bits of their fractions, in matrices and convolutions
    graphs     the steps of a method are planned ahead, and run as CUDA graphs (`engine.steps`)
    benchmark  cuDNN tries its algorithms for each shape, and takes the fastest
    per_gpu    the most runs at the same time on a GPU; a further one waits

    Raises UserError where the device is not available.
    """
    rank = parallel.local_rank()
    _require_possible(deterministic, benchmark, compile, graphs, several=rank is not None)
    _free_memory()  # and what an earlier run holds of a GPU
    held = ExitStack()
    where = devices.take(device, per_gpu, held) if rank is None else devices.of_rank(device, rank)
    cuda = where.type == "cuda"
    if graphs and where.type == "mps":
        raise UserError("runtime.graphs=true: runs on CUDA, and on a CPU as a check; not on mps")
    torch.set_num_threads(threads or THREADS)
    _choose_kernels(where, deterministic, tf32, benchmark)
    _reset_memory_counters(where)
    seed_global(seed)
    cpu, compiler = torch.device("cpu"), _compiler() if compile else None
    order, memory, draws = (_generator(seed, n, at) for n, at in enumerate((cpu, cpu, where)))
    last = (precision == "bf16" or not cuda) if channels_last == "auto" else channels_last
    captured = Graphs(draws) if graphs and cuda else None
    parts = order, memory, draws, held, parallel.join(where, held), graphs, captured
    return Runtime(where, precision, last, compiler, *parts)


def _compiler() -> Callable[[Callable], Callable]:
    """PyTorch's, without the graphs of earlier runs, which would count against its limit."""
    torch.compiler.reset()
    return lambda f: torch.compile(f, fullgraph=True)


def _require_possible(
    deterministic: bool, benchmark: bool, compile: bool, graphs: bool, several: bool
) -> None:
    """Raise UserError where two of these do not go together."""
    if benchmark and deterministic:
        raise UserError(
            "runtime.benchmark=true: which algorithm is the fastest differs from run to run; leave "
            "it out with runtime.deterministic=true"
        )
    for name, chosen in (("compile", compile), ("graphs", graphs)):
        if chosen and several:
            raise UserError(f"runtime.{name}=true: does not go with several processes (torchrun)")
    if compile and graphs:
        raise UserError("runtime.graphs=true: does not go with runtime.compile=true; use one")


def _choose_kernels(device: torch.device, deterministic: bool, tf32: bool, benchmark: bool) -> None:
    """Set what PyTorch may choose among, for this run; the run before may have had it otherwise."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # page-locked memory belongs to the current device
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():  # the call loads the compiler
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = benchmark


def _free_memory() -> None:
    """Free what earlier runs of a sweep left in this process."""
    gc.collect()  # reference cycles
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc keeps freed memory, which would grow from run to run
        trim(0)


def _reset_memory_counters(device: torch.device) -> None:
    """Count peak memory from here."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def seed_global(seed: int) -> None:
    """Seed the global generators, which initialise the network and serve nothing else."""
    random.seed(seed)
    torch.manual_seed(seed)


def _generator(seed: int, stream: int, device: torch.device) -> Generator:
    """A generator with its own stream for each seed and purpose.

    The CPU's generator uses 32 bits of a seed, of which 8 are for the purpose: seed < 2^24.
    """
    return Generator(device).manual_seed((seed << 8) + stream + 1)


def memory_limit() -> int | None:
    """The bytes of memory that this process may use; None where the system does not say."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    limits = [file.read_text().strip() for file in LIMITS if file.is_file()]
    return min([there, *(int(limit) for limit in limits if limit.isdecimal())])

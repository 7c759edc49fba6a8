"""The trained network as a file that plain PyTorch loads, for use outside of this package.

    net.load_state_dict(safetensors.torch.load_file("model.safetensors"))

restores it into a network that is built in the same way. A method with a network for each task
leaves `model.task0.safetensors` and so on.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from cl_bench.base import files
from cl_bench.core.network import NetworkFunction
from cl_bench.core.types import Snapshot
from cl_bench.methods.base import Method


def write(method: Method, folder: Path) -> None:
    """Write the networks that the method predicts with, each in a file of its own."""
    for name, snapshot in method.networks():
        file = folder / ".".join(filter(None, ("model", name, "safetensors")))
        files.write_bytes(file, save(state_dict(method.learner, snapshot)))


def state_dict(network: NetworkFunction, snapshot: Snapshot) -> dict[str, Tensor]:
    """The module's state_dict as it was at the snapshot: contiguous tensors on the CPU."""
    found = {**network.net.state_dict(), **network.flat.views(snapshot.theta), **snapshot.buffers}
    return {name: value.detach().cpu().contiguous().clone() for name, value in found.items()}

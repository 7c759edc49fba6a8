"""Writes the trained network as a file that plain PyTorch can load, without this package.

    net.load_state_dict(safetensors.torch.load_file("model.safetensors"))

loads it into a network of the same class. Of a method with a network for each task there are
`model.task0.safetensors`, `model.task1.safetensors` and so on.
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
    """Write each network that the method predicts with into a file in `folder`."""
    for name, snapshot in method.networks():
        file = folder / ".".join(filter(None, ("model", name, "safetensors")))
        files.write_bytes(file, save(state_dict(method.learner, snapshot)))


def state_dict(network: NetworkFunction, snapshot: Snapshot) -> dict[str, Tensor]:
    """The state_dict of the module at a snapshot, as contiguous tensors on the CPU."""
    state = {**network.net.state_dict(), **network.flat.views(snapshot.theta), **snapshot.buffers}
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}

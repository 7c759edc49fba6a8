"""What a curvature is worth in each layer: the trace or the Frobenius norm of the layer's block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

from cl_bench.curvature.base import Curvature
from cl_bench.curvature.dense import Dense
from cl_bench.curvature.diagonal import Diagonal
from cl_bench.flat import FlatParams
from cl_bench.types import beside

Size = Literal["trace", "norm"]


def by_layer(
    curvature: Curvature,
    flat: FlatParams,
    names: Sequence[str],
    size: Size,
    probes: int,
    rng: Generator,
) -> Tensor:
    """(L,): of the blocks of these parameters, by random signs v (Hutchinson 1989).

    E[v'Hv] is the trace, E[|Hv|^2] the squared norm; of a diagonal the first probe tells both.
    """
    probes = 1 if isinstance(curvature, Diagonal) else probes
    spans = [flat.slices[name] for name in names]
    # a family of layers has nothing between them: all are probed at once
    groups = [[span] for span in spans] if isinstance(curvature, Dense) else [spans]
    total = flat.grad.new_zeros(len(spans))
    for _ in range(probes):
        drawn = torch.randint(2, flat.grad.shape, generator=rng).to(flat.grad.dtype) * 2 - 1
        signs = beside(drawn, flat.grad)
        for group in groups:
            v = torch.zeros_like(signs)
            for span in group:
                v[span] = signs[span]
            moved = curvature.matvec(v)
            other = v if size == "trace" else moved
            both = [(moved[span] * other[span]).sum() * (span in group) for span in spans]
            total += torch.stack(both)
    return total / probes if size == "trace" else (total / probes).sqrt()

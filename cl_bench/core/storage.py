"""The storage of a buffer: samples in rows, which are overwritten."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_bench.core.decisions import shapes_are_fixed
from cl_bench.core.types import Batch

NOTHING = torch.empty(2, 0, dtype=torch.int64)  # rows to write, and samples to write there


def pairs_of(kept: dict[int, int], count: int) -> Tensor:
    """(2, n): rows of the storage, and the samples, of a batch of `count`, that are written there.

    With fixed shapes n is `count`: the last pair is repeated, or where nothing is kept, the first
    row is written to itself, as sample number `count`.
    """
    chosen = torch.tensor([list(kept), list(kept.values())]) if kept else NOTHING
    if not shapes_are_fixed():
        return chosen
    last = chosen[:, -1:] if kept else torch.tensor([[0], [count]])
    return torch.cat([chosen, last.expand(2, count - len(kept))], 1)


def written(rows: Batch | None, chosen: Tensor, batch: Batch, room: int) -> Batch:
    """Write samples of a batch into the rows, in place.

    rows    those so far; None: there are none
    chosen  (2, n): rows of the storage, and the samples that are written there. With fixed shapes
            the sample number B, of a batch of B, stands for what the first row has already
    room    the number of rows that there must be: new storage is made where there are fewer
    """
    stored, (places, samples), fixed = [], chosen.unbind(), shapes_are_fixed()
    for old, field in zip(rows or (None,) * 4, batch, strict=True):
        if field is not None:
            old = _grown(old, field, room)
            field = torch.cat([field, old[:1]]) if fixed else field
            old[places] = field[samples]
        stored.append(old)
    return Batch(*stored)


def _grown(old: Tensor | None, field: Tensor, room: int) -> Tensor:
    """`old` with at least `room` rows; new storage, shaped as `field`, where it is smaller."""
    if old is not None and len(old) >= room:
        return old
    larger = field.new_zeros(room, *field.shape[1:])
    if old is not None:
        larger[: len(old)] = old
    return larger

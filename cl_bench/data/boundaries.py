"""Streams without clean boundaries: blurred ones, and ones that the method is not told of."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from cl_bench.base.bounds import Count, Seed, Share
from cl_bench.base.exceptions import UserError
from cl_bench.core.types import Stream, Task
from cl_bench.data.orders import renumbered
from cl_bench.data.stream import joined, sequential


def online(stream: Stream, first: Count | None) -> Stream:
    """The images of the tasks one after the other, as one task: no boundary is told to the method.

    The accuracy matrix has a row for each task all the same, measured after its last image.
    """
    stream = sequential(stream, first)
    return replace(stream, tasks=[joined(stream.tasks, in_parts=True)])


def blurry(
    stream: Stream, first: Count | None, disjoint: Share, blur: Share, boundaries: bool, seed: Seed
) -> Stream:
    """i-Blurry (Koh et al. 2022, arXiv:2110.10031): some classes come in tasks of others, too.

    A share `disjoint` of the classes of each task, drawn at random, comes in that task alone (N of
    the paper, in percent there). Of the images of its other classes, a share `blur` is taken away
    (M of the paper), and what is taken away of all tasks is dealt out to all of them evenly, at
    random. Test images stay with the task of their class. `first` keeps the first tasks of that.

    boundaries=false  the method is not told where a task ends, as with stream=online

    `seed` alone decides the draws. Raises UserError where two tasks have a class in common.
    """
    if int(stream.classes.sum(0).max()) > 1:
        raise UserError(
            "stream=blurry: tasks have classes in common, so none belongs to a task; use "
            "dataset.split=class, or stream=online"
        )
    rng = Generator().manual_seed(seed)
    own = [row.nonzero().squeeze(1) for row in stream.classes.cpu()]
    alone = [classes[_drawn(len(classes), disjoint, rng)] for classes in own]
    blurred = torch.ones(stream.num_classes, dtype=torch.bool)
    blurred[torch.cat(alone)] = False
    everything = joined(stream.tasks)
    rows = _dealt(stream.tasks, blurred, blur, rng)
    tasks = [renumbered(everything.rows(index), number) for number, index in enumerate(rows)]
    classes = stream.classes.clone()
    for task in tasks:
        classes[task.id, task.y.unique()] = True
    description = {**stream.description, "disjoint_classes_of_task": [a.tolist() for a in alone]}
    stream = replace(stream, tasks=tasks, classes=classes, description=description)
    stream = sequential(stream, first)
    return stream if boundaries else online(stream, None)


def _dealt(tasks: list[Task], blurred: Tensor, blur: float, rng: Generator) -> list[Tensor]:
    """The rows, in all tasks joined, of the images of each task after blurring.

    blurred  (K,) bool: the classes whose images are taken away from their task, a share `blur`
    """
    kept, taken, offset = [], [], 0
    for task in tasks:
        labels = task.y.cpu()
        candidates = blurred[labels].nonzero().squeeze(1)
        out = torch.zeros(len(labels), dtype=torch.bool)
        out[candidates[_drawn(len(candidates), blur, rng)]] = True
        kept.append((~out).nonzero().squeeze(1) + offset)
        taken.append(out.nonzero().squeeze(1) + offset)
        offset += len(labels)
    pool = torch.cat(taken)
    pool = pool[torch.randperm(len(pool), generator=rng)]
    return [torch.cat(both) for both in zip(kept, pool.tensor_split(len(tasks)), strict=True)]


def _drawn(count: int, share: float, rng: Generator) -> Tensor:
    """Indices of a share of `count` things, drawn at random."""
    return torch.randperm(count, generator=rng)[: round(share * count)]

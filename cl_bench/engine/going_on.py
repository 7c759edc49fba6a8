"""Goes on from a finished run: its network, its measurements and, of one method, its state.

With the same options the run is the one that the parent would have been with the longer stream, to
the bit: it starts in the state of the parent's last checkpoint, generators included. Where the new
stream has more classes, the head gets rows for them.
"""

from __future__ import annotations

from typing import Any

import torch

from cl_bench.base import files
from cl_bench.base.exceptions import UserError, one_line
from cl_bench.config.parent import KEY, Parent
from cl_bench.core import parallel
from cl_bench.core.learner import Learner
from cl_bench.core.types import Stream
from cl_bench.engine import checkpoint
from cl_bench.engine.resume import Start
from cl_bench.results.folder import Folder, read_journal


def begin(
    start: Start, parent: Parent, learned: Stream, stream: Stream, device: torch.device
) -> Start:
    """What a run starts from that has no checkpoint of its own: the end of its parent.

    learned  the stream of the parent (`config.build.recorded_stream`)

    Raises UserError where the parent's checkpoint is missing or damaged, where the stream does not
    begin with the parent's tasks, or where it has no task after them.
    """
    folder = Folder(parent.folder)
    wanted = {"config": parent.hash, "seed": parent.seed, "device": device.type}
    try:
        saved = checkpoint.load(folder.checkpoint, device, wanted)
        if saved is None:
            raise UserError(
                f"{folder.checkpoint}: is missing; force=true in that run makes it anew"
            )
        rows = read_journal(folder.metrics, saved["journal"])
    except UserError as error:
        raise UserError(f"{KEY}={parent.name}: {one_line(error, 400)}") from None
    _require_tasks(parent, learned, stream)
    if stream.num_classes > learned.num_classes:
        if parent.with_method and checkpoint.bytes_of(saved["method"]):
            raise UserError(
                f"{KEY}={parent.name}: that run has {learned.num_classes} classes, this stream has "
                f"{stream.num_classes}, and what the method keeps is of those alone; use another "
                "method, or begin with a stream of all classes and stream.first"
            )
        saved["classes"] = learned.num_classes
    if not parallel.rank():
        files.write_bytes(start.folder.metrics, rows)
    saved["progress"] = grown(saved["progress"], len(stream.tests))
    saved["progress"]["along_whole"] &= parent.tested_alike
    if not parent.with_method:
        del saved["method"]
        saved["codes"] = []  # those of another method are other code
    return start.with_saved(saved, rows)


def _require_tasks(parent: Parent, before: Stream, stream: Stream) -> None:
    """Raise UserError unless the stream begins with the parent's, image by image, and goes on."""
    tasks = len(before.tasks)
    if before.tasks[-1].parts:
        raise UserError(
            f"{KEY}={parent.name}: that run was told of no boundary (stream=online or "
            "stream.boundaries=false), so that its one task is over; only a run with boundaries "
            "can be continued"
        )
    if stream.tasks[-1].parts:
        raise UserError(
            f"{KEY}={parent.name}: this stream hides its boundaries, and the method must be told "
            "where the tasks of that run end; use stream=sequential or stream.boundaries=true"
        )
    if len(stream.tasks) <= tasks:
        raise UserError(
            f"{KEY}={parent.name}: that run has learned {tasks} task{'s' * (tasks > 1)}, and this "
            f"stream has {len(stream.tasks)}; it needs at least one more (stream.first, "
            "dataset.tasks)"
        )
    if before.num_classes > stream.num_classes:
        raise UserError(
            f"{KEY}={parent.name}: the head of that run has {before.num_classes} classes, this "
            f"stream has {stream.num_classes}; a head does not lose classes"
        )
    pairs = [*zip(before.tasks, stream.tasks, strict=False)]
    pairs += zip(before.tests, stream.tests, strict=False)
    for one, two in pairs:
        same = all(getattr(one, f).equal(getattr(two, f).cpu()) for f in ("x", "y", "t"))
        if not same or one.parts != two.parts:
            raise UserError(
                f"{KEY}={parent.name}: task {one.id} of that run is another one than here; the "
                f"stream must begin with the tasks that it learned{_differing(parent)}"
            )


def _differing(parent: Parent) -> str:
    """The keys that may be the reason for another stream, as a clause."""
    keys = ", ".join(parent.stream_keys)
    return f", and what differs is {keys}" if keys else ""


def add_head_rows(saved: dict[str, Any] | None, learner: Learner) -> None:
    """Widen the parent's head in `saved`, in place, by the rows that a new learner begins with.

    `saved["classes"]` is how many classes the parent has; where it is missing, nothing is done.
    Raises UserError where anything but the head has another size in the two networks.
    """
    rows = None if saved is None else saved.pop("classes", None)
    if saved is None or rows is None:
        return
    own, flat = saved["learner"], learner.flat
    theta, narrow = flat.theta.detach().clone(), []
    for name, shape in flat.shapes.items():
        of_class = shape.numel() // shape[0] if flat.owners[name] is learner.head else 0
        narrow.append(rows * of_class or shape.numel())
    buffers = {name: buffer.shape for name, buffer in learner.net.named_buffers()}
    same = {name: buffer.shape for name, buffer in own["buffers"].items()} == buffers
    if sum(narrow) != own["theta"].numel() or not same:
        raise UserError(
            f"{KEY}: the network of that run has {rows} classes, and its head cannot be widened; "
            "begin with a stream of all classes and stream.first"
        )
    for part, place in zip(own["theta"].split(narrow), flat.slices.values(), strict=True):
        theta[place][: part.numel()] = part
    fresh = {"optimized": None, "optimizer": learner.optimizer.state_dict()}
    saved["learner"] = {**own, "theta": theta, **fresh}  # each task begins with a new optimizer


def grown(progress: dict[str, Any], tasks: int) -> dict[str, Any]:
    """The parent's progress with rows and columns for `tasks` tasks; what is new is NaN."""
    values, initial = progress["matrix"]
    larger = torch.full((tasks, tasks), torch.nan, dtype=values.dtype)
    first = torch.full((tasks,), torch.nan, dtype=initial.dtype)
    larger[: len(values), : len(values)], first[: len(initial)] = values.cpu(), initial.cpu()
    return {**progress, "matrix": (larger, first)}

"""What a run starts from: nothing, or its own and whole checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from cl_bench.base.exceptions import UserError
from cl_bench.config.schema import CodeChanged
from cl_bench.core.runtime import Runtime
from cl_bench.engine import checkpoint
from cl_bench.engine.experiment import Progress
from cl_bench.methods.base import Method
from cl_bench.results.folder import Folder, kept
from cl_bench.results.metrics import AccuracyMatrix
from cl_bench.results.source_code import Code


@dataclass
class Start:
    """The state that a run begins with, and what its checkpoints will say of it.

    identity  config, seed and device, later also the data's hash: equal for all parts of a run
    code      the sources that run now
    saved     the content of the checkpoint; None: the run begins with its first step
    earlier   the codes that made the run up to that checkpoint, where they are others
    """

    folder: Folder
    identity: dict[str, Any]
    code: Code
    saved: dict[str, Any] | None = None
    earlier: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rows(self) -> tuple[int, str] | None:
        """What the checkpoint says of the journal (`Journal.position`)."""
        return None if self.saved is None else self.saved.get("journal")

    def require(self, **known: str) -> None:
        """Add what is known once data is loaded; UserError where the checkpoint has another."""
        self.identity |= known
        if self.saved is None:
            return
        for name, value in known.items():
            before = self.saved["identity"].get(name)
            if before != value:
                raise UserError(
                    f"{self.folder.checkpoint}: was written with {name} {before}, now it is "
                    f"{value}; go back to that, or remove {self.folder.path}"
                )

    def restore(self, method: Method, progress: Progress, machine: Runtime) -> None:
        """Put the checkpoint's content into a run that was built anew."""
        if self.saved is None:
            return
        file = self.folder.checkpoint
        try:
            _restore_progress(progress, self.saved["progress"])
            checkpoint.restore(method, self.saved)
            machine.restore(self.saved["generators"])
        except UserError as error:
            raise UserError(f"{file}: {error}, or remove {self.folder.path}") from None
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            said = " ".join(str(error).split())[:120]
            raise UserError(
                f"{file}: does not fit this run ({type(error).__name__}: {said}); nothing was "
                f"changed: remove {self.folder.path} to start over"
            ) from None


def _restore_progress(progress: Progress, saved: dict[str, Any]) -> None:
    """How far the run was; UserError where that cannot be."""
    tasks = len(progress.matrix.values)
    values, initial = (part.cpu() for part in saved["matrix"])
    fits = values.shape == (tasks, tasks) and initial.shape == (tasks,)
    counts = saved["done"], saved["step"], saved["steps"]
    if not fits or not 0 <= saved["done"] <= tasks or min(counts) < 0:
        raise UserError(f"its progress ({saved['done']} of {tasks} tasks done) cannot be")
    for name, value in saved.items():
        setattr(progress, name, value)
    matrix = AccuracyMatrix(0)
    matrix.values, matrix.initial = values, initial
    progress.matrix = matrix
    progress.order = None if progress.order is None else progress.order.cpu()


def find(
    folder: Folder,
    identity: dict[str, Any],
    code: Code,
    device: torch.device,
    code_changed: CodeChanged,
    force: bool,
) -> Start:
    """What the run in this folder starts from; nothing in the folder is changed by an error.

    UserError where a checkpoint is there and none can be used, or other code wrote it, unless
    `force` or `code_changed` says what to do then.
    """
    start = Start(folder, identity, code)
    try:
        saved = checkpoint.load(folder.checkpoint, device, identity)
        kept(folder.metrics, None if saved is None else saved.get("journal"))
    except UserError:
        if not force:
            raise
        _start_over(folder)
        return start
    if saved is None:
        return start
    codes = saved.get("codes") or [{}]
    if codes[0].get("sha256") == code.sha256:
        start.saved, start.earlier = saved, codes[1:]
    elif code_changed == "continue":
        start.saved, start.earlier = saved, codes
    elif code_changed == "repeat" or force:
        _start_over(folder)
    else:
        raise UserError(
            f"{folder.checkpoint}: was written by other code ({code.differences(codes[0])} "
            "differs); go back to that code, or use code_changed=repeat or force=true to start "
            "over, code_changed=continue to go on (the record then names both)"
        )
    return start


def _start_over(folder: Folder) -> None:
    folder.clear()
    folder.mark("running")


def described(code: Code, found: dict[str, Any]) -> str:
    """` by other code (...)` where a record's `code` is not this one, else nothing."""
    if found.get("sha256") == code.sha256:
        return ""
    return f" by other code ({code.differences(found)} differs)"

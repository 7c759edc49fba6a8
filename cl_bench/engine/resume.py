"""What a run starts from: nothing, or its own and whole checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from cl_bench.base.exceptions import UserError, one_line
from cl_bench.config.schema import CodeChanged
from cl_bench.core.runtime import Runtime
from cl_bench.engine import checkpoint
from cl_bench.engine.session import Progress
from cl_bench.methods.base import Method
from cl_bench.results.folder import Folder, kept
from cl_bench.results.source_code import Code


class UnusableError(Exception):
    """A checkpoint that is whole, but not one of this run; the message says why."""


@dataclass
class Start:
    """The state that a run begins with, and what its checkpoints will say of it.

    identity  config, seed and device, later also the data's hash: equal for all parts of a run
    code      the sources that run now
    saved     the content of the checkpoint; None: the run begins with its first step
    rows      the rows of the journal up to that checkpoint
    earlier   the codes that made the run up to that checkpoint, where they are others
    devices   the names of the devices that the run was on, this one too
    """

    folder: Folder
    identity: dict[str, Any]
    code: Code
    saved: dict[str, Any] | None = None
    rows: bytes = b""
    earlier: list[dict[str, Any]] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)

    def require(self, **known: str) -> None:
        """Add what is known once data is loaded; UnusableError where the checkpoint has another."""
        self.identity |= known
        if self.saved is None:
            return
        for name, value in known.items():
            before = self.saved["identity"].get(name)
            if before != value:
                raise UnusableError(f"was written with {name} {before}, now it is {value}")

    def resume(self, method: Method, progress: Progress, machine: Runtime) -> None:
        """Put the checkpoint's content into a run that was built anew; nothing without one.

        UnusableError where it does not fit.
        """
        if self.saved is None:
            return
        try:
            progress.load_state_dict(self.saved["progress"])
            checkpoint.restore(method, self.saved)
            machine.restore(self.saved["generators"])
        except UserError as error:
            raise UnusableError(str(error)) from None
        except Exception as error:  # a state of another shape, of a class that is gone: anything
            reason = f"{type(error).__name__}: {one_line(error, 120)}"
            raise UnusableError(f"does not fit this run ({reason})") from None


def find(
    folder: Folder,
    identity: dict[str, Any],
    code: Code,
    device: torch.device,
    device_name: str,
    code_changed: CodeChanged,
    force: bool,
) -> Start:
    """What the run in this folder starts from; nothing in the folder is changed by an error.

    UserError where a checkpoint is there and none can be used, or other code wrote it, unless
    `force` or `code_changed` says what to do then.
    """
    start = Start(folder, identity, code, devices=[device_name])
    try:
        saved = checkpoint.load(folder.checkpoint, device, identity)
        rows = kept(folder.metrics, None if saved is None else saved.get("journal"))
    except UserError:
        if not force:
            raise
        start_over(folder)
        return start
    if saved is None:
        return start
    if not _continues(folder, code, saved, code_changed, force):
        start_over(folder)
        return start
    codes = saved.get("codes") or [{}]
    before = [name for name in saved.get("devices", []) if name != device_name]
    same = codes[-1].get("sha256") == code.sha256
    earlier = codes[:-1] if same else codes
    return Start(folder, identity, code, saved, rows, earlier, [*before, device_name])


def _continues(
    folder: Folder, code: Code, saved: dict[str, Any], code_changed: CodeChanged, force: bool
) -> bool:
    """Whether a run goes on from its checkpoint, which other code may have written; UserError."""
    last = (saved.get("codes") or [{}])[-1]
    if last.get("sha256") == code.sha256 or code_changed == "continue":
        return True
    if code_changed == "repeat" or force:
        return False
    raise UserError(
        f"{folder.checkpoint}: was written by other code ({code.differences(last)} differs); go "
        "back to that code, or use code_changed=repeat or force=true to start over, "
        "code_changed=continue to go on (the record then names both)"
    )


def start_over(folder: Folder) -> None:
    """Forget the run that is in the folder, whose lock is held."""
    folder.clear()
    folder.mark("running")


def described(code: Code, found: dict[str, Any]) -> str:
    """` by other code (<modules> differ)`; nothing where `found`, a record's code, is this one."""
    if found.get("sha256") == code.sha256:
        return ""
    return f" by other code ({code.differences(found)} differs)"

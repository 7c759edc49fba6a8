"""Decides whether a run starts at its first step or from a checkpoint, and loads the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cl_bench.base.exceptions import UserError, one_line
from cl_bench.config.schema import CodeChanged
from cl_bench.core.runtime import Runtime
from cl_bench.engine import checkpoint
from cl_bench.engine.session import Progress
from cl_bench.methods.base import Method
from cl_bench.results.folder import Folder, read_journal
from cl_bench.results.source_code import Code


class UnusableError(Exception):
    """A checkpoint is whole, but does not fit this run; the message says why."""


@dataclass
class Start:
    """What a run starts from: a checkpoint, or nothing.

    identity  config hash, seed, kind of device, hashes of data and backbone: equal in all parts of
              a run, and written into its checkpoints
    code      the code that runs now
    saved     the content of the checkpoint; None where the run starts at its first step
    rows      the rows of metrics.jsonl up to the checkpoint
    earlier   the codes that made the run up to the checkpoint, where they differ from `code`
    devices   the names of all devices that the run was on, with the present one
    """

    folder: Folder
    identity: dict[str, Any]
    code: Code
    saved: dict[str, Any] | None = None
    rows: bytes = b""
    earlier: list[dict[str, Any]] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)

    def with_saved(self, saved: dict[str, Any], rows: bytes) -> Start:
        """This start, from a checkpoint and its rows, with the codes and devices of its parts."""
        codes = saved.get("codes") or []
        same = bool(codes) and codes[-1].get("sha256") == self.code.sha256
        devices = [name for name in saved.get("devices", []) if name not in self.devices]
        return replace(
            self,
            saved=saved,
            rows=rows,
            earlier=codes[:-1] if same else codes,
            devices=[*devices, *self.devices],
        )

    def require_same(self, **known: str | None) -> None:
        """Add entries to the identity, once the data is loaded that they are hashes of.

        Raises UnusableError where the checkpoint was written with another value.
        """
        self.identity |= known
        if self.saved is None:
            return
        for name, value in known.items():
            before = self.saved["identity"].get(name)
            if before != value:
                raise UnusableError(f"was written with {name} {before}, now it is {value}")

    def resume(self, method: Method, progress: Progress, machine: Runtime) -> None:
        """Load the checkpoint, if there is one, into a newly built run, in place.

        Raises UnusableError where its content does not fit the run.
        """
        if self.saved is None:
            return
        try:
            progress.load_state_dict(self.saved["progress"])
            checkpoint.restore(method, self.saved)
            machine.restore(self.saved["generators"])
        except UserError as error:
            raise UnusableError(str(error)) from None
        except Exception as error:  # a tensor of another shape, a key of an older version, ...
            reason = f"{type(error).__name__}: {one_line(error, 120)}"
            raise UnusableError(f"does not fit this run ({reason})") from None


def find_start(
    folder: Folder,
    identity: dict[str, Any],
    code: Code,
    device: torch.device,
    device_name: str,
    code_changed: CodeChanged,
    force: bool,
) -> Start:
    """What the run in this folder starts from. A checkpoint that is not to be used is removed.

    Raises UserError, and changes nothing, where no checkpoint that is there can be used (unless
    `force` is true), or where other code wrote it (unless `force` is true or `code_changed` is
    repeat or continue).
    """
    start = Start(folder, identity, code, devices=[device_name])
    try:
        saved = checkpoint.load(folder.checkpoint, device, identity)
        rows = read_journal(folder.metrics, None if saved is None else saved.get("journal"))
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
    return start.with_saved(saved, rows)


def _continues(
    folder: Folder, code: Code, saved: dict[str, Any], code_changed: CodeChanged, force: bool
) -> bool:
    """Whether to continue from a checkpoint, depending on the code that wrote it.

    Raises UserError where other code wrote it, and neither `force` nor `code_changed` decides.
    """
    last = (saved.get("codes") or [{}])[-1]
    if last.get("sha256") == code.sha256 or code_changed == "continue":
        return True
    if code_changed == "repeat" or force:
        return False
    raise UserError(
        f"{folder.checkpoint}: was written by other code ({code.differences(last)} differs); go "
        "back to that code, or use code_changed=repeat or force=true to start over, or "
        "code_changed=continue to continue with the present code (the record names both)"
    )


def start_over(folder: Folder) -> None:
    """Remove the run from its folder, whose lock is held, so that it starts at its first step."""
    folder.clear()
    folder.set_status("running")


def other_code_note(code: Code, recorded: dict[str, Any]) -> str:
    """A text such as ` by other code (torch differs)`; empty where `recorded` is the same code."""
    if recorded.get("sha256") == code.sha256:
        return ""
    return f" by other code ({code.differences(recorded)} differs)"

"""Where rows go beside metrics.jsonl: to wandb, or nowhere. No other file imports wandb."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self
from urllib.parse import urlsplit

from pydantic import Field

from cl_bench.base.bounds import Positive
from cl_bench.base.exceptions import UserError
from cl_bench.results.record import RunRecord, plain

NOT_IN_NAMES = "/\\#?%:"  # wandb refuses these in its names
Name = Annotated[
    str,
    Field(
        pattern=r"^[^/\\#?%:]+$",
        description=f"a text that is not empty, without {' '.join(NOT_IN_NAMES)}",
    ),
]
Mode = Literal["auto", "online", "offline", "disabled"]
FINISH_TIMEOUT = 60.0  # seconds; what is not sent by then stays in the run's folder


class Sink(Protocol):
    """A context that takes rows, and at the end the record and its figures (path by name)."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: object, error: object, trace: object) -> None: ...
    def describe(self, stream: dict[str, Any]) -> None: ...
    def replay(self, rows: list[dict[str, Any]]) -> None: ...
    def log(self, row: dict[str, Any]) -> None: ...
    def finish(self, record: RunRecord, figures: dict[str, Path]) -> None: ...


class Null:
    """Tracks nothing."""

    def __init__(self, **_: object) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None: ...

    def describe(self, stream: dict[str, Any]) -> None: ...

    def replay(self, rows: list[dict[str, Any]]) -> None: ...

    def log(self, row: dict[str, Any]) -> None: ...

    def finish(self, record: RunRecord, figures: dict[str, Path]) -> None: ...


class Wandb:
    """One wandb run a run: grouped by config, named by seed, the matrix as table and image."""

    unreachable: ClassVar = False  # a sweep waits for a server that is away once, not once a run

    def __init__(
        self,
        project: Name,
        entity: Name | None,
        mode: Mode,
        init_timeout: Positive,
        config: dict[str, Any],
        group: str,
        name: str,
        identity: str,
        folder: Path,
        job_type: str,
        tags: list[str],
    ) -> None:
        self.common = {
            "project": project,
            "entity": entity,
            "config": config,
            "group": group,
            "name": name,
            "id": identity,
            "resume": "allow",
            "job_type": job_type,
            "tags": tags,
            "dir": str(folder),
        }
        self.run: Any = self._start(_chosen(mode), mode == "auto", init_timeout)
        self.run.define_metric("step")
        self.run.define_metric("train/*", step_metric="step")
        self.run.define_metric("task")
        self.run.define_metric("eval/*", step_metric="task")

    def describe(self, stream: dict[str, Any]) -> None:
        """What the data turned out to be, into the run's config."""
        self.run.config.update({"data": plain(stream)}, allow_val_change=True)

    def replay(self, rows: list[dict[str, Any]]) -> None:
        """The rows of a run that continues; a row is a step of wandb's.

        The server may have some: it is sent the rest. Offline the new folder has all of them, and
        the folders of the interrupted attempts are removed: of what `wandb sync` finds, each run is
        there once.
        """
        for row in rows[self.run.step :]:
            self.log(row)
        own = Path(self.run.dir).parent
        for folder in Path(self.common["dir"]).glob(f"wandb/offline-run-*-{self.common['id']}"):
            if folder.is_dir() and folder != own:  # a killed run's wandb may still write there
                hidden = folder.rename(folder.with_name(f".{folder.name}"))
                shutil.rmtree(hidden, ignore_errors=True)

    def log(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl under wandb's names."""
        self.run.log(_named(row))

    def finish(self, record: RunRecord, figures: dict[str, Path]) -> None:
        """Summary, matrix and figures."""
        import wandb

        columns: list[Any] = ["after", *(f"task_{j:02d}" for j in range(len(record.initial)))]
        rows: Any = [[i, *row] for i, row in enumerate(record.accuracy)]
        images = {name: wandb.Image(str(path)) for name, path in figures.items()}
        table = wandb.Table(columns=columns, data=rows)
        self.run.log({"accuracy_matrix": table, **images})
        for name, value in record.metrics.items():
            if value is not None:
                self.run.summary[name] = value
        for name in ("train_seconds", "eval_seconds", "peak_mib"):
            self.run.summary[name] = record.measured[name]
        for name in ("state_bytes", "gradients_per_sample"):
            self.run.summary[name] = getattr(record, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Hand everything over; the next run of this process gets a wandb run of its own."""
        self.run.finish(exit_code=0 if kind is None else 1)

    def _start(self, mode: Any, fall_back: bool, timeout: float) -> Any:
        import wandb

        _leave_out_launch()
        settings = wandb.Settings(
            console="off", silent=True, init_timeout=timeout, finish_timeout=FINISH_TIMEOUT
        )
        if mode == "online" and not _has_key():
            raise UserError("tracking.mode=online: no wandb key; log in, or use auto or offline")
        if fall_back and Wandb.unreachable:
            mode = "offline"
        if mode == "offline" and fall_back:
            print(f"wandb: offline; `wandb sync {self.common['dir']}/wandb/*` sends the run later")
        if mode == "online" and fall_back:
            try:
                return wandb.init(mode="online", settings=settings, **self.common)
            except wandb.Error as error:
                reason = str(error).splitlines()[0]
                print(f"wandb: no answer ({reason}), logged offline", file=sys.stderr)
                wandb.teardown()  # its service still holds the run's id
                mode, Wandb.unreachable = "offline", True
        return wandb.init(mode=mode, settings=settings, **self.common)


def _leave_out_launch() -> None:
    """Spare a run the import of wandb's Launch, its agents and its public API: a second.

    At the start of each run wandb looks there for inputs that were staged in this process; there
    are none where Launch was not imported.
    """
    from wandb.sdk.wandb_run import Run

    name = "_detect_and_apply_job_inputs"
    if "wandb.sdk.launch" not in sys.modules and hasattr(Run, name):
        setattr(Run, name, lambda run: None)


def _named(row: dict[str, Any]) -> dict[str, Any]:
    if row["event"] == "step":
        return {"step": row["step"], "train/loss": row["loss"]}
    if row["event"] == "probe":
        seen = {f"probe/{k}": v for k, v in row.items() if k not in ("event", "task", "step")}
        return {"step": row["step"], **seen}
    known = {f"eval/{k}": v for k, v in plain(row["metrics"]).items() if v is not None}
    each = {f"eval/task_{int(j):02d}": a for j, a in row["accuracy"].items()}
    return {"task": row["task"], **known, **each}


def _chosen(mode: Mode) -> str:
    """auto: what WANDB_MODE says; else online with a key and offline without one."""
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")


def _has_key() -> bool:
    """Whether a key lies where wandb looks; wandb's own question would wait for its server."""
    import netrc

    import wandb

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    host = urlsplit(wandb.Settings().base_url).hostname
    try:
        return bool(host and netrc.netrc(file).authenticators(host))
    except (OSError, netrc.NetrcParseError):
        return False

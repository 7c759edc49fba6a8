"""Mirrors the rows of a run in wandb, or nowhere. No other file imports wandb."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field

from cl_bench.base.bounds import Positive
from cl_bench.base.exceptions import UserError
from cl_bench.results.record import RunRecord, json_value

NOT_IN_NAMES = "/\\#?%:"  # characters that wandb refuses in names
Name = Annotated[
    str,
    Field(
        pattern=r"^[^/\\#?%:]+$",
        description=f"a text that is not empty, without {' '.join(NOT_IN_NAMES)}",
    ),
]
Mode = Literal["auto", "online", "offline", "disabled"]
FINISH_TIMEOUT = 60.0  # seconds to send rows at the end; the others stay in the run's folder


class Sink:
    """Takes the rows of a run, and at its end the record. This one keeps nothing.

    It is a context: leaving it ends the run for the sink, as failed where an error is on its way.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """End the run; `kind` is the class of an error, or None."""

    def describe(self, stream: dict[str, Any]) -> None:
        """Note what is known of the stream once its data is loaded."""

    def replay(self, rows: list[dict[str, Any]]) -> None:
        """Take the rows that metrics.jsonl already has, of a run that continues."""

    def log(self, row: dict[str, Any]) -> None:
        """Take one new row of metrics.jsonl."""

    def finish(self, record: RunRecord, figures: dict[str, Path]) -> None:
        """Take the record, and its pictures as paths by name."""


class Null(Sink):
    """No tracking: metrics.jsonl and the record in the run's folder are all that is kept."""

    def __init__(self, **_: object) -> None:
        """Accepts what every sink is built with, and ignores it."""


class Wandb(Sink):
    """A wandb run for each run, named by its seed and grouped with the other seeds of its config.

    It shows the rows of metrics.jsonl as curves, and the accuracy matrix as a table and, where it
    is drawn (`figures`), as an image. With mode=auto a run is logged online where a wandb key is
    found and the server answers within `init_timeout` seconds, and offline otherwise; `wandb sync`
    sends an offline run later.
    """

    unreachable: ClassVar = False  # the server gave no answer to a run of this process

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
        self.run: Any = self._start(_resolve_mode(mode), mode == "auto", init_timeout)
        self.run.define_metric("step")
        self.run.define_metric("train/*", step_metric="step")
        self.run.define_metric("task")
        self.run.define_metric("eval/*", step_metric="task")
        self.run.define_metric("images")
        self.run.define_metric("along/*", step_metric="images")
        self.run.define_metric("epoch")
        self.run.define_metric("validation/*", step_metric="epoch")

    def describe(self, stream: dict[str, Any]) -> None:
        """Add the stream's description to the wandb run's config, as `data`."""
        self.run.config.update({"data": json_value(stream)}, allow_val_change=True)

    def replay(self, rows: list[dict[str, Any]]) -> None:
        """Log the rows of a run that continues, as far as wandb lacks them.

        Each row is a step of wandb's, so the number of steps tells which rows the server has.
        Offline, all rows go into the new wandb folder, and those of the interrupted attempts are
        removed, so that `wandb sync` sends each row once.
        """
        for row in rows[self.run.step :]:
            self.log(row)
        current = Path(self.run.dir).parent
        for folder in Path(self.common["dir"]).glob(f"wandb/offline-run-*-{self.common['id']}"):
            if folder.is_dir() and folder != current:  # a killed run's wandb may still write there
                hidden = folder.rename(folder.with_name(f".{folder.name}"))
                shutil.rmtree(hidden, ignore_errors=True)

    def log(self, row: dict[str, Any]) -> None:
        """Log a row of metrics.jsonl under wandb's names."""
        self.run.log(_wandb_row(row))

    def finish(self, record: RunRecord, figures: dict[str, Path]) -> None:
        """Log the matrix and the pictures, and write the metrics into the summary."""
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

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Send all rows and end the wandb run, with exit code 1 where an error ended the run."""
        self.run.finish(exit_code=0 if kind is None else 1)

    def _start(self, mode: Any, fall_back: bool, timeout: float) -> Any:
        """The wandb run; with `fall_back`, an offline one where the server does not answer."""
        import wandb

        _skip_launch_inputs()
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


def _skip_launch_inputs() -> None:
    """Keep wandb from importing its Launch package at the start of a run, which takes a second.

    Wandb looks there for inputs that this process gave to a Launch job. There are none unless
    Launch was imported.
    """
    from wandb.sdk.wandb_run import Run

    name = "_detect_and_apply_job_inputs"
    if "wandb.sdk.launch" not in sys.modules and hasattr(Run, name):
        setattr(Run, name, lambda run: None)


def _wandb_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl under wandb's names: train/loss, eval/ACC, probe/..., along/..."""
    if row["event"] == "step":
        return {"step": row["step"], "train/loss": row["loss"]}
    if row["event"] == "probe":
        values = {f"probe/{k}": v for k, v in row.items() if k not in ("event", "task", "step")}
        return {"step": row["step"], **values}
    if row["event"] == "validation":
        return {"epoch": row["epoch"], f"validation/task_{row['task']:02d}": row["accuracy"]}
    if row["event"] == "along":
        return {"images": row["images"], "along/accuracy": row["accuracy"]}
    metrics = {f"eval/{k}": v for k, v in json_value(row["metrics"]).items() if v is not None}
    accuracies = {f"eval/task_{int(j):02d}": a for j, a in row["accuracy"].items()}
    return {"task": row["task"], **metrics, **accuracies}


def _resolve_mode(mode: Mode) -> str:
    """The mode for wandb; auto is WANDB_MODE where it is set, else online if there is a key."""
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")


def _has_key() -> bool:
    """Whether wandb would find an API key; asking wandb itself would wait for its server."""
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

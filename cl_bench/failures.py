"""What is said of a run that failed, and which jobs of a sweep did: a Hydra callback.

A failed job leaves a note in its folder below hydra.sweep.dir, whatever process it ran in; the
others go on. The sweep then ends with exit code 2.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from cl_bench import config, files
from cl_bench.files import DamagedError
from cl_bench.runtime import StopRun

NOTE = "failed.json"
NO_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory")


def explain(error: BaseException) -> str | None:
    """One line for what the user or the machine is at fault for; None for an error of the code."""
    line = config.explain(error)
    if line is not None:
        return line
    for link in config.causes(error):
        if isinstance(link, OSError) and link.filename and link.strerror:
            return f"{link.filename}: {link.strerror}"
        if isinstance(link, MemoryError | RuntimeError):
            said = " ".join(str(link).split())
            if isinstance(link, MemoryError) or any(words in said for words in NO_MEMORY):
                return (
                    f"out of memory ({said[:160]}); use a smaller model, schedule.batch_size or "
                    "evaluation.batch_size, or fewer jobs at once"
                )
    return None


def is_storage(error: BaseException) -> bool:
    """Whether a file or a folder could not be written or read."""
    return any(isinstance(link, OSError) and link.filename for link in config.causes(error))


def stop_of(error: BaseException) -> BaseException | None:
    """The request to stop behind an error, also where a library made another error of it."""
    links = config.causes(error)
    return next((e for e in links if isinstance(e, StopRun | KeyboardInterrupt)), None)


def note(error: str, folder: Path | None) -> None:
    """What went wrong in the job that runs now; `folder`: its run's, if it got so far."""
    job = HydraConfig.get()
    content = {"job": " ".join(job.overrides.task), "error": error, "folder": str(folder or "")}
    place = Path(job.runtime.output_dir)
    place.mkdir(parents=True, exist_ok=True)
    files.write_json(place / NOTE, content)


class Failures(Callback):
    """Lists them, with their errors and folders; or says that there are none."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """The last callback to be called: those before it have all jobs that went well."""
        root = Path(config.hydra.sweep.dir)
        notes = sorted(root.rglob(NOTE))
        jobs = [entry for entry in root.iterdir() if entry.is_dir() and entry.name.isdecimal()]
        if not notes:
            print(f"all {len(jobs)} jobs done: python -m cl_bench.report {config.output_dir}")
            return
        print(f"{len(notes)} of {len(jobs)} jobs failed:", file=sys.stderr)
        for file in notes:
            try:
                told = files.read_json(file)
            except DamagedError as error:
                told = {"error": str(error)}
            where = f" ({told['folder']})" if told.get("folder") else ""
            print(f"  {told.get('job', file.parent)}: {told.get('error')}{where}", file=sys.stderr)
        sys.exit(2)

"""The jobs of a sweep that failed, listed at its end: a Hydra callback.

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

from cl_bench.base import files
from cl_bench.base.files import DamagedError

NOTE = "failed.json"


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
        if not notes:
            print(f"all jobs done: python -m cl_bench.report {config.output_dir}")
            return
        print(f"{len(notes)} job{'s' * (len(notes) > 1)} failed:", file=sys.stderr)
        for file in notes:
            try:
                failure = files.read_json(file)
            except DamagedError as error:
                failure = {"error": str(error)}
            where = f" ({failure['folder']})" if failure.get("folder") else ""
            print(
                f"  {failure.get('job', file.parent)}: {failure.get('error')}{where}",
                file=sys.stderr,
            )
        sys.exit(2)

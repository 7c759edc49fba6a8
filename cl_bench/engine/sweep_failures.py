"""Lists the failed jobs of a sweep at its end (a callback of Hydra's).

A failed job writes `failed.json` into its folder below hydra.sweep.dir, in whichever process it
ran, and the other jobs go on. A sweep ends with exit code 2 where a job failed, or where the page
that is made of its runs did (`cl_bench.report.sweep_page`).
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
from cl_bench.results.sweeps import FAILURE, PAGE, note_failure


def write_note(error: str, folder: Path | None) -> None:
    """Write the error of the present job; `folder` is that of its run, if it was known already."""
    job = HydraConfig.get()
    note_failure(Path(job.runtime.output_dir), " ".join(job.overrides.task), error, folder)


class Failures(Callback):
    """Prints the failed jobs with their errors and folders, or that all jobs are done.

    It stands first in conf/config.yaml. Hydra calls callbacks last to first at the end of a sweep,
    so that the pages of experiments and studies, which come later, are made before.
    """

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """List the failures of the jobs and of the page."""
        root = Path(config.hydra.sweep.dir)
        page = root / PAGE / FAILURE
        jobs = sorted({*root.rglob(FAILURE)} - {page})
        if jobs:
            lines = [f"{len(jobs)} job{'s' * (len(jobs) > 1)} failed:"]
            print("\n  ".join(lines + [_line(file) for file in jobs]), file=sys.stderr)
        else:
            print(f"all jobs done: python -m cl_bench.report {config.output_dir}")
        if page.exists():
            print(f"error: {_line(page)}", file=sys.stderr)
        if jobs or page.exists():
            sys.exit(2)


def _line(file: Path) -> str:
    """What a note says: the words of the job, its error, and the folder of its run if known."""
    try:
        failure = files.read_json(file)
    except DamagedError as error:
        failure = {"error": str(error)}
    where = f" ({failure['folder']})" if failure.get("folder") else ""
    return f"{failure.get('job', file.parent)}: {failure.get('error')}{where}"

"""Lists the failed jobs of a sweep at its end (a callback of Hydra's).

A failed job writes `failed.json` into its folder below hydra.sweep.dir, in whichever process it
ran, and the other jobs go on. A sweep with a failed job ends with exit code 2.
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
from cl_bench.results.sweeps import FAILURE, note_failure


def write_note(error: str, folder: Path | None) -> None:
    """Write the error of the present job; `folder` is that of its run, if it was known already."""
    job = HydraConfig.get()
    note_failure(Path(job.runtime.output_dir), " ".join(job.overrides.task), error, folder)


class Failures(Callback):
    """Prints the failed jobs with their errors and folders, or that all jobs are done."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """List the failures, after callbacks of studies have used the jobs that are done."""
        root = Path(config.hydra.sweep.dir)
        notes = sorted(root.rglob(FAILURE))
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

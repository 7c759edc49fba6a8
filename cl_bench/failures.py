"""Which jobs of a sweep failed, said once more at its end: a Hydra callback.

A failed job leaves a note in its folder below hydra.sweep.dir, whatever process it ran in; the
others go on. The sweep then ends with exit code 2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

NOTE = "failed.json"


def note(error: str, folder: Path | None) -> None:
    """What went wrong in the job that runs now; `folder`: its run's, if it got so far."""
    job = HydraConfig.get()
    content = {"job": " ".join(job.overrides.task), "error": error, "folder": str(folder or "")}
    place = Path(job.runtime.output_dir)
    place.mkdir(parents=True, exist_ok=True)
    (place / NOTE).write_text(json.dumps(content))


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
            told = json.loads(file.read_text())
            where = f" ({told['folder']})" if told["folder"] else ""
            print(f"  {told['job']}: {told['error']}{where}", file=sys.stderr)
        sys.exit(2)

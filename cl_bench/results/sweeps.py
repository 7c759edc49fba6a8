"""The jobs of sweeps, and which of them have no result.

Hydra writes `multirun.yaml` into the folder of a sweep, with the words of its command; each job
that is started notes in `<job number>/job.json` the folder of its run, or in `failed.json` why it
was refused. A page of the sweep that cannot be made is noted in `page/failed.json`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from cl_bench.base import files
from cl_bench.base.files import DamagedError
from cl_bench.config import folders

SWEEP, JOB, FAILURE = "multirun.yaml", "job.json", "failed.json"
PAGE = "page"  # the folder for the note that the page of a sweep failed; those of jobs are numbers
RUN, NOT_STARTED = "python -m cl_bench.run", "never started"


@dataclass(frozen=True)
class Job:
    """A job of a sweep that has no result."""

    words: tuple[str, ...]
    state: str  # never started, running, stopped, killed, failed, refused
    reason: str | None = None
    option_folders: tuple[Path, ...] = ()  # of the sweep's --config-dir
    output_dir: Path | None = None  # of the sweep, where it is known
    sweeps: tuple[Path, ...] = ()  # the folders of the sweeps that have it

    def __str__(self) -> str:
        options, words = folders.options_for(self.option_folders), [*self.words]
        if self.output_dir is not None:  # the command may be typed in another folder
            words = [word for word in words if not word.startswith("output_dir=")]
            options.append(f"output_dir={self.output_dir}")
        command = " ".join([RUN, *map(shlex.quote, [*options, *words])])
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.state}: {command}{why}"


def note_folder(job_folder: Path, run_folder: Path) -> None:
    """Write the folder of a job's run into the job's own folder."""
    job_folder.mkdir(parents=True, exist_ok=True)
    files.write_json(job_folder / JOB, {"folder": str(run_folder)})


def note_failure(job_folder: Path, job: str, error: str, run_folder: Path | None = None) -> None:
    """Write the error of a job, its words, and the folder of its run if it is known."""
    job_folder.mkdir(parents=True, exist_ok=True)
    content = {"job": job, "error": error, "folder": str(run_folder or "")}
    files.write_json(job_folder / FAILURE, content)


def lacking(sweeps: Iterable[Path], states: dict[Path, tuple[str, str | None]]) -> list[Job]:
    """The jobs of sweeps without a result, each once, by the newest sweep that has it.

    `sweeps` are the folders of sweeps, `states` the state and the reason of each run without a
    record by its folder. A job that any sweep with the same folders of options has finished is left
    out, and so is a sweep of which no job was started: its command may have been refused.
    """
    found: dict[tuple[Any, ...], Job | None] = {}
    for sweep in sorted(filter(_has_started, sweeps)):
        hydra = _settings(sweep)
        own = _option_folders(hydra)
        place = sweep.absolute().parent
        output_dir = place.parent if place.name == ".sweeps" else None
        for number, words in enumerate(_jobs(hydra)):
            key, job = (own, *sorted(words)), _job(sweep / str(number), words, states)
            earlier = found.get(key)
            if key not in found or earlier is not None:
                if earlier and job and job.state == NOT_STARTED:
                    job = replace(job, state=earlier.state, reason=earlier.reason)
                all_sweeps = (*(earlier.sweeps if earlier else ()), sweep)
                found[key] = job and replace(
                    job, option_folders=own, output_dir=output_dir, sweeps=all_sweeps
                )
    return [job for job in found.values() if job is not None]


def _has_started(sweep: Path) -> bool:
    return any(next(sweep.glob(f"*/{name}"), None) for name in (JOB, FAILURE))


def _settings(sweep: Path) -> Any:
    """Hydra's own settings of a sweep; None where the file is damaged."""
    try:
        content = yaml.safe_load((sweep / SWEEP).read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None
    return content.get("hydra") if isinstance(content, dict) else None


def _option_folders(hydra: Any) -> tuple[Path, ...]:
    """The folders of options beside conf/ that a sweep had."""
    try:
        sources = hydra["runtime"]["config_sources"]
        return tuple(Path(s["path"]) for s in sources if s["provider"] == folders.PROVIDER)
    except (KeyError, TypeError):
        return ()


def _jobs(hydra: Any) -> Iterator[tuple[str, ...]]:
    """The words of each job; none where the settings are damaged, or only Hydra can tell them."""
    try:
        params = [f"{key}={value}" for key, value in (hydra["sweeper"]["params"] or {}).items()]
        parsed = OverridesParser.create().parse_overrides([*params, *hydra["overrides"]["task"]])
        yield from (tuple(words) for words in BasicSweeper.split_arguments(parsed, None)[0])
    except HydraException:
        return
    except (KeyError, TypeError, AttributeError, AssertionError, ValueError):
        return  # of another sweeper, or damaged


def _job(
    place: Path, words: tuple[str, ...], states: dict[Path, tuple[str, str | None]]
) -> Job | None:
    """The job in a folder of a sweep; None where its run is finished."""
    folder = Path(str(_read(place / JOB).get("folder", "")))
    failure = _read(place / FAILURE)
    if folder.name and (folder / "record.json").is_file():
        return None
    state, reason = states.get(folder, ("", None))
    if not state and failure:
        return Job(words, "failed" if folder.name else "refused", str(failure.get("error")))
    if not state:
        state = "started, but its folder is gone" if folder.name else NOT_STARTED
    return Job(words, state, reason)


def _read(file: Path) -> dict[str, Any]:
    try:
        return files.read_json(file)
    except (OSError, DamagedError):
        return {}

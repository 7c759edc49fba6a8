"""Tables of many runs as DataFrames."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.config.nodes import LABELS, leaves
from cl_bench.report import formats
from cl_bench.report.rows import gather
from cl_bench.report.tables import tables
from cl_bench.results.records import Records, Unfinished, read_folders

PathLike = str | os.PathLike[str]


def runs(folder: PathLike | Sequence[PathLike] = "outputs") -> pd.DataFrame:
    """A row for each run below a folder, or below several, finished or not.

    Columns: `folder`, `state` (done, running, stopped, failed, killed or damaged) and `error`;
    dataset, scenario, method, `hash` of the config and seed; `parent`, the hash of the run that it
    goes on from; the metrics as fractions; costs (seconds, MiB, gradients for each training image);
    and every key of the config, `optimizer.lr`. What a run does not have is NaN.
    `cl_bench.load(folder)` opens a run that is done.

    Raises UserError where there is no such folder.
    """
    records = _read(folder)
    rows = [_finished(path, record) for path, record in records.runs]
    rows += [_unfinished(run) for run in records.without_record]
    rows += [_damaged(line) for line in records.damaged]
    first = ["folder", "state", "error", *LABELS, "hash", "seed", "parent"]
    frame = pd.DataFrame(rows)
    order = [*first, *(name for name in frame.columns if name not in first)]
    return frame.reindex(columns=order).sort_values("folder", ignore_index=True)


def compare(
    folder: PathLike | Sequence[PathLike] = "outputs",
    by: str | Iterable[str] = (),
    baseline: str | None = None,
) -> pd.DataFrame:
    """The report's table: a row for each config, with mean, spread and interval over its seeds.

    by        a key of the config, or several: a row is all runs alike in these, not one config
    baseline  a method: differences to it over equal seeds

    Raises UserError where no run is finished, or an argument is wrong.
    """
    records = _read(folder)
    rows = gather(records, [by] if isinstance(by, str) else list(by))
    if not rows:
        raise UserError(f"{folder}: no finished run (record.json) below this folder")
    return formats.data_frame(tables(rows, baseline))


def _read(folder: PathLike | Sequence[PathLike]) -> Records:
    given = [folder] if isinstance(folder, str | os.PathLike) else folder
    return read_folders([files.absolute(each) for each in given])


def _finished(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    measured = record["measured"]
    costs = {
        "gradients": record["gradients_per_sample"],
        "train_seconds": sum(measured["train_seconds"]),
        "eval_seconds": sum(measured["eval_seconds"]),
        "peak_mib": measured["peak_mib"],
        "state_mib": record["state_bytes"] / 2**20,
        "parameters": record["parameters"],
    }
    parent = (record.get("parent") or {}).get("hash")
    identity = {"hash": record["hash"], "seed": record["seed"], "parent": parent}
    row = {"folder": str(folder), "state": "done", **record["labels"], **identity}
    return row | record["metrics"] | costs | _keys(record["config"])


def _unfinished(run: Unfinished) -> dict[str, Any]:
    """What the path and the config of a run without a record say: <labels>/<hash>/seed<k>."""
    row: dict[str, Any] = {"folder": str(run.folder), "state": run.state, "error": run.reason}
    *_, dataset, scenario, method, config_hash, seed = ("", "", "", "", *run.folder.parts)
    if seed.removeprefix("seed").isdecimal():
        row |= dict(zip(LABELS, (dataset, scenario, method), strict=True))
        row |= {"hash": config_hash, "seed": int(seed.removeprefix("seed"))}
    try:
        config = yaml.safe_load((run.folder / "config.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return row  # it has none yet, or it is damaged
    return row | (_keys(config) if isinstance(config, dict) else {})


def _keys(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of a config with their values, without Hydra's own `_partial_`."""
    return {k: v for k, v in leaves(config).items() if not k.endswith("._partial_")}


def _damaged(line: str) -> dict[str, Any]:
    file, _, error = line.partition(": ")
    return {"folder": str(Path(file).parent), "state": "damaged", "error": error}

"""Finished runs as rows of results/<table>.csv: `python -m cl_bench.report --save <file>`."""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from cl_bench.base import files
from cl_bench.base.escape import visible
from cl_bench.base.exceptions import UserError
from cl_bench.base.files import DamagedError
from cl_bench.config.nodes import leaves
from cl_bench.report.commands import command_of, hash_of, typed, words
from cl_bench.report.published import Beside, published_for
from cl_bench.report.results_table import NAME, ResultRow, faults, merged, read, write
from cl_bench.report.rows import COSTS, METRICS, Record, Row
from cl_bench.report.statistics import Summary
from cl_bench.report.tables import of
from cl_bench.results.order_disparity import DISPARITIES, disparities
from cl_bench.results.record import Records

UNITS = {"train s": "seconds", "later / first": "ratio", "gradients": "count"}
UNITS |= {"peak MiB": "MiB", "state MiB": "MiB"}
ORDER = "scenario.order"


@dataclass(frozen=True)
class Saved:
    """What a row's metrics have in common."""

    row: Row
    label: str
    command: str  # empty: none was found
    date: str


def save(found: Records, rows: Sequence[Row], file: Path) -> int:
    """Write all rows to a table, in the place of those that it has of the same; how many it has.

    A config whose command stands in the table keeps that row's label and command.
    """
    if file.suffix != ".csv" or not re.fullmatch(NAME, file.stem):
        raise UserError(f"--save {file}: must be a file <table>.csv, as results/pmnist.csv")
    for row in rows:
        if len({run["hash"] for run in row.runs}) > 1:
            raise UserError(f"--save: {row.name}: is of several configs; leave --by out")
    old = read(file) if file.exists() else []
    known = _known(old)
    saved = [_saved(row, known, found) for row in rows]
    labels = [one.label for one in saved]
    twins = sorted({label for label in labels if labels.count(label) > 1})
    if twins:
        raise UserError(f"--save: two configs would be called {twins[0]}; save them apart")
    beside, new = published_for(list(rows)), list[ResultRow]()
    for one in saved:
        new += _metrics(one, beside, file.stem)
    new += [line for group in _orders(saved) for line in _of_orders(group, file.stem)]
    for line in new:
        wrong = next(faults(line, file.stem), None)
        if wrong is not None:
            raise UserError(f"--save: {line.row}: {wrong}")
    every = merged(old, new)
    write(file, every)
    return len(every)


def _known(old: Iterable[ResultRow]) -> dict[tuple[str, str], tuple[str, str]]:
    """Label and command of each config and split that a table has."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    hashes = cache(hash_of)
    for line in old:
        own = hashes(line.command) if line.command and not _foreign(line.command) else None
        if own is not None:
            found.setdefault((own, line.split), (line.row, line.command))
    return found


def _foreign(command: str) -> bool:
    """Whether a command is one of another program than cl_bench.run."""
    return command.startswith("python ")


def _saved(row: Row, known: dict[tuple[str, str], tuple[str, str]], found: Records) -> Saved:
    """A row with its label, its command and the day of its last run."""
    first, seeds = row.runs[0], ",".join(str(run["seed"]) for run in row.runs)
    label, command = known.get((first["hash"], row.section.split), ("", ""))
    if not label:
        command = command_of(first) or ""
        label = command or f"{row.name} [{first['hash']}]"
    if command:
        own = [word for word in shlex.split(command) if not word.startswith("seed=")]
        command = shlex.join([*own, f"seed={seeds}"])
    return Saved(row, label, command, _day(row, found))


def _day(row: Row, found: Records) -> str:
    """The day on which the last run of a row ended, where its folder says so."""
    names = {(run["hash"], run["seed"]) for run in row.runs}
    days = [""]
    for folder, run in found.runs:
        if (run["hash"], run["seed"]) in names:
            try:
                time = str(files.read_json(folder / "status.json").get("time", ""))
            except (DamagedError, OSError):
                continue
            days += re.findall(r"^\d{4}-\d{2}-\d{2}", time)
    return max(days)


def _metrics(one: Saved, beside: list[Beside], table: str) -> Iterator[ResultRow]:
    """A line for each quantity that the runs of a row have."""
    for quantity in (*METRICS, *COSTS):
        found = of(quantity)(one.row)
        if found is None:
            continue
        fits = [fit.figure for fit in beside if fit.row is one.row and not fit.other]
        figure = next((fit for fit in fits if fit.metric == quantity.name), None)
        line = _line(one, table, quantity.name, found, UNITS.get(quantity.name, "percent"))
        if figure is not None:
            kind = " (spread: SEM)" if figure.spread is not None and figure.kind == "sem" else ""
            line["published"] = number(figure.value)
            line["published_spread"] = number(figure.spread)
            line["published_source"] = f"{figure.source}, table {figure.table}{kind}"
        yield ResultRow(**line)


def _line(one: Saved, table: str, metric: str, found: Summary, unit: str) -> dict[str, Any]:
    """The cells of a row of the table, without a published figure."""
    row, section = one.row, one.row.section
    lower, upper = found.interval or (None, None)
    own = [f"config {row.runs[0]['hash']}"]
    own += [f"backbone {name}" for name in _told(row, "backbone", "name")]
    own += [f"made by different code: {row.other_code}"] if row.other_code else []
    own += [] if one.command else ["no command: none was found that makes this config"]
    return {
        "table": table,
        "row": one.label,
        "command": one.command,
        "dataset": section.dataset,
        "scenario": section.scenario,
        "method": row.method,
        "split": section.split,
        "metric": metric,
        "mean": number(found.mean),
        "sd": number(found.sd),
        "n": found.n,
        "seeds": ",".join(str(run["seed"]) for run in row.runs),
        "lower": number(lower),
        "upper": number(upper),
        "unit": unit,
        "device": "; ".join(_told(row, "measured", "device")),
        "commit": "; ".join(_told(row, "measured", "commit")),
        "versions": "; ".join(_versions(row)),
        "date": one.date,
        "published": None,
        "published_spread": None,
        "published_source": "",
        "note": "; ".join(own),
    }


def _told(row: Row, part: str, name: str) -> list[str]:
    """What the records say there, each once."""
    values = [(run.get(part) or {}).get(name) for run in row.runs]
    return list(dict.fromkeys(str(visible(value)) for value in values if value is not None))


def _versions(row: Row) -> list[str]:
    """`python 3.11.2, torch 2.10.0, ...`, each once."""
    every = []
    for run in row.runs:
        measured = run["measured"]
        own = {"python": measured.get("python"), **(measured.get("versions") or {})}
        every.append(", ".join(f"{k} {v}" for k, v in own.items() if v is not None))
    return list(dict.fromkeys(text for text in every if text))


def _orders(saved: list[Saved]) -> list[list[Saved]]:
    """Test rows whose configs differ in the order of the tasks alone, where there are several."""
    groups: dict[str, list[Saved]] = defaultdict(list)
    for one in saved:
        config = leaves(one.row.runs[0]["config"])
        if ORDER in config and one.row.section.split == "test":
            rest = {key: value for key, value in config.items() if key != ORDER}
            place = one.row.section.dataset, one.row.section.scenario, one.row.method
            groups[json.dumps([place, rest], sort_keys=True, default=str)].append(one)
    return [group for group in groups.values() if len(group) > 1]


def _of_orders(group: list[Saved], table: str) -> Iterator[ResultRow]:
    """ACC, AOPD and MOPD over the orders of a config; n counts the orders."""
    runs: list[list[Record]] = [one.row.runs for one in group]
    if any(None in run["accuracy"][-1] for own in runs for run in own):
        return
    try:
        found, first = disparities(runs), group[0]
    except UserError:  # stream.first leaves them unlike tasks
        return
    every = ",".join(typed(leaves(own[0]["config"])[ORDER]) for own in runs)
    kept = [w for w in words(first.command) if not w.startswith(f"{ORDER}=")]
    label = shlex.join([*(kept or [first.label]), f"{ORDER}={every}"])
    seeds = ",".join(str(seed) for seed in sorted({run["seed"] for own in runs for run in own}))
    command = f"{label} seed={seeds}" if kept else ""
    one = Saved(first.row, label, command, max(own.date for own in group))
    for name, values in {"ACC": found["ACC"], **{n: [found[n]] for n in DISPARITIES}}.items():
        if None not in values:
            numbers = Summary(tuple(100 * value for value in values))
            line = _line(one, table, name, numbers, "percent")
            line |= {"n": len(group), "seeds": seeds, "note": f"over {len(group)} orders of tasks"}
            yield ResultRow(**line)


def number(value: float | None) -> Decimal | None:
    """A number with ten digits, as the table keeps it."""
    return None if value is None else Decimal(f"{value:.10g}")
